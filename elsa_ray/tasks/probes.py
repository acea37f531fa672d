"""The public probe set: texts, the same for everybody, on which models are compared (methods.md 1.3, a reconstruction).

Shapes: Q probes, N examples.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import DatasetProbes, FileProbes, GeneratedProbes
from elsa_ray.tasks.dataset import Examples, TaskKind
from elsa_ray.tasks.files import read_file
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.tasks.table import checked_texts
from elsa_ray.tasks.tokens import TokenizedTexts, ragged, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ProbesConfig = DatasetProbes | FileProbes | GeneratedProbes


def public_examples(
    config: ProbesConfig | None, labels: np.ndarray | None, num_examples: int, num_clients: int, seed: int
) -> np.ndarray:
    """Return the positions [Q] of the public training examples, sorted; none where probes come from elsewhere.

    Labels take turns, so that each has about its equal share of the probes.

    Raises:
        InputError: too few examples would be left for the clients.
    """
    if not isinstance(config, DatasetProbes):
        return np.zeros(0, np.int64)
    if num_examples - config.count < num_clients:
        allowed = f"at most {max(num_examples - num_clients, 0)}, so that every client keeps an example"
        raise InputError("task.probes.count", config.count, allowed)
    order = numpy_generator(seed, "probes").permutation(num_examples)
    group = np.zeros(num_examples, np.int64) if labels is None else labels
    turn = np.zeros(num_examples, np.int64)
    for label in np.unique(group):
        own = order[group[order] == label]
        turn[own] = np.arange(len(own))
    taking_turns = order[np.argsort(turn[order], kind="stable")]
    return np.sort(taking_turns[: config.count])


def load_probes(
    config: ProbesConfig | None,
    train: Examples,
    public: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    kind: TaskKind,
    seed: int,
    base_folder: Path,
) -> TokenizedTexts | None:
    """Return the tokenised probes without labels; None where the config asks for none.

    Args:
        config: the ``task.probes`` section.
        train: the training examples.
        public: which of them are public.
        tokenizer: the backbone's.
        max_length: longest text in tokens.
        kind: of the task.
        seed: the run's.
        base_folder: what relative paths are relative to.

    Raises:
        InputError: the file is missing, lacks the column, or has too few texts; or generated probes are too long.
    """
    if config is None:
        return None
    if isinstance(config, GeneratedProbes):
        return _generated(config, tokenizer, max_length, seed)
    if isinstance(config, FileProbes):
        examples = _of_file(config, base_folder)
    else:
        chosen = train.take(public)
        examples = Examples(chosen.texts, None, (), source=chosen.source, rows=chosen.rows)
    return tokenize(tokenizer, examples, max_length, kind)


def planned_probes(config: ProbesConfig | None, max_length: int) -> TokenizedTexts | None:
    """Return as many probes of the configured length as are asked for; their tokens mean nothing.

    For a data set that is sizes only: neither texts nor a tokenizer are there.

    Raises:
        InputError: the probes are to be texts, or longer than ``max_length``.
    """
    if config is None:
        return None
    if not isinstance(config, GeneratedProbes):
        raise InputError("task.probes.kind", config.kind, "generated, with a dataset of sizes: there are no texts")
    if config.length > max_length:
        raise InputError("task.probes.length", config.length, f"1 to {max_length} (task.max_length)")
    return ragged([[0] * config.length] * config.count, None)


def _of_file(config: FileProbes, base_folder: Path) -> Examples:
    table = read_file(config.file, base_folder=base_folder, columns=[config.text], field="task.probes.file")
    texts = checked_texts(table, config.text, allow_blank=False)[: config.count]
    if len(texts) < config.count:
        raise InputError("task.probes.count", config.count, f"at most {len(texts)}, the texts of {config.file}")
    return Examples(texts, None, (), source=config.file)


def _generated(
    config: GeneratedProbes, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int
) -> TokenizedTexts:
    special = set(tokenizer.all_special_ids)
    sample: list[int] = tokenizer("a")["input_ids"]
    # An unknown word is a special token as well, but not one that frames a text.
    frame = special - {tokenizer.unk_token_id}
    head = list(takewhile(frame.__contains__, sample))
    tail = list(takewhile(frame.__contains__, reversed(sample)))[::-1]
    least = len(head) + len(tail) + 1
    if not least <= config.length <= max_length:
        raise InputError("task.probes.length", config.length, f"{least} to {max_length} (task.max_length)")
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), np.array(sorted(special), np.int64))
    generator = numpy_generator(seed, "probes")
    texts = generator.choice(ordinary, size=(config.count, config.length - least + 1))
    return ragged([[*head, *text, *tail] for text in texts.tolist()], None)
