"""Read named columns of JSON lines, CSV and Parquet files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.tasks.table import Table, missing_column


def read_file(name: str, *, base_folder: Path, columns: Sequence[str], field: str) -> Table:
    """Read ``columns`` of the file ``name``, relative to ``base_folder`` unless it is absolute.

    Args:
        name: the file as the config names it; its extension decides the format.
        base_folder: the folder of the config file.
        columns: names of the columns to read.
        field: the config's field that names the file, for messages.

    Raises:
        InputError: no such file, unknown extension, no rows, a missing column, or a row that cannot be read.
    """
    path = base_folder / name
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(field, name, f"a file that ends in {', '.join(_READERS)}")
    if not os.path.isfile(path):  # also where the name is one that no file can have
        nearby = (
            [entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in _READERS]
            if os.path.isdir(path.parent)
            else []
        )
        raise InputError(field, name, "an existing file", nearest=nearest_name(path.name, nearby))
    try:
        table = reader(path, name, columns)
    except UnicodeDecodeError as error:
        raise InputError(name, f"a byte that is not UTF-8 ({error.reason})", "a file in UTF-8") from error
    except OSError as error:
        raise InputError(field, f"{name} ({error})", "a file that can be read") from error
    if not table.rows:
        raise InputError(name, "no rows", "a file with at least one row")
    return table


def _read_json_lines(path: Path, name: str, columns: Sequence[str]) -> Table:
    table = Table(name, {column: [] for column in columns})
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _parse_object(line, f"{name} row {number}")
            for column in columns:
                if column not in row:
                    raise missing_column(f"{name} row {number}", column, list(row))
                table.columns[column].append(row[column])
            table.rows.append(number)
    return table


def _parse_object(line: str, where: str) -> dict[str, Any]:
    allowed = 'one JSON object a line, such as {"text": "...", "label": "..."}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
        raise InputError(where, f"malformed JSON ({reason}): {line.strip()[:60]}", allowed) from error
    if not isinstance(row, dict):
        raise InputError(where, line.strip()[:60], allowed)
    return row


def _read_csv(path: Path, name: str, columns: Sequence[str]) -> Table:
    table = Table(name, {column: [] for column in columns})
    with path.open(encoding="utf-8-sig", newline="") as stream:
        records = csv.reader(stream, strict=True)
        try:
            header = next(records, [])
            if header:
                _check_names(name, columns, header)
            position = {column: header.index(column) for column in columns if header}
            for number, record in enumerate(filter(None, records), start=1):
                if len(record) != len(header):
                    allowed = f"{len(header)}, as in the header"
                    raise InputError(f"{name} row {number}", f"{len(record)} fields", allowed)
                for column in columns:
                    table.columns[column].append(record[position[column]])
                table.rows.append(number)
        except csv.Error as error:
            allowed = "well-formed CSV, fields of at most 131,072 characters"
            raise InputError(f"{name} row {len(table.rows) + 1}", f"malformed CSV ({error})", allowed) from error
    return table


def _check_names(name: str, columns: Sequence[str], existing: list[str]) -> None:
    """Refuse a column that the file lacks, or has twice."""
    for column in columns:
        if column not in existing:
            raise missing_column(name, column, existing)
        if existing.count(column) > 1:
            raise InputError(
                name, f"the column {column} {existing.count(column)} times", "each column that is read once"
            )


def _read_parquet(path: Path, name: str, columns: Sequence[str]) -> Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_names(name, columns, file.schema_arrow.names)
            content = file.read(columns=list(dict.fromkeys(columns)))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(name, f"malformed Parquet ({error})", "a Parquet file") from error
    values = {column: content.column(column).to_pylist() for column in columns}
    return Table(name, values, list(range(1, content.num_rows + 1)))


_READERS: dict[str, Callable[[Path, str, Sequence[str]], Table]] = {
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
