"""The attacks' outcomes side by side: a row for each codec, key mode and attack."""

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
from elsa_ray.records.human import human_number, human_share
from elsa_ray.records.json_text import json_text

FORMATS = ("table", "json", "md")


@dataclass(frozen=True)
class AttackRow:
    """The outcome of one attack.

    Attributes:
        codec: what the payloads were encoded by, such as ``ssop+int8``.
        keys: who holds the key and how long it lives, such as ``invert=client, fresh``; a dash without a key.
        attacker: ``edge`` or ``eavesdropper``.
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
            console.print(attack_table(rows))
        return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
    if kind == "json":
        return json_text([_plain(row) for row in rows], indent=2) + "\n"
    if kind == "md":
        return _markdown(rows)
    raise unknown_name("--format", kind, FORMATS)


def attack_table(rows: Sequence[AttackRow]) -> Table:
    """Return the rows as a table for a terminal."""
    table = Table()
    for title in _TITLES:
        table.add_column(title, justify="right" if title in _RIGHT else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    return table


_TITLES = ("codec", "keys", "attacker", "attack", "success", "best constant guess", "targets", "key error", "note")
_RIGHT = {"success", "best constant guess", "targets", "key error"}


def _plain(row: AttackRow) -> dict[str, Any]:
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
    rule = tuple("---:" if title in _RIGHT else "---" for title in _TITLES)
    lines = [_TITLES, rule, *(_cells(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
