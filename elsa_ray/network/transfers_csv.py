"""Transfers and their finish times as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elsa_ray.config.errors import InputError
from elsa_ray.network.finish_times import FINISH_COLUMNS, TRANSFER_COLUMNS, check_columns
from elsa_ray.network.text_files import read_text


def read_transfers_csv(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of ``id,src,dst,num_bytes,start_seconds``, as the texts that they are; the columns in any order.

    ``finish_times`` checks what they say, given the path as ``where``.

    Raises:
        InputError: the file is missing or unreadable, columns are missing, unknown or twice, or a row, counted from 1
            below the header, has more or fewer fields.
    """
    where = str(path)
    text = read_text(Path(path), where)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [fields for fields in reader if fields]
    except csv.Error as error:
        raise InputError(f"{where} line {reader.line_num}", f"no readable CSV ({error})", "CSV") from error
    header = lines[0] if lines else []
    check_columns(header, TRANSFER_COLUMNS, where)
    if len(set(header)) < len(header):
        raise InputError(f"{where}: columns", "a column twice", ",".join(TRANSFER_COLUMNS))
    for number, fields in enumerate(lines[1:], start=1):
        if len(fields) != len(header):
            raise InputError(f"{where} row {number}", f"{len(fields)} fields", f"{len(header)}: {','.join(header)}")
    return [dict(zip(header, fields, strict=True)) for fields in lines[1:]]


def write_finish_times_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``id,start_seconds,finish_seconds,seconds_alone``; numbers as their shortest text that loses nothing.

    Raises:
        InputError: the file cannot be written.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(FINISH_COLUMNS)
    for row in rows:
        writer.writerow([row["id"], *(repr(float(row[column])) for column in FINISH_COLUMNS[1:])])
    try:
        Path(path).write_text(buffer.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(str(path), f"a file that cannot be written ({error.strerror})", "a writable path") from error
