"""Timelines as Arrow tables: one row a transfer, one row an event."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from elsa_ray.clustering.trust import Decision
from elsa_ray.network.graph import Network
from elsa_ray.protocols.protocol import RoundReport
from elsa_ray.records.line import uncompressed_bytes
from elsa_ray.world.incidents import IncidentKind
from elsa_ray.world.plan import ActivityKind, Floats, Ints, Plan, Stage, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline

_NAMES = pa.dictionary(pa.int32(), pa.string())

TRANSFERS_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("client", pa.int32()),
        ("src", _NAMES),
        ("dst", _NAMES),
        ("role", _NAMES),
        ("num_bytes", pa.int64()),
        ("start_seconds", pa.float64()),
        ("finish_seconds", pa.float64()),
        ("outcome", _NAMES),
        ("step", pa.int32()),
        ("planned_round", pa.int32()),
        ("planned_bytes", pa.int64()),
        ("uncompressed_bytes", pa.int64()),
    ]
)
"""``round``: in which it ended; ``planned_round``: which planned it. ``num_bytes``: what the links carried of the
``planned_bytes``; ``uncompressed_bytes``: the same share of the content in fp32. Clients are indices, -1 for none."""

EVENTS_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("seconds", pa.float64()),
        ("event", _NAMES),
        ("node", _NAMES),
        ("client", pa.int32()),
        ("detail", _NAMES),
    ]
)
"""``node``: where it happens (a transfer starts at its source and finishes at its target); ``detail``: a transfer's
role, a computation's stage, or ``edge_round N`` of ``round N`` for work."""

_ROLE_LABELS = ["", *(role.label for role in Role)]
_STAGE_LABELS = [stage.label if stage else "" for stage in Stage]


_ROWS_AT_ONCE = 2**20
"""Tables of millions of rows are made piece by piece; Parquet's groups of rows are of this size by default."""


def transfers_tables(timeline: Timeline, network: Network, round_index: int) -> Iterator[pa.Table]:
    """Yield the transfers that ended in a round, whole or broken off, piece by piece; at least one piece.

    A transfer that never started is not among them.
    """
    is_ended = (timeline.outcome == Outcome.DROPPED) & np.isfinite(timeline.start_seconds)
    is_ended |= timeline.outcome == Outcome.DONE
    is_ended &= timeline.activities.kind == ActivityKind.TRANSFER
    rows, names = np.flatnonzero(is_ended).astype(np.dtype("i")), _names(network.node_names)
    del is_ended
    for first in range(0, max(1, len(rows)), _ROWS_AT_ONCE):
        yield _transfers(timeline, names, round_index, rows[first : first + _ROWS_AT_ONCE])


def pending_transfers_table(timeline: Timeline, network: Network, round_index: int) -> pa.Table:
    """Return the transfers that were under way when the run ended; no byte of them is counted yet."""
    under_way = (timeline.outcome == Outcome.PENDING) & np.isfinite(timeline.start_seconds)
    rows = np.flatnonzero(under_way & (timeline.activities.kind == ActivityKind.TRANSFER))
    return _transfers(timeline, _names(network.node_names), round_index, rows)


def _transfers(timeline: Timeline, nodes: pa.Array, round_index: int, rows: np.ndarray) -> pa.Table:
    activities, finish = timeline.activities, timeline.finish_seconds[rows]
    columns = [
        pa.array(np.full(len(rows), round_index, np.int32)),
        pa.array(activities.client[rows].astype(np.int32)),
        _named(activities.source[rows], nodes),
        _named(activities.target[rows], nodes),
        _named(activities.label[rows], _names(_ROLE_LABELS)),
        pa.array(timeline.carried_bytes[rows]),
        pa.array(timeline.start_seconds[rows]),
        pa.array(finish, mask=~np.isfinite(finish)),
        _named(timeline.outcome[rows], _names([outcome.label for outcome in Outcome])),
        pa.array(activities.step[rows].astype(np.int32)),
        pa.array(activities.round_index[rows].astype(np.int32)),
        pa.array(activities.num_bytes[rows]),
        pa.array(uncompressed_bytes(timeline, rows)),
    ]
    return pa.Table.from_arrays(columns, schema=TRANSFERS_SCHEMA)


_EVENT_NAMES = [
    "transfer_start",
    "transfer_finish",
    "transfer_dropped",
    "compute_start",
    "compute_finish",
    "compute_dropped",
    "gather",
    "client_parked",
    "client_failed",
    "client_excluded",
    "client_kept",
    "client_on_probation",
    "client_restored",
    "client_moved",
    *(kind.label for kind in IncidentKind),
    "work_dropped",
    "work_skipped",
    "work_late",
    "round_end",
]
_EVENT = {name: number for number, name in enumerate(_EVENT_NAMES)}
_NO_NODE = -1

# The order within one instant: what was under way ends, the world turns, then what begins (and takes no time) in the
# order of the rows, then what is broken off, then what is said about work and round.
_ENDING, _TURNING, _BEGINNING, _BREAKING, _TELLING = range(5)


_LOG_TYPES = (np.int8, np.float64, np.int8, np.int64, np.int32, np.int32, np.int32)
"""Of the log's columns: millions of events must fit into the memory."""


@dataclass(frozen=True)
class _Window:
    """A stretch of time, its end not included."""

    low: float
    high: float

    def has(self, seconds: Floats) -> np.ndarray:
        """Tell which of some times are in it; what is no number is in none."""
        return (seconds >= self.low) & (seconds < self.high)


def _windows(timeline: Timeline) -> list[_Window]:
    """Return stretches of time that follow one another, each with about as many events as are sorted at once."""
    count = max(1, 2 * len(timeline.activities) // _ROWS_AT_ONCE)
    step = max(1, len(timeline.activities) // (100 * count))
    some = np.concatenate([timeline.start_seconds[::step], timeline.finish_seconds[::step]])
    some = np.sort(some[np.isfinite(some)])
    bounds = np.unique(some[np.arange(1, count) * len(some) // count]).tolist() if count > 1 and len(some) else []
    return [_Window(low, high) for low, high in zip([-math.inf, *bounds], [*bounds, math.inf], strict=True)]


class _Log:
    """Collects events as columns."""

    def __init__(self) -> None:
        self._chunks: list[tuple[np.ndarray, ...]] = []

    def add(
        self,
        event: np.ndarray | int,
        seconds: np.ndarray | float,
        *,
        order: np.ndarray | int,
        sequence: np.ndarray | int = 0,
        node: np.ndarray | int = _NO_NODE,
        client: np.ndarray | int = -1,
        detail: np.ndarray | int = 0,
    ) -> None:
        """Add the events of many rows at once; ``detail`` is an index into the details' names."""
        columns = (event, seconds, order, sequence, node, client, detail)
        arrays = (np.atleast_1d(np.asarray(column, kind)) for column, kind in zip(columns, _LOG_TYPES, strict=True))
        self._chunks.append(tuple(np.broadcast_arrays(*arrays)))

    def take(self, other: _Log, window: _Window) -> None:
        """Add those events of another log that are in a window."""
        for columns in other._chunks:
            (rows,) = np.nonzero(window.has(columns[1]))
            self._chunks.append(tuple(column[rows] for column in columns))

    def sorted_columns(self) -> tuple[np.ndarray, ...]:
        """Return event, seconds, node, client and detail by time, then by the order within the instant."""
        columns = zip(*self._chunks, strict=True)
        event, seconds, order, sequence, node, client, detail = (np.concatenate(chunks) for chunks in columns)
        by_time = np.lexsort((sequence, order, seconds))
        del order, sequence
        return tuple(column[by_time] for column in (event, seconds, node, client, detail))


def events_tables(
    plan: Plan,
    timeline: Timeline,
    network: Network,
    failed: Sequence[WorkKey] = (),
    report: RoundReport | None = None,
) -> Iterator[pa.Table]:
    """Yield what happened in a round, sorted by time, piece by piece; at least one piece.

    An activity that goes on over rounds starts and ends once.

    Args:
        plan, timeline: of the round.
        network: the topology.
        failed: work whose training broke down.
        report: decisions about clients, and which were given another edge; None for neither.
    """
    log = _Log()
    details = [*_ROLE_LABELS, *_STAGE_LABELS]
    causes = [cause.label for cause in timeline.causes]
    log.add(
        _EVENT["client_parked"],
        timeline.begin_seconds,
        order=-1,
        client=np.array(plan.parked_clients, np.int64),
        sequence=np.arange(len(plan.parked_clients)),
        node=network.clients[np.array(plan.parked_clients, np.int64)],
    )
    _add_incidents(log, details, timeline)
    _add_work(log, details, timeline, network, "work_dropped", timeline.dropped, timeline.dropped_seconds, causes)
    _add_work(log, details, timeline, network, "work_skipped", timeline.skipped, _skipped_seconds(timeline))
    _add_work(log, details, timeline, network, "work_late", timeline.pending)
    _add_work(log, details, timeline, network, "client_failed", failed)
    if report is not None:
        _add_decisions(log, details, timeline, network, report)
    log.add(_EVENT["round_end"], timeline.end_seconds, order=_TELLING + 1)
    nodes = _names(network.node_names)
    # Names that stand twice would have Parquet's writer leave its dictionary, and then bytes of its memory in the file.
    number_of_detail = {name: number for number, name in enumerate(dict.fromkeys(details))}
    names_of_details = _names(list(number_of_detail))
    unique_detail = np.array([number_of_detail[name] for name in details], np.int64)
    for window in _windows(timeline):
        own = _Log()
        _add_activities(own, plan, timeline, window)
        own.take(log, window)
        yield _events(own, plan.round_index, nodes, names_of_details, unique_detail)


def _events(log: _Log, round_index: int, nodes: pa.Array, details: pa.Array, unique_detail: Ints) -> pa.Table:
    event, seconds, node, client, detail = log.sorted_columns()
    columns = [
        pa.array(np.full(len(event), round_index, np.int32)),
        pa.array(seconds.astype(np.float64)),
        _named(event, _names(_EVENT_NAMES)),
        _named(node, nodes, absent=node == _NO_NODE),
        pa.array(client.astype(np.int32)),
        _named(unique_detail[detail], details),
    ]
    return pa.Table.from_arrays(columns, schema=EVENTS_SCHEMA)


def _add_activities(log: _Log, plan: Plan, timeline: Timeline, window: _Window) -> None:
    """Add what starts and what ends in a window."""
    is_in = window.has(timeline.start_seconds)
    is_in |= window.has(timeline.finish_seconds)
    row = np.flatnonzero(is_in)
    activities, outcome = timeline.activities.take(row), timeline.outcome[row]
    start, finish = timeline.start_seconds[row], timeline.finish_seconds[row]
    is_transfer, is_gather = (activities.kind == kind for kind in (ActivityKind.TRANSFER, ActivityKind.GATHER))
    detail = np.where(is_transfer, activities.label, activities.label + len(_ROLE_LABELS))
    carried_over = row < len(timeline.activities) - len(plan.activities)
    started = np.isfinite(start) & ~is_gather & (~carried_over | (start > timeline.begin_seconds))
    done = (outcome == Outcome.DONE) & ~is_gather
    broken = (outcome == Outcome.DROPPED) & np.isfinite(start) & ~is_gather
    first = np.where(is_transfer, _EVENT["transfer_start"], _EVENT["compute_start"])

    def add(
        rows: np.ndarray, event: np.ndarray, seconds: Floats, order: np.ndarray | int, node: Ints, late: int
    ) -> None:
        rows = rows & window.has(seconds)
        log.add(
            event[rows],
            seconds[rows],
            order=np.broadcast_to(order, row.shape)[rows],
            sequence=2 * row[rows] + late,
            node=node[rows],
            client=activities.client[rows],
            detail=detail[rows],
        )

    add(started, first, start, _BEGINNING, activities.source, 0)
    takes_time = np.where(finish > start, _ENDING, _BEGINNING)
    add(done, first + 1, finish, takes_time, activities.target, 1)
    add(broken, first + 2, finish, _BREAKING, activities.target, 1)
    closed = is_gather & (outcome == Outcome.DONE) & window.has(finish)
    log.add(
        _EVENT["gather"], finish[closed], order=_BEGINNING, sequence=2 * row[closed], node=activities.source[closed]
    )


_DECISION_EVENTS = {
    Decision.EXCLUDED: "client_excluded",
    Decision.KEPT: "client_kept",
    Decision.PROBATION: "client_on_probation",
    Decision.RESTORED: "client_restored",
}


def _add_decisions(log: _Log, details: list[str], timeline: Timeline, network: Network, report: RoundReport) -> None:
    """Add what was decided about clients, each with its reason, and where clients were moved, at the round's end."""
    told = [(_DECISION_EVENTS[own.decision], own.client, own.reason) for own in report.decisions]
    for client, node in report.moved:
        told.append(("client_moved", client, f"to {network.node_names[node]}" if node >= 0 else "parked"))
    for sequence, (event, client, reason) in enumerate(told):
        details.append(reason)
        log.add(
            _EVENT[event],
            timeline.end_seconds,
            order=_TELLING,
            sequence=_EVENT[event] * len(timeline.work) + sequence,
            node=int(network.clients[client]),
            client=client,
            detail=len(details) - 1,
        )


def _add_incidents(log: _Log, details: list[str], timeline: Timeline) -> None:
    """Add what befell links, nodes and clients."""
    rows = timeline.incidents.rows
    log.add(
        _EVENT[IncidentKind(0).label] + rows.kind,
        rows.seconds,
        order=_TURNING,
        sequence=np.arange(len(rows)),
        node=rows.node,
        client=rows.client,
        detail=len(details) + rows.detail,
    )
    details.extend(timeline.incidents.details)


def _skipped_seconds(timeline: Timeline) -> Floats:
    """Return when each skipped work item was given up: when its rows were."""
    if not timeline.skipped:
        return np.zeros(0)
    end_of_work = np.full(len(timeline.work), timeline.end_seconds)
    rows = np.flatnonzero((timeline.activities.work >= 0) & (timeline.outcome == Outcome.SKIPPED))
    end_of_work[timeline.activities.work[rows]] = timeline.finish_seconds[rows]
    row_of_key = {timeline.work.key(row): row for row in range(len(timeline.work))}
    return np.array([end_of_work[row_of_key[key]] for key in timeline.skipped], np.float64)


def _add_work(
    log: _Log,
    details: list[str],
    timeline: Timeline,
    network: Network,
    event: str,
    keys: Sequence[WorkKey],
    seconds: Floats | None = None,
    reasons: Sequence[str] = (),
) -> None:
    """Add one event a work item, at its time or else at the round's end, with its reason if there is one."""
    if not keys:
        return
    seconds = np.full(len(keys), timeline.end_seconds) if seconds is None else seconds
    clients = np.array([key.client for key in keys], np.int64)
    names = [f"round {key.round_index}, edge_round {key.edge_round}" for key in keys]
    if reasons:
        names = [f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True)]
    number_of_name = {name: len(details) + number for number, name in enumerate(dict.fromkeys(names))}
    details.extend(number_of_name)
    log.add(
        _EVENT[event],
        seconds,
        order=_TELLING,
        sequence=_EVENT[event] * len(timeline.work) + np.arange(len(keys)),
        node=network.clients[clients],
        client=clients,
        detail=np.array([number_of_name[name] for name in names]),
    )


def _names(names: Sequence[str]) -> pa.Array:
    """Return the texts that a column's indices point to."""
    return pa.array(list(names), pa.string())


def _named(index: np.ndarray, names: pa.Array, absent: np.ndarray | None = None) -> pa.DictionaryArray:
    """Return a column of texts: each row's index into the names."""
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32), mask=absent), names)
