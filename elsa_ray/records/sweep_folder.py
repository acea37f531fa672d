"""A sweep's folder: a run folder a cell, found again by what it depends on, and the tables made from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import config_sha256, dump_config
from elsa_ray.config.sweep import Cell, Grid
from elsa_ray.records.folder import SUMMARY
from elsa_ray.records.json_text import json_text, write_whole
from elsa_ray.records.lock import locked
from elsa_ray.records.reading import EARLY_ENDS, RunRecord, read_run
from elsa_ray.records.sweep_charts import sweep_plots
from elsa_ray.records.sweep_table import (
    CellRecord,
    Status,
    finished_record,
    make_table,
    results_json,
    results_markdown,
)

CELLS, SET_ASIDE, PLOTS = "cells", "set-aside", "plots"
RESULTS_JSON, RESULTS_MD = "results.json", "results.md"
_LOCK = ".lock"


class SweepFolder:
    """Where a sweep's runs and tables lie.

    Attributes:
        path: the folder; it is made by ``opened``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cells = path / CELLS

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Make the folder, and keep every other sweep out of it as long as the block, or a run of it, lasts.

        Gives the descriptor of the lock, which runs inherit: one that outlives its sweep still writes.

        Raises:
            InputError: another sweep is at work there, or the folder is not a sweep's, or cannot be written to.
        """
        self.check()
        found = f"{self.path}, where a sweep, or a run of one, is at work"
        taken = InputError("--out", found, "a folder of its own, or this one later")
        with ExitStack() as stack:
            try:
                self._cells.mkdir(parents=True, exist_ok=True)
                number = stack.enter_context(locked(self.path / _LOCK, taken))
            except OSError as error:
                allowed = "a folder that can be written to"
                raise InputError("--out", f"{self.path} ({error.strerror})", allowed) from error
            yield number

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            InputError: it is a file, or neither empty nor a sweep's.
        """
        allowed = "a new or an empty folder, or a sweep's"
        if self.path.exists() and not self.path.is_dir():
            raise InputError("--out", f"{self.path}, a file", allowed)
        if self.path.is_dir() and any(self.path.iterdir()) and not self._cells.is_dir():
            raise InputError("--out", f"{self.path}, which is not empty and has no {CELLS}/", allowed)

    def folder(self, cell: Cell) -> Path:
        """Return the run folder of a cell; one that a cell of another name has left is taken if it is the same run."""
        there = sorted(path for path in self._cells.glob(f"*-{cell.key}") if path.is_dir())
        return there[0] if there else self._cells / cell.slug

    def config_path(self, cell: Cell) -> Path:
        """Return where the complete config of a cell lies, beside the run folder."""
        return self._beside(cell, ".yaml")

    def log_path(self, cell: Cell) -> Path:
        """Return where all lies that a cell's run has said, beside the run folder."""
        return self._beside(cell, ".log")

    def _beside(self, cell: Cell, ending: str) -> Path:
        folder = self.folder(cell)
        return folder.with_name(folder.name + ending)

    def finished_run(self, cell: Cell) -> RunRecord | None:
        """Return a cell's run if it has come to its end by this very config."""
        try:
            run = read_run(self.folder(cell))
        except InputError:
            return None
        summary = run.summary
        if summary is None or summary["stop_reason"] in EARLY_ENDS:
            return None
        return run if _is_run_of(run, cell) and summary["config_sha256"] == config_sha256(run.config) else None

    def unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that must be run, each run once."""
        runs = {cell.key: cell for cell in reversed(cells)}
        return [cell for cell in cells if runs[cell.key] is cell and self.finished_run(cell) is None]

    def make_place(self, cell: Cell) -> Path:
        """Write the cell's config, put what an earlier try has left aside, and return the free run folder.

        Nothing is ever removed: what is put aside keeps its finished rounds, and its user may want them.
        """
        folder = self.folder(cell)
        if folder.exists():
            aside = self.path / SET_ASIDE
            aside.mkdir(exist_ok=True)
            number = 1
            while (target := aside / f"{folder.name}-{number}").exists():
                number += 1
            folder.rename(target)
        write_whole(self.config_path(cell), dump_config(cell.config))
        return folder

    def record(self, grid: Grid, cell: Cell) -> CellRecord:
        """Return what is known of a cell."""
        folder = self.folder(cell)
        run = self.finished_run(cell)
        if run is None:
            values = dict(cell.condition.values)
            message = self.last_words(cell)
            return CellRecord(cell.condition.row, values, cell.seed, self._status(cell), message=message)
        ended = datetime.fromtimestamp((folder / SUMMARY).stat().st_mtime).astimezone()
        place, date = folder.relative_to(self.path).as_posix(), ended.isoformat(timespec="seconds")
        return finished_record(grid.config, cell, run, folder=place, date=date)

    def _status(self, cell: Cell) -> Status:
        try:
            summary = read_run(self.folder(cell)).summary
        except InputError:
            summary = None
        stop_reason = summary["stop_reason"] if summary else None
        stopped = next((reason for reason in EARLY_ENDS if reason == stop_reason), None)
        return stopped or ("unfinished" if self.log_path(cell).exists() else "not run")

    def last_words(self, cell: Cell) -> str:
        """Return the last line that a cell's run has said."""
        path = self.log_path(cell)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

    def write_results(self, grid: Grid) -> list[CellRecord]:
        """Make all tables and plots of the grid anew from its run folders; returns the record of each cell."""
        records = [self.record(grid, cell) for cell in grid.cells]
        lines = make_table(grid, records)
        plots = self.path / PLOTS
        plots.mkdir(exist_ok=True)
        for old in plots.glob("*.svg"):
            old.unlink()
        paths = {}
        for title, (name, svg) in sweep_plots(grid, lines).items():
            write_whole(plots / name, svg)
            paths[title] = f"{PLOTS}/{name}"
        write_whole(self.path / RESULTS_JSON, json_text(results_json(grid, records, lines), indent=2) + "\n")
        write_whole(self.path / RESULTS_MD, results_markdown(grid, records, lines, paths))
        return records


def _is_run_of(run: RunRecord, cell: Cell) -> bool:
    """Whether a run's config is the cell's, each ``auto`` as the run's machine has decided it."""
    wanted, found = (config.model_dump(mode="json", exclude={"runtime"}) for config in (cell.config, run.config))
    trains = (config.runtime.executor != "none" for config in (cell.config, run.config))
    return _decided(wanted, found) == found and len(set(trains)) == 1


def _decided(wanted: Any, found: Any) -> Any:
    if wanted == "auto":
        return found
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: _decided(value, found.get(key)) for key, value in wanted.items()}
    return wanted
