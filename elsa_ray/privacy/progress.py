"""What a person sees while attacks are carried out: which codec, which attack, how long it took."""

from __future__ import annotations

from time import perf_counter
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from elsa_ray.records.human import human_seconds

_BAR_WIDTH = 20


class AttackProgress:
    """Shows a line a codec that is done, and on a terminal a bar below. Use it as a context manager.

    Args:
        console: where to.
        num_codecs: to be attacked.
    """

    def __init__(self, console: Console, num_codecs: int) -> None:
        self._console, self._num_codecs = console, num_codecs
        self._num_done = 0
        self._begin = perf_counter()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # A long name must not push the bar away.
            room = max(self._console.width - _BAR_WIDTH - 28, 10)
            columns = (
                TextColumn("codecs"),
                BarColumn(bar_width=_BAR_WIDTH),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=room)),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=self._num_codecs)
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def status(self, codec: str, text: str) -> None:
        """Tell what is going on."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=escape(f"{codec}: {text}"))

    def codec(self, codec: str, num_attacks: int) -> None:
        """Tell that all attacks on a codec are done."""
        self._num_done += 1
        seconds = human_seconds(perf_counter() - self._begin)
        line = f"codec {self._num_done}/{self._num_codecs}: {codec}: {num_attacks} attacks; {seconds} so far"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._num_done)
