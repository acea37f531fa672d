"""Reads when clients were there, and what their devices could do, from files; no code in a file is ever run.

FedScale (Lai et al., 2022) publishes two pickles. ``client_behave_trace`` maps a user to ``active`` and ``inactive``,
the seconds at which the device became free for work (idle, charging, on Wi-Fi) and ceased to be, to ``finish_time``,
the trace's length in seconds, after which it repeats, and to ``duration`` and ``model``, which are not needed.
``client_device_capacity`` maps a user to ``computation``, the milliseconds in which the device runs one sample forward
through a reference model, and to ``communication``, kbit/s; both are numbers of numpy in the published file,
as its size tells.

Shapes: N clients, I intervals.
"""

from __future__ import annotations

import csv
import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Never, TypeGuard

import numpy as np
import numpy.typing as npt

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.world.plan import Floats, Ints

_COLUMNS = ("client", "start_seconds", "end_seconds")
_REPEAT = "repeat_seconds"


@dataclass(frozen=True)
class Intervals:
    """Spans of time [I] in which clients are there.

    Attributes:
        client: index of each.
        start_seconds, end_seconds: the span; the end is not part of it.
        repeat_seconds: period after which it comes again; infinite for never.
        first_turn: the earliest repetition; -1 lets one that began before time zero reach into it.
    """

    client: Ints
    start_seconds: Floats
    end_seconds: Floats
    repeat_seconds: Floats
    first_turn: Floats

    @classmethod
    def of(
        cls,
        client: npt.ArrayLike,
        start_seconds: npt.ArrayLike,
        end_seconds: npt.ArrayLike,
        repeat_seconds: npt.ArrayLike = math.inf,
        first_turn: float = 0,
    ) -> Intervals:
        """Return intervals from columns; single values are repeated."""
        clients = np.asarray(client, np.int64)
        columns = (start_seconds, end_seconds, repeat_seconds, first_turn)
        floats = (np.broadcast_to(np.asarray(column, np.float64), clients.shape).copy() for column in columns)
        return cls(clients, *floats)

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[int, float, float, float]]) -> Intervals:
        """Return intervals from their client, start, end and period."""
        client, start, end, repeat = zip(*rows, strict=True)
        return cls.of(client, start, end, repeat)


def read_intervals(file: str, num_clients: int) -> Intervals:
    """Read a CSV file with the columns client (an index), start_seconds, end_seconds, and optionally repeat_seconds.

    Raises:
        InputError: the file cannot be read, or a row is wrong; it is named.
    """
    rows = []
    for number, record in _csv_rows(file):
        where = f"{file} row {number}"
        client = _number(record, "client", where)
        if client != int(client) or not 0 <= client < num_clients:
            raise InputError(f"{where}: client", record["client"], f"a client's index, 0 to {num_clients - 1}")
        start, end = (_number(record, name, where) for name in _COLUMNS[1:])
        if not start < end:
            raise InputError(f"{where}: end_seconds", record["end_seconds"], "a number above start_seconds")
        repeat = _number(record, _REPEAT, where) if record.get(_REPEAT) else math.inf
        if repeat < end:
            raise InputError(f"{where}: {_REPEAT}", record[_REPEAT], "a number not below end_seconds, or nothing")
        rows.append((int(client), start, end, repeat, where))
    if not rows:
        raise InputError(file, "no row", "at least one interval")
    _check_overlaps(rows)
    return Intervals.of_rows([row[:4] for row in _joined(rows)])


def read_behaviour_trace(file: str, num_clients: int, seed: int) -> Intervals:
    """Read FedScale's ``client_behave_trace`` and deal its users to the clients.

    Raises:
        InputError: the file holds anything but plain containers and numbers, or a user's entry is not as described.
    """
    users = _read_pickle(file)
    rows: list[tuple[int, float, float, float]] = []
    for client, user in enumerate(_dealt(users, num_clients, seed)):
        where, entry = f"{file}: user {user}", _entry(users, user, file)
        active, inactive = (_seconds_list(entry, name, where) for name in ("active", "inactive"))
        finish = _positive(entry, "finish_time", where)
        if len(active) != len(inactive):
            raise InputError(f"{where}: inactive", f"{len(inactive)} times", f"{len(active)}, as many as active")
        for start, end, following in zip(active, inactive, [*active[1:], finish], strict=True):
            if not start <= end <= following:
                found = f"from {start:g} to {end:g}"
                raise InputError(where, found, f"times in order, active before inactive, none after {finish:g}")
            if start < end:
                rows.append((client, start, end, finish))
    if not rows:
        raise InputError(file, "nobody who is ever there", "at least one interval")
    return Intervals.of_rows(rows)


@dataclass(frozen=True)
class Capacities:
    """What devices [N] can do.

    Attributes:
        flops_per_second: computing.
        bytes_per_second: of their links.
    """

    flops_per_second: Floats
    bytes_per_second: Floats


def read_device_capacities(file: str, num_clients: int, seed: int, flops_per_sample: float) -> Capacities:
    """Read FedScale's ``client_device_capacity`` and deal its users to the clients.

    Args:
        file: its name.
        num_clients: N.
        seed: the run's.
        flops_per_sample: of one forward pass through the reference model, whose milliseconds the file gives.

    Raises:
        InputError: the file holds anything but plain containers and numbers, or a user's entry is not as described.
    """
    users = _read_pickle(file)
    milliseconds, kilobits = np.zeros(num_clients), np.zeros(num_clients)
    for client, user in enumerate(_dealt(users, num_clients, seed)):
        where, entry = f"{file}: user {user}", _entry(users, user, file)
        milliseconds[client] = _positive(entry, "computation", where)
        kilobits[client] = _positive(entry, "communication", where)
    return Capacities(flops_per_sample * 1000.0 / milliseconds, kilobits * 1000.0 / 8.0)


def _csv_rows(file: str) -> list[tuple[int, dict[str, str]]]:
    try:
        with Path(file).open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or []
            for column in _COLUMNS:
                if column not in names:
                    raise InputError(file, f"no column {column}", ", ".join([*_COLUMNS, f"and optionally {_REPEAT}"]))
            return list(enumerate(reader, start=1))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(file, getattr(error, "strerror", None) or str(error), "a readable CSV file") from None


def _number(record: Mapping[str, str | None], column: str, where: str) -> float:
    try:
        value = float(record[column] or "nothing")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{where}: {column}", record[column] or "nothing", "a finite number >= 0")
    return value


_Row = tuple[int, float, float, float, str]


def _check_overlaps(rows: list[_Row]) -> None:
    """Refuse intervals of one client that overlap, or that repeat with different periods."""
    rows.sort(key=lambda row: row[:4])
    for before, after in pairwise(rows):
        if before[0] == after[0]:
            if before[3] != after[3]:
                raise InputError(f"{after[4]}: {_REPEAT}", f"{after[3]:g}", f"{before[3]:g}, as this client's others")
            if after[1] < before[2]:
                raise InputError(f"{after[4]}: start_seconds", f"{after[1]:g}", f"at least {before[2]:g}, no overlap")


def _joined(rows: list[_Row]) -> list[_Row]:
    """Join intervals of one client that touch: it does not go off between them."""
    joined: list[_Row] = []
    for row in rows:
        if joined and joined[-1][0] == row[0] and joined[-1][2] == row[1]:
            joined[-1] = (*joined[-1][:2], *row[2:])
        else:
            joined.append(row)
    return joined


class _NumberType:
    """Stands for numpy's description of a number's form: its code, such as f8, and the order of its bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _MakeNumberType:
    """Stands for the class of such descriptions. It has no attributes, so that no file can give it any."""

    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _NumberType:
        return _NumberType(code)


class _MakeNumber:
    """Stands for what makes a number of numpy from its form and its bytes; gives a plain one."""

    __slots__ = ()

    def __call__(self, form: Any, data: Any) -> float | int:
        if not isinstance(form, _NumberType):
            raise pickle.UnpicklingError(f"a number of the form {form!r}")
        number: float | int = struct.unpack(form.order + _STRUCT_CODES[form.code], data)[0]
        return number


_STRUCT_CODES = {"f4": "f", "f8": "d", "i4": "i", "i8": "q", "u4": "I", "u8": "Q"}
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _MakeNumberType(),
    ("numpy.core.multiarray", "scalar"): _MakeNumber(),
    ("numpy._core.multiarray", "scalar"): _MakeNumber(),
}
"""What a number of numpy is made by in a pickle, and what stands for it here."""


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds containers, numbers and texts, which need no class; any other class or function is refused.

    A number of numpy does name a class and a function. Ours stand for them, so none that a file names is ever called.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Never:
        raise pickle.UnpicklingError("a reference to something outside")


def _read_pickle(file: str) -> dict[Any, Any]:
    allowed = "a pickle of plain dicts, lists, numbers and texts; no code in it is run"
    try:
        with Path(file).open("rb") as stream:
            users = _PlainUnpickler(stream).load()
    except OSError as error:
        raise InputError(file, error.strerror or str(error), "a readable file") from None
    # A broken pickle makes the reader stumble over almost anything.
    except Exception as error:
        raise InputError(file, str(error) or type(error).__name__, allowed) from None
    if not isinstance(users, dict) or not users or not all(isinstance(user, int | str) for user in users):
        raise InputError(file, type(users).__name__, "a dict with an entry for each user")
    return users


def _dealt(users: Mapping[Any, Any], num_clients: int, seed: int) -> list[Any]:
    """Return each client's user: a shuffle of all, again from its start where there are more clients."""
    names = sorted(users, key=lambda user: (isinstance(user, str), user))
    order = numpy_generator(seed, "trace").permutation(len(names)).tolist()
    return [names[order[client % len(names)]] for client in range(num_clients)]


def _entry(users: Mapping[Any, Any], user: Any, file: str) -> dict[str, Any]:
    if not isinstance(users[user], dict):
        raise InputError(f"{file}: user {user}", type(users[user]).__name__, "a dict")
    entry: dict[str, Any] = users[user]
    return entry


def _seconds_list(entry: Mapping[str, Any], name: str, where: str) -> list[float]:
    values = entry.get(name)
    if not isinstance(values, list) or not all(_is_number(value) and value >= 0 for value in values):
        raise InputError(f"{where}: {name}", "nothing" if values is None else repr(values)[:40], "a list of seconds")
    return [float(value) for value in values]


def _positive(entry: Mapping[str, Any], name: str, where: str) -> float:
    value = entry.get(name)
    if _is_number(value) and value > 0:
        return float(value)
    raise InputError(f"{where}: {name}", "nothing" if value is None else repr(value)[:40], "a number > 0")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
