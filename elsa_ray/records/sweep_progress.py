"""What a person sees of a sweep: which run of how many, how long it takes, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from elsa_ray.config.sweep import Cell
from elsa_ray.records.human import human_bytes, human_seconds, human_share

_BAR_WIDTH = 20


class SweepProgress:
    """Shows a line a run that ends, and on a terminal a bar below. Use it as a context manager.

    Args:
        console: where to.
        num_runs: to be done.
    """

    def __init__(self, console: Console, num_runs: int) -> None:
        self._console = console
        self._num_runs = num_runs
        self._num_ended = 0
        self._running: list[str] = []
        self._begin = perf_counter()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # A long name must not push the bar away.
            room = max(self._console.width - _BAR_WIDTH - 26, 10)
            columns = (
                TextColumn("runs"),
                BarColumn(bar_width=_BAR_WIDTH),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=room)),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=self._num_runs)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begun(self, cell: Cell) -> None:
        """Show that a run has begun."""
        self._running.append(cell.label)
        self._show()

    def ended(self, cell: Cell, text: str) -> None:
        """Show how a run has ended, and about how long the others will take."""
        self._running.remove(cell.label)
        self._num_ended += 1
        line = f"run {self._num_ended}/{self._num_runs}: {cell.label}: {text}; {self._left()}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._show()

    def _left(self) -> str:
        """Return the time that went by, and what is left if the others take as long as those that ended."""
        elapsed = perf_counter() - self._begin
        left = elapsed / self._num_ended * (self._num_runs - self._num_ended)
        return f"{human_seconds(elapsed)} so far" + (f", about {human_seconds(left)} left" if left else "")

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            running = self._running if len(self._running) <= 1 else [f"{len(self._running)} under way"]
            parts = [*([self._left()] if self._num_ended else []), *running]
            self._bar.update(self._task, completed=self._num_ended, description=escape("; ".join(parts)))


def figures_text(summary: Mapping[str, Any]) -> str:
    """Return a finished run's figures in one line."""
    parts = [f"{human_seconds(summary['simulated_seconds'])} simulated", human_bytes(summary["bytes_total"])]
    if summary["accuracy"] is not None:
        parts.insert(0, f"accuracy {human_share(summary['accuracy'])}")
    return ", ".join([*parts, f"{human_seconds(summary['wall_seconds'])} of wall-clock time"])


def print_cells(cells: Sequence[Cell], states: Sequence[str], console: Console) -> None:
    """List the runs of a sweep, each with its state."""
    table = Table(box=None, pad_edge=False)
    for title in ("run", "condition", "seed", "state"):
        table.add_column(title, overflow="fold", justify="right" if title in ("run", "seed") else "left")
    number_of_key: dict[str, int] = {}
    for number, (cell, state) in enumerate(zip(cells, states, strict=True), start=1):
        first = number_of_key.setdefault(cell.key, number)
        told = state if first == number else f"the same as run {first}"
        table.add_row(str(number), escape(cell.condition.label), str(cell.seed), told)
    console.print(table, highlight=False)
