"""Read a dataset of the Hugging Face hub, or a local folder that the ``datasets`` library saved."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.config.task import HubDataset
from elsa_ray.tasks.quiet import quiet_hub
from elsa_ray.tasks.table import Table, missing_column

_FIELD = "task.dataset.hub"


def read_hub(config: HubDataset, *, base_folder: Path, columns: Sequence[str]) -> tuple[Table, Table]:
    """Return the training and the test table with ``columns``.

    A folder of that name beside the config file (as ``DatasetDict.save_to_disk`` writes it) goes before the hub.
    Integer labels that the dataset gives names for become those names.

    Raises:
        InputError: the ``datasets`` package is missing, the dataset cannot be had, or it lacks a split or a column.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        found = f"{config.hub}, but the package datasets is not installed"
        raise InputError(_FIELD, found, "a hub dataset after pip install elsa_ray[hub]") from error
    folder = base_folder / config.hub
    try:
        with _quiet(datasets):
            if os.path.isdir(folder):
                splits = datasets.load_from_disk(str(folder))
            else:
                splits = datasets.load_dataset(config.hub, config.subset)
    except Exception as error:  # the library raises errors of many packages; each means that it could not be had
        allowed = "a dataset of the hub that can be reached, or a folder written by DatasetDict.save_to_disk"
        raise InputError(_FIELD, f"{config.hub} ({_first_line(error)})", allowed) from error
    if not isinstance(splits, Mapping):
        raise InputError(_FIELD, f"{config.hub}, a single split", "a dataset with a training and a test split")
    train = _split_table(config.hub, splits, config.train_split, "task.dataset.train_split", columns)
    test = _split_table(config.hub, splits, config.test_split, "task.dataset.test_split", columns)
    return train, test


def _split_table(hub: str, splits: Mapping[Any, Any], name: str, field: str, columns: Sequence[str]) -> Table:
    names = sorted(map(str, splits))
    if name not in names:
        raise InputError(field, name, f"a split of {hub}: {', '.join(names)}", nearest=nearest_name(name, names))
    split = splits[name]
    shown = f"{hub} {name}"
    for column in columns:
        if column not in split.column_names:
            raise missing_column(shown, column, split.column_names)
    if len(split) == 0:
        raise InputError(shown, "no rows", "a split with at least one row")
    values = {column: _named(list(split[column]), split.features[column]) for column in columns}
    return Table(shown, values, list(range(1, len(split) + 1)))


def _named(values: list[Any], feature: Any) -> list[Any]:
    names = getattr(feature, "names", None)
    if names is None:
        return values
    # The hub marks a hidden label by -1: it becomes a null, which the checks refuse and name the row of.
    return [names[value] if value is not None and value >= 0 else None for value in values]


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    bars = datasets.is_progress_bar_enabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with quiet_hub():
            yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
