from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.files import read_file

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\x00"), min_size=1, max_size=20)


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"t": t, "l": label}) + "\n" for t, label in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("t", "l"), *rows])
    else:
        table = pyarrow.table({"t": [row[0] for row in rows], "l": [row[1] for row in rows]})
        pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(words, words), min_size=1, max_size=8))
def test_what_was_written_is_read(tmp_path: Path, extension: str, rows: list[tuple[str, str]]) -> None:
    name = f"data.{extension}"
    write(tmp_path / name, rows)
    table = read_file(name, base_folder=tmp_path, columns=["l", "t"], field="task.dataset.train")
    assert table.name == name
    assert list(zip(table.columns["t"], table.columns["l"], strict=True)) == rows
    assert len(table.rows) == len(rows)
    assert table.rows[0] == 1


def test_csv_keeps_line_breaks_and_quotes_and_skips_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbftext,label\r\n"two\nlines, ""quoted""",x\r\n\r\nplain,y\r\n')
    table = read_file("a.csv", base_folder=tmp_path, columns=["text", "label"], field="f")
    assert table.columns == {"text": ['two\nlines, "quoted"', "plain"], "label": ["x", "y"]}


def test_json_lines_count_blank_lines_as_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b", "more": 1}\n')
    table = read_file("a.jsonl", base_folder=tmp_path, columns=["text"], field="f")
    assert (table.columns["text"], table.rows) == (["a", "b"], [1, 3])


def test_an_absolute_path_ignores_the_base_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    table = read_file(str(tmp_path / "a.jsonl"), base_folder=Path("/nowhere"), columns=["text"], field="f")
    assert table.columns["text"] == ["a"]


BAD: list[tuple[str, bytes, list[str]]] = [
    ("a.txt", b"x", ["task.dataset.train: found a.txt", ".jsonl, .csv, .parquet"]),
    ("a.jsonl", b"", ["a.jsonl: found no rows"]),
    ("a.jsonl", b"\n\n", ["a.jsonl: found no rows"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', ["a.jsonl row 2: found malformed JSON", "one JSON object a line"]),
    ("a.jsonl", b"[1, 2]\n", ["a.jsonl row 1: found [1, 2]"]),
    ("a.jsonl", b"[" * 100_000 + b"\n", ["a.jsonl row 1: found malformed JSON", "too deep"]),
    ("a.jsonl", b'{"texts": "a", "label": 1}\n', ["found no column text", "texts, label", "did you mean texts?"]),
    ("a.jsonl", b"{}\n", ["row 1: found no column text"]),
    ("a.jsonl", b'{"text": "\xff"}\n', ["a.jsonl: found a byte that is not UTF-8"]),
    ("a.csv", b"", ["a.csv: found no rows"]),
    ("a.csv", b"text,label\n", ["a.csv: found no rows"]),
    ("a.csv", b"Text,label\nx,y\n", ["a.csv: found no column text", "did you mean Text?"]),
    ("a.csv", b"text,label\nx,y\nx,y,z\n", ["a.csv row 2: found 3 fields", "allowed: 2"]),
    ("a.csv", b"text,label,text\nx,y,z\n", ["a.csv: found the column text 2 times", "each column that is read once"]),
    ("a.csv", b'text,label\nx,"y"z\n', ["a.csv row 1: found malformed CSV"]),
    ("a.csv", b"text,label\n" + b"x" * 140_000 + b",y\n", ["a.csv row 1: found malformed CSV", "131,072"]),
    ("a.parquet", b"", ["a.parquet: found malformed Parquet"]),
    ("a.parquet", b"PAR1 no table PAR1", ["a.parquet: found malformed Parquet"]),
]


@pytest.mark.parametrize(("name", "content", "fragments"), BAD)
def test_bad_files_are_told_in_one_line(tmp_path: Path, name: str, content: bytes, fragments: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_file(name, base_folder=tmp_path, columns=["text"], field="task.dataset.train")
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_a_missing_parquet_column_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [("x", "y")])
    with pytest.raises(InputError, match=r"a.parquet: found no column tt; allowed: one of its columns: t, l.*mean t\?"):
        read_file("a.parquet", base_folder=tmp_path, columns=["tt"], field="f")


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["t", "t"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: found the column t 2 times"):
        read_file("a.parquet", base_folder=tmp_path, columns=["t"], field="f")


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"t": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no rows"):
        read_file("a.parquet", base_folder=tmp_path, columns=["t"], field="f")


@pytest.mark.parametrize("name", ["trian.jsonl", "nowhere/train.jsonl", f"{'long' * 99}.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.jsonl", [("x", "y")])
    with pytest.raises(InputError) as caught:
        read_file(name, base_folder=tmp_path, columns=["t"], field="task.dataset.train")
    assert f"task.dataset.train: found {name[:119]}" in str(caught.value)
    assert "; allowed: an existing file" in str(caught.value)
    assert ("did you mean train.jsonl?" in str(caught.value)) == (name == "trian.jsonl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match="an existing file"):
        read_file("a.csv", base_folder=tmp_path, columns=["t"], field="f")


def test_parquet_types_arrive_as_python_values(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"t": ["a", None], "l": [True, False], "n": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert read_file("a.parquet", base_folder=tmp_path, columns=list(columns), field="f").columns == columns
