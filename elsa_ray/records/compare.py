"""Several runs side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elsa_ray.config.errors import unknown_name
from elsa_ray.records.human import (
    codec_name,
    human_bytes,
    human_joules,
    human_number,
    human_ratio,
    human_seconds,
    human_share,
    split_name,
)
from elsa_ray.records.json_text import json_text
from elsa_ray.records.reading import read_run

FORMATS = ("table", "json", "csv", "md")
_HUMAN = {
    "accuracy": ("accuracy", human_share),
    "loss": ("loss", human_number),
    "simulated_seconds": ("simulated", human_seconds),
    "bytes_total": ("bytes", human_bytes),
    "compression_ratio_fp32": ("vs fp32", human_ratio),
    "compression_ratio_bf16": ("vs bf16", human_ratio),
    "simulated_energy_joules": ("energy", human_joules),
    "wall_seconds": ("wall", human_seconds),
}


def compare_runs(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return a row of plain values for each run, in the given order; bytes, seconds and joules as in the summary.

    Raises:
        InputError: a folder is no run.
    """
    return [_row(Path(path)) for path in paths]


def _row(path: Path) -> dict[str, Any]:
    run = read_run(path)
    figures = run.figures
    return {
        "run": path.resolve().name,
        "name": run.config.name,
        "protocol": run.config.protocol.name,
        "codec": codec_name(run.config),
        "split": split_name(run.config),
        "seed": run.config.seed,
        "rounds": figures["rounds_completed"],
        **{name: figures[name] for name in _HUMAN},
    }


def format_comparison(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Return the rows as text: ``json`` and ``csv`` with plain values, ``table`` and ``md`` with human units.

    Raises:
        InputError: there is no such format.
    """
    if kind == "table":
        console = Console(file=io.StringIO(), width=240, no_color=True)
        with console.capture() as capture:
            console.print(_rich_table(rows))
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
    if kind == "json":
        return json_text(list(rows), indent=2) + "\n"
    if kind == "csv":
        return _csv(rows)
    if kind == "md":
        return _markdown(rows)
    raise unknown_name("--format", kind, FORMATS)


def print_comparison(rows: Sequence[Mapping[str, Any]], kind: str, console: Console) -> None:
    """Print the rows in one of ``FORMATS``; see ``format_comparison``."""
    if kind == "table":
        console.print(_rich_table(rows))
    else:
        console.print(format_comparison(rows, kind), end="", markup=False, highlight=False, soft_wrap=True)


def _rich_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A column a run: a terminal has room for many lines, not for many columns."""
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    for _ in rows:
        table.add_column(justify="right", overflow="fold")
    for title, *figures in zip(*_human_lines(rows), strict=True):
        table.add_row(title, *map(escape, figures))
    return table


_RIGHT = {"seed", "rounds", *(title for title, _ in _HUMAN.values())}


def _human_lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    names = list(rows[0]) if rows else []
    titles = [_HUMAN[name][0] if name in _HUMAN else name for name in names]
    lines = [[_HUMAN[name][1](row[name]) if name in _HUMAN else str(row[name]) for name in names] for row in rows]
    return [titles, *lines]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    header, *lines = [[cell.replace("|", "\\|") for cell in line] for line in _human_lines(rows)]
    rule = ["---:" if title in _RIGHT else "---" for title in header]
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *lines])
