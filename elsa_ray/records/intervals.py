"""What some clients did in one round, as intervals of time, read from these clients' rows of a run's tables."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from elsa_ray.config.errors import InputError
from elsa_ray.network.graph import Network
from elsa_ray.records.folder import EVENTS, TRANSFERS
from elsa_ray.records.reading import RunRecord

MOST_SLOW, MOST_DRAWN = 5, 10


class Doing(Enum):
    """What a client's work does at a time."""

    CLIENT = "client computes"
    EDGE = "edge computes"
    UP = "sends"
    DOWN = "receives"
    QUEUE = "queues"
    WAIT = "waits"


@dataclass(frozen=True)
class Interval:
    """A time in which a client's work does one thing."""

    begin: float
    end: float
    doing: Doing


@dataclass(frozen=True)
class ClientsOfRound:
    """Some clients in one round.

    Attributes:
        round_index: which.
        begin, end: of the round, in simulated seconds.
        names: of the clients, the one that is busy last first.
        intervals: of each, from begin to end without a gap.
        given_up: when work of each was dropped.
        num_clients: that had work in the round.
    """

    round_index: int
    begin: float
    end: float
    names: tuple[str, ...]
    intervals: tuple[tuple[Interval, ...], ...]
    given_up: tuple[tuple[float, ...], ...]
    num_clients: int


def longest_round(run: RunRecord) -> dict[str, Any] | None:
    """Return the line of the round that took longest (of equal ones the first); None where there is no round."""
    return max(run.rounds, key=lambda line: line["simulated_seconds"] - line["begin_simulated_seconds"], default=None)


def clients_of_round(run: RunRecord, line: dict[str, Any], network: Network) -> ClientsOfRound | None:
    """Return what clients did in a round: all if they are few, else the slowest and some that are typical.

    The typical ones are spread evenly over the order in which clients are done. None where the tables cannot be read,
    as in a run that goes on, or nobody had work.
    """
    try:
        ends = _last_transfers(run.path / TRANSFERS, line["round"])
        chosen = _choose(ends, [entry["client"] for entry in line["slowest_clients"]])
        if not chosen:
            return None
        transfers = _rows(run.path / TRANSFERS, line["round"], chosen, ["src", "start_seconds", "finish_seconds"])
        events = _rows(run.path / EVENTS, line["round"], chosen, ["seconds", "event", "node", "detail"])
    except InputError:
        return None
    begin, end = line["begin_simulated_seconds"], line["simulated_seconds"]
    busy = _transfer_intervals(transfers, network, begin)
    for client, own in _compute_intervals(events, network, begin, end).items():
        busy[client] += own
    chosen.sort(key=lambda client: -max((own.end for own in busy[client]), default=begin))
    given_up = [[row["seconds"] for row in events if row["event"] == "work_dropped" and row["client"] == client]
                for client in chosen]  # fmt: skip
    return ClientsOfRound(
        line["round"],
        begin,
        end,
        tuple(network.node_names[network.clients[client]] for client in chosen),
        tuple(_without_gaps(busy[client], begin, end) for client in chosen),
        tuple(map(tuple, given_up)),
        len(ends),
    )


def _last_transfers(path: Path, round_index: int) -> dict[int, float]:
    """Return when each client's last transfer of a round ended."""
    table = _read(path, ["client", "finish_seconds"], [("round", "==", round_index), ("client", ">=", 0)])
    last = table.group_by("client").aggregate([("finish_seconds", "max")])
    return dict(zip(last["client"].to_pylist(), last["finish_seconds_max"].to_pylist(), strict=True))


def _choose(ends: dict[int, float], slowest: Sequence[int]) -> list[int]:
    """Return the clients to draw, the one that is done last first."""
    order = sorted((client for client, end in ends.items() if end is not None), key=lambda one: (-ends[one], one))
    if len(order) <= MOST_DRAWN:
        return order
    slow = [client for client in slowest if client in ends][:MOST_SLOW]
    others = [client for client in order if client not in slow]
    places = np.linspace(0, len(others) - 1, MOST_DRAWN - len(slow) + 1)[1:].round().astype(int)
    kept = {*slow, *(others[place] for place in places.tolist())}
    return [client for client in order if client in kept]


def _rows(path: Path, round_index: int, clients: list[int], columns: list[str]) -> list[dict[str, Any]]:
    table = _read(path, ["client", *columns], [("round", "==", round_index), ("client", "in", clients)])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _read(path: Path, columns: list[str], filters: list[tuple[str, str, Any]]) -> pa.Table:
    try:
        return pyarrow.parquet.read_table(path, columns=columns, filters=filters)
    except (pa.ArrowException, OSError) as error:
        raise InputError(str(path), type(error).__name__, "the table of a run that was closed") from None


def _transfer_intervals(rows: list[dict[str, Any]], network: Network, begin: float) -> dict[int, list[Interval]]:
    busy: dict[int, list[Interval]] = defaultdict(list)
    for row in rows:
        is_up = network.node_kinds[network.index(row["src"])] == "client"
        if row["finish_seconds"] is not None:
            started = max(row["start_seconds"], begin)
            busy[row["client"]].append(Interval(started, row["finish_seconds"], Doing.UP if is_up else Doing.DOWN))
    return busy


def _compute_intervals(
    rows: list[dict[str, Any]], network: Network, begin: float, end: float
) -> dict[int, list[Interval]]:
    """Join starts and ends; what started before the round, or goes on after it, is cut at its bounds."""
    busy: dict[int, list[Interval]] = defaultdict(list)
    started: dict[tuple[int, str, str], deque[float]] = defaultdict(deque)
    for row in rows:
        if not row["event"].startswith("compute_"):
            continue
        key = (row["client"], row["node"], row["detail"])
        if row["event"] == "compute_start":
            started[key].append(row["seconds"])
            continue
        since = started[key].popleft() if started[key] else begin
        busy[row["client"]].append(Interval(since, row["seconds"], _where(network, row["node"])))
    for (client, node, _), times in started.items():
        busy[client] += [Interval(since, end, _where(network, node)) for since in times]
    return busy


def _where(network: Network, node: str) -> Doing:
    return Doing.CLIENT if network.node_kinds[network.index(node)] == "client" else Doing.EDGE


def _without_gaps(busy: list[Interval], begin: float, end: float) -> tuple[Interval, ...]:
    """Return the intervals in order, with what lies between: a queue before a computation, else waiting."""
    whole, at = [], begin
    for interval in sorted(busy, key=lambda one: (one.begin, one.end)):
        if interval.begin > at:
            computes = interval.doing in (Doing.CLIENT, Doing.EDGE)
            whole.append(Interval(at, interval.begin, Doing.QUEUE if computes else Doing.WAIT))
        whole.append(interval)
        at = max(at, interval.end)
    if at < end:
        whole.append(Interval(at, end, Doing.WAIT))
    return tuple(whole)
