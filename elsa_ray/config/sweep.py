"""A grid of runs: named rows of settings, varied values and seeds on top of one experiment's config."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import config_sha256, load_config, read_yaml
from elsa_ray.config.section import Section
from elsa_ray.config.validate import validate

Seed = Annotated[int, Field(ge=0)]
Overrides = dict[str, Any]
"""Values by dotted key, such as ``protocol.rounds``; each is set as ``--set`` does it, a mapping replaces a mapping."""

_SLUG_LENGTH = 60


class TargetConfig(Section):
    """A score whose first reaching is looked for: simulated seconds and bytes until then."""

    metric: Literal["accuracy", "macro_f1", "loss", "perplexity"] = "accuracy"
    """A score of ``rounds.jsonl``; accuracy and macro F1 are reached from below, loss and perplexity from above."""
    value: float

    def is_reached(self, score: float) -> bool:
        """Whether a score is as good as the target."""
        return score >= self.value if self.metric in ("accuracy", "macro_f1") else score <= self.value


class SweepConfig(Section):
    """The grid file."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    base: str
    """An experiment's config; the path is relative to the grid file."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    rows: Annotated[dict[str, Overrides], Field(min_length=1)]
    """Settings by the name that they have in the table; order is kept. Paths are relative to the base file."""
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Values by dotted key; each row is run with each combination."""
    baseline: str | None = None
    """The row that paired differences are taken against."""
    metrics: Annotated[list[str], Field(min_length=1)] = ["accuracy", "loss", "simulated_seconds", "bytes_total"]
    """Numbers of ``summary.json``, such as ``metrics.macro_f1``."""
    target: TargetConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field in ("seeds", "metrics"):
            _check_distinct(field, getattr(self, field))
        for key, values in self.vary.items():
            _check_key("vary", key)
            _check_distinct(f"vary.{key}", [value_text(value) for value in values])
        for row, overrides in self.rows.items():
            for key in overrides:
                _check_key(f"rows.{row}", key)
                varied = next((other for other in self.vary if key == other or key.startswith(f"{other}.")), None)
                if varied:
                    raise InputError(f"rows.{row}.{key}", f"a value that vary.{varied} replaces", "only one of the two")
        if self.baseline is not None and self.baseline not in self.rows:
            raise unknown_name("baseline", self.baseline, self.rows)
        return self


@dataclass(frozen=True)
class Condition:
    """A row of the grid at one combination of the varied values; its seeds are averaged over.

    Attributes:
        row: the row's name.
        values: the varied ones, by dotted key.
    """

    row: str
    values: Mapping[str, Any]

    @cached_property
    def label(self) -> str:
        """Row and values in one line, unique in the grid."""
        return ", ".join([self.row, *(f"{key}={value_text(value)}" for key, value in self.values.items())])


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        condition: what is tried.
        seed: of the run.
        config: complete.
    """

    condition: Condition
    seed: int
    config: ExperimentConfig

    @property
    def label(self) -> str:
        """Condition and seed in one line."""
        return f"{self.condition.label}, seed {self.seed}"

    @cached_property
    def key(self) -> str:
        """What the run's result depends on, hashed: the config without ``runtime``, and whether anything is trained.

        Two cells with the same key are the same run.
        """
        is_trained = self.config.runtime.executor != "none"
        return hashlib.sha256(f"{config_sha256(self.config)} {is_trained}".encode()).hexdigest()[:16]

    @property
    def slug(self) -> str:
        """A name for files: readable in front, unique behind."""
        readable = re.sub(r"[^a-z0-9.]+", "-", self.condition.label.lower())[:_SLUG_LENGTH].strip("-.")
        return f"{readable}-seed{self.seed}-{self.key}".lstrip("-")


@dataclass(frozen=True)
class Grid:
    """A grid file with the configs of all its runs.

    Attributes:
        config: the file's content.
        conditions: row by row, in the file's order.
        cells: all conditions with the first seed, then with the second, and so on: tables fill evenly.
    """

    config: SweepConfig
    conditions: tuple[Condition, ...]
    cells: tuple[Cell, ...]

    def baseline_of(self, condition: Condition) -> Condition | None:
        """Return the baseline's condition at the same values; None for the baseline itself or without one."""
        if self.config.baseline is None or condition.row == self.config.baseline:
            return None
        return next(
            other for other in self.conditions if other.row == self.config.baseline and other.values == condition.values
        )


def load_grid(path: str | Path) -> Grid:
    """Read a grid file and make the config of each of its runs.

    Raises:
        InputError: the file, its base, or the config of a cell is wrong; the latter names the row.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "no UTF-8 text"
        raise InputError(str(path), found, "a readable YAML file") from None
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise InputError(str(path), type(data).__name__, "a mapping with name, base, seeds and rows")
    config = validate(SweepConfig, data)
    base = path.parent / Path(config.base).expanduser()
    # A mistake in the base is no row's mistake.
    load_config(base)
    conditions = tuple(
        Condition(row, dict(zip(config.vary, values, strict=True)))
        for row in config.rows
        for values in itertools.product(*config.vary.values())
    )
    cells = tuple(
        Cell(condition, seed, _cell_config(config, base, condition, seed))
        for seed in config.seeds
        for condition in conditions
    )
    return Grid(config, conditions, cells)


def read_seeds(text: str) -> list[int]:
    """Return the seeds of a text such as ``0,1,2``.

    Raises:
        InputError: it is no list of whole numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError("--seeds", text or "nothing", "whole numbers with commas between, such as 0,1,2")
    return [int(part) for part in parts]


def value_text(value: Any) -> str:
    """Return a value of a config as it is written in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def row_error(condition: Condition, error: InputError) -> InputError:
    """Return an error of a cell's config that names the row as well as the field."""
    where = f"rows.{condition.label}: {error.where.removeprefix('--set ')}"
    return InputError(where, error.found, error.allowed, nearest=error.nearest)


def _cell_config(config: SweepConfig, base: Path, condition: Condition, seed: int) -> ExperimentConfig:
    values = {**config.rows[condition.row], **condition.values, "seed": seed}
    # JSON is YAML: the values pass through the same door as those of the command line.
    overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
    try:
        return load_config(base, overrides)
    except InputError as error:
        raise row_error(condition, error) from None


def _check_key(where: str, key: str) -> None:
    if key == "seed":
        raise InputError(f"{where}.seed", "a seed", "seeds at the top of the grid file")
    if "=" in key or not all(key.split(".")):
        raise InputError(where, f"the key {key!r}", "dotted keys of the config, such as protocol.rounds")


def _check_distinct(where: str, values: list[Any]) -> None:
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise InputError(where, f"{twice} twice", "each value once")
