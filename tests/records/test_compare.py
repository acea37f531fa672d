from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.records.compare import compare_runs, format_comparison, print_comparison
from tests.records.conftest import Recorded


@pytest.fixture
def rows(trained: Recorded, dropping: Recorded) -> list[dict[str, object]]:
    return compare_runs([trained.path, dropping.path])


def test_rows_are_the_summaries_figures(rows: list[dict[str, object]], trained: Recorded) -> None:
    summary = json.loads((trained.path / "summary.json").read_text())
    assert rows[0]["codec"] == "int8" and rows[1]["codec"] == "none (fp32)"
    assert rows[0]["split"] == "1 + 1" and rows[0]["protocol"] == "elsa" and rows[0]["rounds"] == 2
    for name in ("accuracy", "loss", "simulated_seconds", "bytes_total", "compression_ratio_fp32", "wall_seconds"):
        assert rows[0][name] == summary[name]
    assert rows[1]["accuracy"] is None


def test_json_and_csv_parse_back(rows: list[dict[str, object]]) -> None:
    assert json.loads(format_comparison(rows, "json")) == rows
    parsed = list(csv.DictReader(io.StringIO(format_comparison(rows, "csv"))))
    assert [list(row) for row in parsed] == [list(row) for row in rows]
    for row, line in zip(rows, parsed, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == line


def test_markdown_and_table_have_a_line_a_run(rows: list[dict[str, object]]) -> None:
    header, rule, *lines = format_comparison(rows, "md").splitlines()
    assert len(lines) == 2 and set(rule) <= set("| -:")
    assert {line.count("|") for line in (header, rule, *lines)} == {len(rows[0]) + 1}
    table = format_comparison(rows, "table")
    assert "3.9" not in table.splitlines()[0] and "none (fp32)" in table and "accuracy" in table


def test_printing_goes_to_the_console(rows: list[dict[str, object]]) -> None:
    stream = io.StringIO()
    print_comparison(rows, "json", Console(file=stream, width=40))
    assert json.loads(stream.getvalue()) == rows


def test_no_runs_and_unknown_formats() -> None:
    for kind in ("table", "json", "csv", "md"):
        assert isinstance(format_comparison([], kind), str)
    with pytest.raises(InputError, match="--format"):
        format_comparison([], "xml")
