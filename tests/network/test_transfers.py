"""Transfers as CSV and as rows: what goes through unchanged, and what is refused with file and row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.network import finish_times
from elsa_ray.network.transfers_csv import read_transfers_csv, write_finish_times_csv

HEADER = "id,src,dst,num_bytes,start_seconds\n"


def graph() -> nx.Graph:
    result = nx.Graph()
    result.add_edge("client1", "edge1", bandwidth_bytes_per_second=1024, latency_seconds=0.25)
    result.add_node("island")
    return result


def test_there_and_back_through_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    # A byte-order mark, Windows line ends, a blank line, another order of columns, and ids that are not tidy.
    lines = [
        "\ufeffdst,src,id,start_seconds,num_bytes",
        "edge1,client1,007,0,1024",
        "",
        'edge1,client1," a, b ",0.1,1 KiB',
    ]
    path.write_bytes("\r\n".join(lines).encode())
    rows = read_transfers_csv(path)
    assert [row["id"] for row in rows] == ["007", " a, b "]
    table = finish_times(graph(), rows, where=str(path))
    write_finish_times_csv(tmp_path / "out.csv", table)
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id,start_seconds,finish_seconds,seconds_alone"
    assert lines[1].startswith("007,0.0,")
    assert lines[2].startswith('" a, b ",0.1,')
    for line, row in zip(lines[1:], table, strict=True):
        assert [float(text) for text in line.rsplit(",", 3)[1:]] == list(row.values())[1:]


def test_floats_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [
        {"id": number, "start_seconds": rng.random(), "finish_seconds": rng.random() * 1e9, "seconds_alone": 1 / 3}
        for number in range(100)
    ]
    write_finish_times_csv(tmp_path / "out.csv", rows)
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [[float(text) for text in line.split(",")] for line in lines] == [list(row.values()) for row in rows]


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "src": "client1", "dst": "edge1", "num_bytes": 10, "start_seconds": 0} | changes


WRONG_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "text for a number": ({"num_bytes": "x"}, "t.csv row 2: num_bytes: found x; allowed: a finite number >= 0"),
    "negative bytes": ({"num_bytes": -1}, "t.csv row 2: num_bytes: found -1; allowed: a finite number >= 0"),
    "no bytes given": ({"num_bytes": ""}, "t.csv row 2: num_bytes: found nothing; allowed: a finite number >= 0"),
    "NaN": ({"start_seconds": float("nan")}, "t.csv row 2: start_seconds: found nan; allowed: a finite number >= 0"),
    "NaN as text": ({"start_seconds": "nan"}, "t.csv row 2: start_seconds: found nan; allowed: a finite number >= 0"),
    "infinite": ({"start_seconds": "1e999"}, "t.csv row 2: start_seconds: found 1e999; allowed: a finite number >= 0"),
    "before the start": ({"start_seconds": "-0.5"}, "t.csv row 2: start_seconds: found -0.5; allowed: a finite num"),
    "empty id": ({"id": " "}, "t.csv row 2: id: found nothing; allowed: an id that no other row has"),
    "duplicate id": ({"id": "first"}, "t.csv row 2: id: found first; allowed: an id that no other row has (row 1 has"),
    "unknown source": ({"src": "client7"}, "t.csv row 2: src: found client7; allowed: the id of a node of graph; did"),
    "nearest source": ({"src": "client7"}, "did you mean client1?"),
    "empty destination": ({"dst": ""}, "t.csv row 2: dst: found nothing; allowed: the id of a node of graph"),
    "no way": ({"dst": "island"}, "t.csv row 2: dst: found island; allowed: a node that client1 reaches"),
    "extra field": ({"colour": 1}, "t.csv row 2: columns: found colour; allowed: dst, id, num_bytes, src, start_seco"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows(case: str) -> None:
    changes, expected = WRONG_ROWS[case]
    with pytest.raises(InputError) as caught:
        finish_times(graph(), [row(id="first"), row(**changes)], where="t.csv")
    assert expected in str(caught.value)


WRONG_FILES = {
    "missing column": ("id,src,dst,num_bytes\n", "columns: found no start_seconds; allowed: id,src,dst,num_bytes,st"),
    "extra column": (HEADER.strip() + ",role\n", "columns: found role; allowed: dst, id, num_bytes, src, start_seco"),
    "column twice": (HEADER.strip() + ",id\n", "columns: found a column twice"),
    "empty": ("", "columns: found no id"),
    "short row": (HEADER + "x,a,b,1,0\ny,a,b\n", "row 2: found 3 fields; allowed: 5: id,src,dst"),
    "long row": (HEADER + "x,a,b,1,0,9\n", "row 1: found 6 fields; allowed: 5: id,src,dst"),
    "open quote": (HEADER + '"x,a,b,1,0\n', "found no readable CSV"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files(case: str, tmp_path: Path) -> None:
    text, expected = WRONG_FILES[case]
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_transfers_csv(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)


def test_missing_files_and_unwritable_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_transfers_csv(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be written"):
        write_finish_times_csv(tmp_path, [])


def test_columns_of_different_lengths() -> None:
    columns: dict[str, list[Any]] = {"id": ["x"], "src": ["client1"], "dst": [], "num_bytes": [1], "start_seconds": [0]}
    with pytest.raises(InputError, match="different lengths"):
        finish_times(graph(), columns)
