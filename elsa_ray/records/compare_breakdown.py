"""Where time, bytes, joules and memory went in several runs, side by side; of two runs with the differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elsa_ray.records.answers import CAUSES, seconds_of_rounds
from elsa_ray.records.human import NOTHING, human_bytes, human_joules, human_seconds
from elsa_ray.records.reading import read_run
from elsa_ray.world.roles import Role

_EQUAL = 1e-9
"""Relative: sums of the same times in another order are equal."""


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of several runs.

    Attributes:
        group, name: such as ``the rounds`` and ``sharing``.
        values: of each run, in plain units; None where a run has no such figure.
        text: writes a value.
    """

    group: str
    name: str
    values: tuple[float | None, ...]
    text: Callable[[float | None], str]

    def difference(self) -> str:
        """Return how the second run differs from the first, signed and in percent."""
        before, after = (value or 0.0 for value in self.values)
        if math.isclose(before, after, rel_tol=_EQUAL):
            return "="
        sign = "+" if after > before else "−"
        percent = f" ({sign}{abs(after - before) / before:.0%})" if before else ""
        return f"{sign}{self.text(abs(after - before))}{percent}"


def compare_breakdowns(paths: Sequence[str | Path]) -> list[ComparedFigure]:
    """Return the figures that any of the runs has, by group.

    Raises:
        InputError: a folder is no run.
    """
    all_figures = [read_run(path).figures for path in paths]
    groups: dict[str, tuple[list[dict[str, float]], Callable[[float | None], str], Sequence[str]]] = {
        "the rounds": ([seconds_of_rounds(figures) for figures in all_figures], human_seconds, CAUSES),
        "a client": (
            [figures["breakdown"]["where_time_goes"]["mean_per_client"] for figures in all_figures],
            human_seconds,
            CAUSES,
        ),
        "bytes": ([figures["bytes_by_role"] for figures in all_figures], human_bytes, [role.label for role in Role]),
        "energy": ([_joules(figures) for figures in all_figures], human_joules, tuple(_JOULES)),
        "memory": ([figures["breakdown"]["memory_bytes"] for figures in all_figures], human_bytes, ("client", "edge")),
    }
    return [
        ComparedFigure(group, name.replace("_", " "), tuple(own.get(name) for own in found), text)
        for group, (found, text, names) in groups.items()
        for name in names
        if any(own.get(name) for own in found)
    ]


_JOULES = {
    "client_computing": ("client", "compute_joules"),
    "client_radio": ("client", "radio_joules"),
    "client_idle": ("client", "idle_joules"),
    "edge_computing": ("edge", "compute_joules"),
    "edge_idle": ("edge", "idle_joules"),
}


def _joules(figures: Mapping[str, Any]) -> dict[str, float]:
    tiers = figures["breakdown"].get("tiers", {})
    return {name: tiers.get(tier, {}).get(key, 0.0) for name, (tier, key) in _JOULES.items()}


def print_breakdowns(paths: Sequence[str | Path], kind: str, console: Console) -> None:
    """Print the figures below a comparison of kind ``table`` or ``md``; other kinds have plain values only."""
    if kind not in ("table", "md"):
        return
    compared = compare_breakdowns(paths)
    if not compared:
        return
    names = [Path(path).resolve().name for path in paths]
    header = ["where it goes", "", *names, *(["difference"] if len(names) == 2 else [])]
    lines, group = [], None
    for figure in compared:
        values = [figure.text(value) if value else NOTHING for value in figure.values]
        difference = [figure.difference()] if len(names) == 2 else []
        lines.append([figure.group if figure.group != group else "", figure.name, *values, *difference])
        group = figure.group
    if kind == "md":
        rule = ["---", "---", *["---:"] * (len(header) - 2)]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in [header, rule, *lines]]
        text = "".join(f"| {' | '.join(line)} |\n" for line in cells)
        console.print("\n" + text, end="", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table()
    for number, title in enumerate(header):
        table.add_column(escape(title), justify="left" if number < 2 else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table, highlight=False)
