"""A task as the rest of the system sees it: tokenised data, its partition over clients, and a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import ColumnPartition, TaskConfig
from elsa_ray.tasks.backbones import Backbone, resolve_model
from elsa_ray.tasks.dataset import TaskKind, load_dataset
from elsa_ray.tasks.partition import partition
from elsa_ray.tasks.probes import load_probes, public_examples
from elsa_ray.tasks.tokens import TokenizedTexts, tokenize


@dataclass(frozen=True)
class Task:
    """What is learned, by whom from which examples, starting from which model."""

    kind: TaskKind
    backbone: Backbone
    train: TokenizedTexts
    test: TokenizedTexts
    label_names: tuple[str, ...]
    """Empty for causal_lm."""
    partition: list[np.ndarray]
    """Of each client, the sorted int64 positions of its examples in ``train``."""
    probes: TokenizedTexts | None
    """Public texts on which models are compared; None without any."""
    data_sha256: str

    @property
    def num_labels(self) -> int:
        """Number of labels; 0 for causal_lm."""
        return len(self.label_names)


def load_task(config: TaskConfig, *, num_clients: int, seed: int, base_folder: Path) -> Task:
    """Read the data, find the model, tokenise and deal the examples to clients; no weight is loaded.

    Args:
        config: the ``task`` section.
        num_clients: how many clients the topology has.
        seed: the run's seed: hold-out, subset and partition follow from it.
        base_folder: what relative paths are relative to.

    Raises:
        InputError: anything in data, model or partition that is wrong; one line that says where and what is allowed.
    """
    dealt_by = (config.partition.column,) if isinstance(config.partition, ColumnPartition) else ()
    dataset = load_dataset(config.dataset, kind=config.kind, seed=seed, base_folder=base_folder, extra_columns=dealt_by)
    train, test = dataset.train, dataset.test
    public = public_examples(config.probes, train.labels, len(train), num_clients, seed)
    private = np.setdiff1d(np.arange(len(train)), public)
    dealt = train.take(private)
    client_indices = partition(config.partition, dealt.labels, dealt.columns, len(dealt), num_clients, seed)
    backbone = resolve_model(
        config.model,
        kind=config.kind,
        num_labels=len(train.label_names),
        train_texts=train.texts,
        base_folder=base_folder,
        label_names=train.label_names,
    )
    _check_length(config.max_length, backbone)
    return Task(
        kind=config.kind,
        backbone=backbone,
        train=tokenize(backbone.tokenizer, train, config.max_length, config.kind),
        test=tokenize(backbone.tokenizer, test, config.max_length, config.kind),
        label_names=train.label_names,
        partition=[private[indices] for indices in client_indices],
        probes=load_probes(
            config.probes,
            train,
            public,
            backbone.tokenizer,
            max_length=config.max_length,
            kind=config.kind,
            seed=seed,
            base_folder=base_folder,
        ),
        data_sha256=dataset.sha256,
    )


def _check_length(max_length: int, backbone: Backbone) -> None:
    positions = getattr(backbone.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise InputError("task.max_length", max_length, f"at most {positions}, the positions of {backbone.name}")
