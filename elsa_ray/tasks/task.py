"""A task as the rest of the system sees it: tokenised data, its partition over clients, and a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import ColumnPartition, SizesDataset, TaskConfig
from elsa_ray.tasks.backbones import Backbone, resolve_model
from elsa_ray.tasks.client_examples import ClientExamples, Ints
from elsa_ray.tasks.dataset import TaskKind, load_dataset
from elsa_ray.tasks.model_facts import check_has_weights, planned_model
from elsa_ray.tasks.partition import partition
from elsa_ray.tasks.probes import load_probes, planned_probes, public_examples
from elsa_ray.tasks.sizes import draw_sizes, sizes_sha256
from elsa_ray.tasks.tokens import TokenizedTexts, ragged, tokenize


@dataclass(frozen=True)
class Task:
    """What is learned, by whom from which examples, starting from which model. Shapes: C clients."""

    kind: TaskKind
    backbone: Backbone
    train: TokenizedTexts
    test: TokenizedTexts
    """Like ``train``, without a text where the data set is sizes only."""
    label_names: tuple[str, ...]
    """Empty for causal_lm."""
    partition: ClientExamples
    """Of each client, the sorted int64 positions of its examples in ``train``."""
    probes: TokenizedTexts | None
    """Public texts on which models are compared; None without any."""
    data_sha256: str
    planned_length: int | None = None
    """Tokens of every example, where the data set is sizes only and there are no texts; else None."""

    @property
    def num_labels(self) -> int:
        """Number of labels; 0 for causal_lm."""
        return len(self.label_names)

    @property
    def longest_C(self) -> Ints:
        """Tokens of each client's longest example, int64 [C]."""
        if self.planned_length is not None:
            return np.full(len(self.partition), self.planned_length, np.int64)
        return self.partition.reduced(self.train.lengths, np.maximum)

    @property
    def mean_length_C(self) -> np.ndarray:
        """Mean tokens of each client's examples, float64 [C]."""
        if self.planned_length is not None:
            return np.full(len(self.partition), float(self.planned_length))
        mean: np.ndarray = self.partition.reduced(self.train.lengths, np.add) / self.partition.counts
        return mean


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
    if isinstance(config.dataset, SizesDataset):
        return _sizes_only(config, config.dataset, num_clients, seed, base_folder)
    check_has_weights(config.model, base_folder)
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
    tokenizer = backbone.tokenizer
    assert tokenizer is not None
    return Task(
        kind=config.kind,
        backbone=backbone,
        train=tokenize(tokenizer, train, config.max_length, config.kind),
        test=tokenize(tokenizer, test, config.max_length, config.kind),
        label_names=train.label_names,
        partition=ClientExamples.of_arrays([private[indices] for indices in client_indices]),
        probes=load_probes(
            config.probes,
            train,
            public,
            tokenizer,
            max_length=config.max_length,
            kind=config.kind,
            seed=seed,
            base_folder=base_folder,
        ),
        data_sha256=dataset.sha256,
    )


def _sizes_only(config: TaskConfig, dataset: SizesDataset, num_clients: int, seed: int, base_folder: Path) -> Task:
    """Return a task without a text: each client's number of examples, all of them as long as a text may be."""
    is_classification = config.kind == "classification"
    num_labels = dataset.num_labels if is_classification else 0
    backbone = planned_model(config.model, kind=config.kind, num_labels=num_labels, base_folder=base_folder)
    _check_length(config.max_length, backbone)
    sizes_C = draw_sizes(dataset, num_clients, seed)
    nothing = ragged([], np.zeros(0, np.int64) if is_classification else None)
    return Task(
        kind=config.kind,
        backbone=backbone,
        train=nothing,
        test=nothing,
        label_names=tuple(f"LABEL_{label}" for label in range(num_labels)),
        partition=ClientExamples.of_counts(sizes_C),
        probes=planned_probes(config.probes, config.max_length),
        data_sha256=sizes_sha256(sizes_C, config.max_length),
        planned_length=config.max_length,
    )


def _check_length(max_length: int, backbone: Backbone) -> None:
    positions = getattr(backbone.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise InputError("task.max_length", max_length, f"at most {positions}, the positions of {backbone.name}")
