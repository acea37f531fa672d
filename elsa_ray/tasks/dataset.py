"""Training and test examples of a task, from files, the hub or the docstrings, checked row by row."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.config.task import FileDataset, HubDataset, PydocsDataset
from elsa_ray.tasks.files import read_file
from elsa_ray.tasks.hub import read_hub
from elsa_ray.tasks.pydocs import read_pydocs
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.tasks.table import Table, checked_keys, checked_labels, checked_texts, missing_column

# Shapes: N examples.

TaskKind = Literal["classification", "causal_lm"]


@dataclass(frozen=True)
class Examples:
    """Texts with what is known of each: label, source row, and columns to group by."""

    texts: list[str]
    labels: np.ndarray | None
    """int64 [N], positions in ``label_names``; None for causal_lm."""
    label_names: tuple[str, ...]
    """Distinct labels in sorted order; empty for causal_lm."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Values of the columns asked for, as texts, one an example."""
    source: str = "texts"
    """What messages call the data: the file as the config names it, or the hub's dataset and split."""
    rows: np.ndarray | None = None
    """int64 [N]: the source's own number of each example, from 1; None when they are simply in order."""

    def __len__(self) -> int:
        """N."""
        return len(self.texts)

    def where(self, index: int) -> str:
        """Name example ``index`` for a message, such as ``train.jsonl row 17``."""
        return f"{self.source} row {index + 1 if self.rows is None else self.rows[index]}"

    def take(self, indices: np.ndarray) -> Examples:
        """Return the examples at ``indices`` (int64), in that order."""
        chosen = indices.tolist()
        return replace(
            self,
            texts=[self.texts[index] for index in chosen],
            labels=None if self.labels is None else self.labels[indices],
            columns={name: [values[index] for index in chosen] for name, values in self.columns.items()},
            rows=indices + 1 if self.rows is None else self.rows[indices],
        )


@dataclass(frozen=True)
class Dataset:
    """The two parts of a task's data."""

    train: Examples
    test: Examples
    sha256: str
    """Hash of all texts and label names of both parts, in order (hexadecimal)."""


def load_dataset(
    config: PydocsDataset | FileDataset | HubDataset,
    *,
    kind: TaskKind,
    seed: int,
    base_folder: Path,
    extra_columns: Sequence[str] = (),
) -> Dataset:
    """Read, check and split a task's data; the same arguments and files give the same examples in the same order.

    Without a test set of its own, ``test_fraction`` of the examples are held out, chosen by ``seed`` (at least one, and
    at least one stays for training). ``max_examples`` then keeps a random part of each side, by ``seed``, in proportion
    to their sizes, so that both together have that many.

    Args:
        config: the ``task.dataset`` section.
        kind: for ``causal_lm``, the label column is neither read nor needed.
        seed: the run's seed.
        base_folder: what relative paths are relative to.
        extra_columns: columns to carry along, such as that of a ``by_column`` partition.

    Raises:
        InputError: a file, row or column is wrong, there are fewer than two labels or examples, or a test label does
            not occur in training.
    """
    with_labels = kind == "classification"
    tables, text, label = _read_tables(config, with_labels=with_labels, base_folder=base_folder, extra=extra_columns)
    checked = [_check(table, text, label if with_labels else None, extra_columns) for table in tables]
    train, test = _with_label_ids(checked, "task.dataset") if with_labels else _without_labels(checked)
    if test is None:
        assert not isinstance(config, HubDataset)
        train, test = _hold_out(train, config.test_fraction, seed)
    if config.max_examples is not None:
        train, test = _at_most(train, test, config.max_examples, seed)
    return Dataset(train, test, _sha256(train, test))


@dataclass(frozen=True)
class _Checked:
    examples: Examples
    labels: list[str]


def _read_tables(
    config: PydocsDataset | FileDataset | HubDataset, *, with_labels: bool, base_folder: Path, extra: Sequence[str]
) -> tuple[list[Table], str, str]:
    """Return the training table and, where the source has one, the test table; and names of text and label columns."""
    if isinstance(config, PydocsDataset):
        table = read_pydocs()
        for column in extra:
            if column not in table.columns:
                raise missing_column("task.partition.column", column, list(table.columns))
        return [table], "text", "label"
    columns = list(dict.fromkeys([config.text, *([config.label] if with_labels else []), *extra]))
    if isinstance(config, HubDataset):
        return list(read_hub(config, base_folder=base_folder, columns=columns)), config.text, config.label
    tables = [read_file(config.train, base_folder=base_folder, columns=columns, field="task.dataset.train")]
    if config.test is not None:
        # Only training examples are dealt to clients, so a test file needs no column to group by.
        needed = [column for column in columns if column not in extra or column in (config.text, config.label)]
        tables.append(read_file(config.test, base_folder=base_folder, columns=needed, field="task.dataset.test"))
    return tables, config.text, config.label


def _check(table: Table, text: str, label: str | None, extra: Sequence[str]) -> _Checked:
    texts = checked_texts(table, text, allow_blank=label is None)
    columns = {column: checked_keys(table, column) for column in extra if column in table.columns}
    labels = [] if label is None else checked_labels(table, label)
    return _Checked(Examples(texts, None, (), columns, table.name, np.array(table.rows, dtype=np.int64)), labels)


def _with_label_ids(checked: list[_Checked], where: str) -> tuple[Examples, Examples | None]:
    names = sorted_label_names(checked[0].labels)
    if len(names) < 2:
        raise InputError(where, f"one label only ({names[0]})", "at least two different labels in the training data")
    id_of = {name: position for position, name in enumerate(names)}
    parts = []
    for part in checked:
        for index, name in enumerate(part.labels):
            if name not in id_of:
                found, allowed = f"label {name}", f"a label of the training data: {', '.join(names)}"
                raise InputError(part.examples.where(index), found, allowed, nearest=nearest_name(name, names))
        labels_N = np.array([id_of[name] for name in part.labels], dtype=np.int64)
        parts.append(replace(part.examples, labels=labels_N, label_names=names))
    return parts[0], parts[1] if len(parts) > 1 else None


def _without_labels(checked: list[_Checked]) -> tuple[Examples, Examples | None]:
    return checked[0].examples, checked[1].examples if len(checked) > 1 else None


def sorted_label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct labels: by number where all of them are integers, else by text."""
    names = set(labels)
    if all(re.fullmatch(r"0|-?[1-9][0-9]{0,30}", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    num_examples = len(examples)
    if num_examples < 2:
        raise InputError("task.dataset", "1 example", "at least 2, one to train on and one to test on")
    num_test = min(max(round(fraction * num_examples), 1), num_examples - 1)
    order_N = numpy_generator(seed, "hold out").permutation(num_examples)
    return examples.take(np.sort(order_N[num_test:])), examples.take(np.sort(order_N[:num_test]))


def _at_most(train: Examples, test: Examples, max_examples: int, seed: int) -> tuple[Examples, Examples]:
    total = len(train) + len(test)
    if max_examples >= total:
        return train, test
    if max_examples < 2:
        raise InputError("task.dataset.max_examples", max_examples, "at least 2, one to train on and one to test on")
    num_test = min(max(round(max_examples * len(test) / total), 1), max_examples - 1, len(test))
    num_train = min(max_examples - num_test, len(train))
    return _random_part(train, num_train, seed, "train"), _random_part(test, num_test, seed, "test")


def _random_part(examples: Examples, num_kept: int, seed: int, side: str) -> Examples:
    order_N = numpy_generator(seed, "max_examples", side).permutation(len(examples))
    return examples.take(np.sort(order_N[:num_kept]))


def _sha256(train: Examples, test: Examples) -> str:
    digest = hashlib.sha256()
    for examples in (train, test):
        digest.update(len(examples).to_bytes(8, "big"))
        names = [""] * len(examples) if examples.labels is None else [examples.label_names[i] for i in examples.labels]
        for pair in zip(examples.texts, names, strict=True):
            for text in pair:
                body = text.encode("utf-8")
                digest.update(len(body).to_bytes(8, "big") + body)
    return digest.hexdigest()
