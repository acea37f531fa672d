"""The attacks' outcomes: a row for each codec, key mode, attacker and attack; and an overview, a column an attack."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elsa_ray.config.errors import unknown_name
from elsa_ray.privacy.success import Success
from elsa_ray.records.human import NOTHING, human_number, human_share
from elsa_ray.records.json_text import json_text

FORMATS = ("table", "json", "md")


@dataclass(frozen=True)
class AttackRow:
    """The outcome of one attack.

    Attributes:
        codec: what the payloads were encoded by, such as ``ssop+int8``.
        keys: who holds the key and how long it lives, such as ``invert=client, fresh``; a dash without a key.
        attacker: such as ``edge`` or ``eavesdropper without keys``.
        attack: what was done, with its parameters.
        success: how often it was right; None where the attack does not apply.
        key_error: ||Qhat - Q||_F / ||Q - I||_F of a key recovery; else None.
        note: what the reader must know, such as that it is an upper bound.
    """

    codec: str
    keys: str
    attacker: str
    attack: str
    success: Success | None
    key_error: float | None = None
    note: str = ""


def format_attacks(rows: Sequence[AttackRow], kind: str) -> str:
    """Return the rows as text: ``json`` with plain values, ``table`` and ``md`` with shares in percent.

    Raises:
        InputError: there is no such format.
    """
    if kind == "table":
        console = Console(file=io.StringIO(), width=200, no_color=True)
        with console.capture() as capture:
            console.print(*attack_tables(rows), sep="\n")
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
    if kind == "json":
        return json_text([plain_row(row) for row in rows], indent=2) + "\n"
    if kind == "md":
        return _markdown(rows)
    raise unknown_name("--format", kind, FORMATS)


def attacks_overview(rows: Sequence[AttackRow]) -> str:
    """Return a Markdown table with a line for each codec and attacker, a column an attack, and success in percent.

    The best constant guess is in the head of each column where it is the same in all lines.
    """
    lines: dict[tuple[str, str, str], dict[str, AttackRow]] = {}
    for row in rows:
        lines.setdefault((row.codec, row.keys, row.attacker), {})[row.attack] = row
    # The order of the line that has most attacks, and behind it what that line lacks.
    attacks = list(dict.fromkeys(attack for cells in sorted(lines.values(), key=len, reverse=True) for attack in cells))
    heads = [f"{attack}{_common_guess(rows, attack)}" for attack in attacks]
    body = [(*head, *(_rate_of(cells.get(attack)) for attack in attacks)) for head, cells in lines.items()]
    return _markdown_table(["codec", "keys", "attacker", *heads], body, [False] * 3 + [True] * len(heads))


def _common_guess(rows: Sequence[AttackRow], attack: str) -> str:
    guesses = {human_share(row.success.guess_rate) for row in rows if row.attack == attack and row.success}
    return f" (guess {guesses.pop()})" if len(guesses) == 1 else ""


def _rate_of(row: AttackRow | None) -> str:
    return human_share(row.success.rate if row is not None and row.success is not None else None)


def attack_tables(rows: Sequence[AttackRow]) -> list[Table]:
    """Return a table for a terminal for each codec and attacker; notes are left out."""
    sections: dict[str, list[AttackRow]] = {}
    for row in rows:
        keys = "" if row.keys == NOTHING else f" ({row.keys})"
        sections.setdefault(f"{row.codec}{keys}, read by {row.attacker}", []).append(row)
    longest = max((len(row.attack) for row in rows), default=0)
    return [_section(title, own, longest) for title, own in sections.items()]


def _section(title: str, rows: Sequence[AttackRow], attack_width: int) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("attack", min_width=attack_width, overflow="fold")
    for title in _RIGHT:
        # The whole table shall fit into 80 columns.
        table.add_column(title.removeprefix("best constant "), justify="right", min_width=7)
    for row in rows:
        cells = dict(zip(_TITLES, _cells(row), strict=True))
        table.add_row(*(escape(cells[title]) for title in ("attack", *_RIGHT)))
    return table


_TITLES = ("codec", "keys", "attacker", "attack", "success", "best constant guess", "targets", "key error", "note")
_RIGHT = ("success", "best constant guess", "targets", "key error")


def plain_row(row: AttackRow) -> dict[str, Any]:
    """Return a row as plain values."""
    return {
        "codec": row.codec,
        "keys": row.keys,
        "attacker": row.attacker,
        "attack": row.attack,
        "success_rate": row.success.rate if row.success else None,
        "guess_rate": row.success.guess_rate if row.success else None,
        "count": row.success.count if row.success else None,
        "key_error": row.key_error,
        "note": row.note,
    }


def _cells(row: AttackRow) -> tuple[str, ...]:
    outcome = row.success
    return (
        row.codec,
        row.keys,
        row.attacker,
        row.attack,
        human_share(outcome.rate if outcome else None),
        human_share(outcome.guess_rate if outcome else None),
        human_number(outcome.count if outcome else None),
        human_number(row.key_error, digits=3),
        row.note,
    )


def _markdown(rows: Sequence[AttackRow]) -> str:
    is_right = [title in _RIGHT for title in _TITLES]
    return _markdown_table(_TITLES, [_cells(row) for row in rows], is_right)


def _markdown_table(titles: Sequence[str], body: Sequence[Sequence[str]], is_right: Sequence[bool]) -> str:
    rule = ["---:" if right else "---" for right in is_right]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in (titles, rule, *body))
