from __future__ import annotations

import json

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.privacy.success import Success
from elsa_ray.privacy.table import FORMATS, AttackRow, attack_tables, attacks_overview, format_attacks

ROWS = [
    AttackRow("none (fp32)", "–", "edge", "nearest neighbour", Success(0.849, 0.069, 1945)),
    AttackRow("ssop", "client, fresh", "edge", "key recovery, K=64", Success(0.35, 0.069, 1945), 1.0123, "64 | known"),
    AttackRow("ssop[int8]", "edge", "eavesdropper", "labels", None),
]


def test_json_has_plain_values() -> None:
    found = json.loads(format_attacks(ROWS, "json"))
    assert found[0]["success_rate"] == 0.849 and found[0]["guess_rate"] == 0.069 and found[0]["count"] == 1945
    assert found[1]["key_error"] == 1.0123 and found[0]["key_error"] is None
    assert found[2]["success_rate"] is None and found[2]["count"] is None
    assert [row["codec"] for row in found] == [row.codec for row in ROWS]


def test_markdown_has_a_line_a_row_and_as_many_cells_in_each() -> None:
    header, rule, *lines = format_attacks(ROWS, "md").splitlines()
    assert len(lines) == len(ROWS) and set(rule) <= set("| -:")
    assert {line.count("|") for line in (header, rule, *lines)} == {10}
    assert "84.9 %" in lines[0] and "6.9 %" in lines[0] and "1,945" in lines[0] and "1.01" in lines[1]


def test_the_table_shows_names_that_look_like_markup() -> None:
    text = format_attacks(ROWS, "table")
    assert "ssop[int8]" in text and "guess" in text and "35.0 %" in text


def test_no_rows_and_unknown_formats() -> None:
    assert all(isinstance(format_attacks([], kind), str) for kind in FORMATS)
    with pytest.raises(InputError, match="--format: found xml; allowed: json, md, table"):
        format_attacks(ROWS, "xml")


def test_the_overview_has_a_line_a_reader_and_a_column_an_attack() -> None:
    rows = [
        AttackRow("none", "–", "edge", "tokens", Success(0.8, 0.05, 10)),
        AttackRow("none", "–", "edge", "labels", Success(0.9, 0.25, 4)),
        AttackRow("ssop", "fresh", "edge", "tokens", Success(0.125, 0.05, 10)),
        AttackRow("ssop", "fresh", "edge", "labels", Success(0.5, 0.3, 4)),
        AttackRow("ssop", "fresh", "edge", "key", None),
        AttackRow("ssop", "fresh", "eavesdropper", "tokens", Success(0.0, 0.05, 10)),
    ]
    header, _, *lines = attacks_overview(rows).splitlines()
    assert header == "| codec | keys | attacker | tokens (guess 5.0 %) | labels | key |"
    assert lines == [
        "| none | – | edge | 80.0 % | 90.0 % | – |",
        "| ssop | fresh | edge | 12.5 % | 50.0 % | – |",
        "| ssop | fresh | eavesdropper | 0.0 % | – | – |",
    ]


def test_a_terminal_gets_a_table_for_each_codec_and_reader() -> None:
    tables = attack_tables([*ROWS, ROWS[0]])
    assert [table.title for table in tables] == [
        "none (fp32), read by edge",
        "ssop (client, fresh), read by edge",
        r"ssop\[int8] (edge), read by eavesdropper",
    ]
    assert [table.row_count for table in tables] == [2, 1, 1]
    assert attack_tables([]) == []
