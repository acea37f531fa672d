"""Bandwidths over time as CSV files: what a link's ``bandwidth_schedule`` names."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from elsa_ray.config.errors import InputError
from elsa_ray.config.units import BYTES_PER_SECOND, SECONDS, parse_quantity
from elsa_ray.network.schedule import Steps
from elsa_ray.network.text_files import read_text

_SECONDS, _FORWARD, _REVERSE = "seconds", "bandwidth_bytes_per_second", "reverse_bandwidth_bytes_per_second"
COLUMNS = (_SECONDS, _FORWARD, _REVERSE)
"""The columns of a schedule; the last one may be left out."""


@dataclass(frozen=True)
class ScheduleTable:
    """A schedule as read: moments, ascending from >= 0, with the bandwidth from each on, in bytes per second."""

    where: str
    seconds: tuple[float, ...]
    forward: tuple[float, ...]
    reverse: tuple[float, ...] | None

    def steps(self, values: tuple[float, ...], before: float, repeat_seconds: float | None) -> Steps:
        """Return one direction's bandwidth over time; ``before`` the first row the link has its own.

        Raises:
            InputError: it starts anew before its last row, or carries nothing for ever.
        """
        if repeat_seconds is not None and not self.seconds[-1] < repeat_seconds:
            allowed = f"more than the last row's {self.seconds[-1]:g} seconds"
            raise InputError(f"{self.where}: repeat_seconds", repeat_seconds, allowed)
        if repeat_seconds is not None and not any(values):
            allowed = "a bandwidth > 0 somewhere, as it starts anew"
            raise InputError(f"{self.where}: {_FORWARD}", "0 in all rows", allowed)
        if self.seconds[0] > 0:
            return Steps((0.0, *self.seconds), (before, *values), repeat_seconds)
        return Steps(self.seconds, values, repeat_seconds)


def read_schedule(path: Path) -> ScheduleTable:
    """Read ``seconds,bandwidth_bytes_per_second[,reverse_bandwidth_bytes_per_second]``, numbers or texts with a unit.

    A bandwidth may be 0: an outage.

    Raises:
        InputError: the file is missing or unreadable, a column is missing or unknown, or a row, counted from 1 below
            the header, has a wrong number, or a moment that is not later than the one before.
    """
    where = str(path)
    reader = csv.reader(io.StringIO(read_text(path, where), newline=""), strict=True)
    try:
        lines = [fields for fields in reader if fields]
    except csv.Error as error:
        raise InputError(f"{where} line {reader.line_num}", f"no readable CSV ({error})", "CSV") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if sorted(header) not in (sorted(COLUMNS), sorted(COLUMNS[:2])):
        raise InputError(f"{where}: columns", ",".join(header) or "nothing", f"{_SECONDS},{_FORWARD}[,{_REVERSE}]")
    if len(lines) < 2:
        raise InputError(where, "no rows", "at least one row")
    table: dict[str, list[float]] = {name: [] for name in header}
    for number, fields in enumerate(lines[1:], start=1):
        if len(fields) != len(header):
            raise InputError(f"{where} row {number}", f"{len(fields)} fields", f"{len(header)}: {','.join(header)}")
        for name, text in zip(header, fields, strict=True):
            units = SECONDS if name == _SECONDS else BYTES_PER_SECOND
            table[name].append(_number(text, units, f"{where} row {number}: {name}"))
        moments = table[_SECONDS]
        if len(moments) > 1 and moments[-1] <= moments[-2]:
            allowed = f"a moment later than the row before ({moments[-2]:g})"
            raise InputError(f"{where} row {number}: {_SECONDS}", moments[-1], allowed)
    reverse = tuple(table[_REVERSE]) if _REVERSE in table else None
    return ScheduleTable(where, tuple(table[_SECONDS]), tuple(table[_FORWARD]), reverse)


def _number(text: str, units: dict[str, float], where: str) -> float:
    allowed = "a finite number >= 0"
    try:
        return parse_quantity(text.strip(), units, allowed)
    except (ValueError, OverflowError):
        raise InputError(where, text.strip() or "nothing", allowed) from None
