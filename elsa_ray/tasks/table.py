"""Rows of a data source before they are checked, and the checks that name the source, the row and the column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from elsa_ray.config.errors import InputError, nearest_name


@dataclass(frozen=True)
class Table:
    """The wanted columns of one data source, as they were read."""

    name: str
    """What messages call it: the file as the config names it, or the hub's dataset and split."""
    columns: dict[str, list[Any]]
    """Values of each column; all of the same length."""
    rows: list[int] = field(default_factory=list)
    """The source's own number of each row, from 1: the line in JSON lines, the record under the header elsewhere."""

    def where(self, index: int) -> str:
        """Name row ``index`` (counted from 0) for a message."""
        return f"{self.name} row {self.rows[index]}"


def missing_column(where: str, column: str, existing: Sequence[str]) -> InputError:
    """Build the error for a column that the data does not have."""
    allowed = "one of its columns: " + ", ".join(map(str, existing)) if existing else "a source with that column"
    return InputError(where, f"no column {column}", allowed, nearest=nearest_name(column, map(str, existing)))


def checked_texts(table: Table, column: str, *, allow_blank: bool) -> list[str]:
    """Return a column's texts.

    Raises:
        InputError: a value is no text, is blank (unless ``allow_blank``), or is not valid Unicode.
    """
    allowed = "a text" if allow_blank else "a non-empty text"
    for index, value in enumerate(table.columns[column]):
        if not isinstance(value, str) or not (allow_blank or value.strip()) or not _is_unicode(value):
            raise InputError(f"{table.where(index)}: column {column}", _shown(value), allowed)
    return table.columns[column]


def checked_labels(table: Table, column: str) -> list[str]:
    """Return a column's labels by name: a text as it is, an integer or bool as Python writes it.

    Raises:
        InputError: a value is neither a non-empty text nor an integer nor a bool.
    """
    names = []
    for index, value in enumerate(table.columns[column]):
        if not isinstance(value, str | int) or value == "" or (isinstance(value, str) and not _is_unicode(value)):
            allowed = "a non-empty text, an integer, or true/false"
            raise InputError(f"{table.where(index)}: column {column}", _shown(value), allowed)
        names.append(str(value))
    return names


def checked_keys(table: Table, column: str) -> list[str]:
    """Return a column that examples are grouped by, each value as a text.

    Raises:
        InputError: a value is null, not a number, or a list or object.
    """
    keys = []
    for index, value in enumerate(table.columns[column]):
        if value is None or value != value or isinstance(value, list | dict):
            raise InputError(f"{table.where(index)}: column {column}", _shown(value), "a text, a number, or true/false")
        keys.append(str(value))
    return keys


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair; such a text can be neither hashed nor tokenised.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return ascii(value) if value.strip() else ("an empty text" if value == "" else "a blank text")
    return repr(value)
