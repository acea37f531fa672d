"""Reads a run folder back, also that of a run that goes on or was interrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import load_config
from elsa_ray.records.folder import CONFIG, EVENTS, ROUNDS, SUMMARY, TRANSFERS
from elsa_ray.records.totals import Totals

EARLY_ENDS: tuple[Literal["failed", "interrupted"], ...] = ("failed", "interrupted")
"""The stop reasons of runs that did not come to their end."""


@dataclass(frozen=True)
class RunRecord:
    """A run, read from its folder.

    Attributes:
        path: the folder.
        config: complete.
        rounds: the lines of ``rounds.jsonl``, as plain values.
        summary: of a finished run; None while there is none.
    """

    path: Path
    config: ExperimentConfig
    rounds: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The summary; what a run without one has not told yet is summed over its rounds, or is None or empty.

        Raises:
            InputError: a round lacks something.
        """
        totals = Totals()
        for number, round_ in enumerate(self.rounds, start=1):
            try:
                totals.add(round_)
            except (LookupError, TypeError, ValueError, AttributeError):
                where = f"{self.path / ROUNDS} line {number}"
                raise InputError(where, str(round_)[:60], "a round as elsa-ray run writes it") from None
        figures = totals.figures()
        figures["wall_seconds"] = sum(figures["wall_seconds_by_phase"].values())
        about = {
            "name": self.config.name,
            "seed": self.config.seed,
            "protocol": self.config.protocol.name,
            "executor": self.config.runtime.executor,
            "precision": self.config.numerics.precision,
        }
        untold: dict[str, Any] = {"host_peak_memory_bytes": None, "assumptions": [], "versions": {}, "hardware": {}}
        return {**about, **untold, **figures, **(self.summary or {})}

    @cached_property
    def transfers(self) -> pa.Table:
        """The table of transfers.

        Raises:
            InputError: it is missing, or cannot be read because the run was killed before it was closed.
        """
        return _read_table(self.path / TRANSFERS)

    @cached_property
    def events(self) -> pa.Table:
        """The table of events.

        Raises:
            InputError: as for ``transfers``.
        """
        return _read_table(self.path / EVENTS)


def read_run(path: str | Path) -> RunRecord:
    """Read a run's folder; its tables are read when they are asked for.

    Raises:
        InputError: there is no such folder, it is no run's, or one of its files is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(
            str(path), "no such folder" if not path.exists() else "a file", "a run folder", nearest=_nearest(path)
        )
    if not (path / CONFIG).is_file():
        found = f"a folder without {CONFIG}"
        raise InputError(str(path), found, "a run folder, as elsa-ray run makes it", nearest=_run_inside(path))
    return RunRecord(path, load_config(path / CONFIG), _read_rounds(path / ROUNDS), _read_summary(path / SUMMARY))


def _read_rounds(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise InputError(str(path), "no such file", "a run folder with its rounds")
    lines = _read_text(path).splitlines()
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            round_ = json.loads(line)
        except ValueError:
            # A run that was killed while it wrote leaves a part of a last line.
            if number == len(lines):
                break
            round_ = None
        if not isinstance(round_, dict):
            raise InputError(f"{path} line {number}", line[:60], "one JSON object a line")
        rounds.append(round_)
    return rounds


def _read_summary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        summary = json.loads(_read_text(path))
    except ValueError as error:
        raise InputError(str(path), f"damaged JSON ({error})", "the summary as it was written") from None
    if not isinstance(summary, dict):
        raise InputError(str(path), type(summary).__name__, "the summary as it was written")
    return summary


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), getattr(error, "strerror", None) or "no UTF-8 text", "a readable file") from None


def _read_table(path: Path) -> pa.Table:
    try:
        return pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        found = "no such file" if not path.exists() else f"damaged Parquet ({str(error).splitlines()[0]})"
        raise InputError(str(path), found, "the table of a run that was closed") from None


def _nearest(path: Path) -> str | None:
    parent = path.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    name = nearest_name(path.name, names)
    return str(parent / name) if name else None


def _run_inside(path: Path) -> str | None:
    """Return the newest run in a folder of runs."""
    runs = sorted(entry for entry in path.iterdir() if (entry / CONFIG).is_file())
    return str(max(runs, key=lambda run: run.stat().st_mtime)) if runs else None
