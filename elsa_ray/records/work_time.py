"""Where a work item's simulated time went, from the opening of its round to the gather that took it.

An item's activities come one after the other, so its time falls into their durations and the gaps before them; the sum
over all kinds is exactly the time between opening and closing.

Shapes: W work items of a timeline, K kinds of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.plan import ActivityKind, Floats, Ints, Plan, Stage, WorkKey
from elsa_ray.world.timeline import Outcome, Timeline
from elsa_ray.world.transfer_parts import PARTS, TransferParts, transfer_parts

TIME_KINDS = (
    "waiting_for_model",
    "client_compute",
    "client_queue",
    "edge_compute",
    "edge_queue",
    "transfer_up",
    "transfer_down",
    "waiting_for_gather",
)
"""``waiting_for_model``: until its edge has the model and the client its frozen blocks; ``waiting_for_gather``: done,
until the edge (or the cloud) closes."""

_WORK_AT_ONCE = 2**16
"""So many items are followed at a time, because the columns of all their activities would take much memory."""

_WAIT, _CLIENT, _CLIENT_QUEUE, _EDGE, _EDGE_QUEUE, _UP, _DOWN, _GATHER = range(len(TIME_KINDS))


@dataclass(frozen=True)
class WorkTimes:
    """Work items of a round that are over, with where their time went.

    Attributes:
        keys: which.
        rows: of each in the timeline's work.
        opening_seconds, closing_seconds: simulated time of the opening, and of the gather (or of the drop), of each.
        seconds_WK: where the time between went, in the order of TIME_KINDS.
        transfer_seconds_W3: the time of transfers up and down again, in the order of PARTS.
    """

    keys: tuple[WorkKey, ...]
    rows: Ints
    opening_seconds: Floats
    closing_seconds: Floats
    seconds_WK: Floats
    transfer_seconds_W3: Floats

    def by_kind(self) -> dict[str, float]:
        """Return the seconds of all items together, by kind."""
        return dict(zip(TIME_KINDS, self.seconds_WK.sum(axis=0).tolist(), strict=True))

    def by_part(self) -> dict[str, float]:
        """Return the seconds of all items' transfers together, by part."""
        return dict(zip(PARTS, self.transfer_seconds_W3.sum(axis=0).tolist(), strict=True))

    @property
    def active_seconds(self) -> Floats:
        """From the opening to the item's own end: without what it waited for the gather."""
        active: Floats = self.seconds_WK[:, :_GATHER].sum(axis=1)
        return active


@dataclass(frozen=True)
class ArrivedWork(WorkTimes):
    """The work items that a round's gathers took.

    Attributes:
        dropped: the items that were dropped in the round.
        queue_seconds: what computations of all items waited for a device, by (Stage, whether at an edge).
    """

    dropped: WorkTimes
    queue_seconds: dict[tuple[int, bool], float]


@dataclass(frozen=True)
class UnfinishedWork:
    """A work item that was not gathered yet.

    Attributes:
        opening, last_finish: simulated seconds of its opening, and up to which its time is accounted for.
        seconds_K, transfer_seconds_3: where its time went so far, in the order of TIME_KINDS and of PARTS.
    """

    opening: float
    last_finish: float
    seconds_K: Floats
    transfer_seconds_3: Floats


class WorkClock:
    """Follows work items over the rounds: one that is late has a part of its time in each.

    Args:
        network: the topology.
        unfinished: work of the rounds before the first that is added.

    Attributes:
        unfinished: work that was not gathered by the end of the last round.
    """

    def __init__(self, network: Network, unfinished: Mapping[WorkKey, UnfinishedWork] | None = None) -> None:
        kinds = np.array(network.node_kinds)
        self._is_edge, self._is_client = kinds == "edge", kinds == "client"
        self.unfinished: dict[WorkKey, UnfinishedWork] = dict(unfinished or {})

    def add(self, plan: Plan, timeline: Timeline, parts: TransferParts | None = None) -> ArrivedWork:
        """Take one round in, and return the work that its gathers took; rounds must come in order.

        Args:
            plan, timeline: of the round.
            parts: of its transfers, where the caller has them.
        """
        parts = parts if parts is not None else transfer_parts(timeline)
        keys = [timeline.work.key(row) for row in range(len(timeline.work))]
        opening_W, last_W, seconds_WK, parts_W3 = self._begin(plan, timeline, keys)
        queues = self._add_activities(timeline, last_W, seconds_WK)
        self._add_parts(timeline, parts, parts_W3)
        row_of_key = {key: row for row, key in enumerate(keys)}

        def times(wanted: list[tuple[WorkKey, float]]) -> WorkTimes:
            rows = np.array([row_of_key[key] for key, _ in wanted], np.int64)
            closing = np.array([seconds for _, seconds in wanted], np.float64)
            own = tuple(key for key, _ in wanted)
            return WorkTimes(own, rows, opening_W[rows], closing, seconds_WK[rows], parts_W3[rows])

        arrived = [
            (key, seconds)
            for taken, seconds in zip(timeline.arrivals, timeline.gather_seconds.tolist(), strict=True)
            for key in taken
        ]
        rows = np.array([row_of_key[key] for key, _ in arrived], np.int64)
        closing = np.array([seconds for _, seconds in arrived], np.float64)
        seconds_WK[rows, _GATHER] += closing - last_W[rows]
        over = {*(key for key, _ in arrived), *timeline.dropped, *timeline.skipped}
        self.unfinished = {
            key: UnfinishedWork(float(opening_W[row]), float(last_W[row]), seconds_WK[row].copy(), parts_W3[row].copy())
            for key, row in row_of_key.items()
            if key not in over
        }
        dropped = times([(key, float(last_W[row_of_key[key]])) for key in timeline.dropped])
        return ArrivedWork(**vars(times(arrived)), dropped=dropped, queue_seconds=queues)

    def _begin(self, plan: Plan, timeline: Timeline, keys: list[WorkKey]) -> tuple[Floats, Floats, Floats, Floats]:
        """Return opening [W], end of what is accounted for so far [W], and seconds so far [W, K] and [W, 3]."""
        num_carried = len(keys) - len(plan.work)
        seconds_WK, parts_W3 = np.zeros((len(keys), len(TIME_KINDS))), np.zeros((len(keys), len(PARTS)))
        opener_G = plan.gathers.opener
        offset = len(timeline.activities) - len(plan.activities)
        finish_G = timeline.finish_seconds[np.where(opener_G >= 0, opener_G + offset, 0)]
        # Work of the first edge round waits for its model from the start of the global round on.
        opening_G = np.where(plan.gathers.edge_round > 0, finish_G, timeline.begin_seconds)
        opening_W = np.concatenate([np.full(num_carried, timeline.begin_seconds), opening_G[plan.work.gather]])
        last_W = opening_W.copy()
        for row, key in enumerate(keys[:num_carried]):
            before = self.unfinished.get(key)
            if before is not None:
                opening_W[row], last_W[row], seconds_WK[row] = before.opening, before.last_finish, before.seconds_K
                parts_W3[row] = before.transfer_seconds_3
        return opening_W, last_W, seconds_WK, parts_W3

    def _add_activities(self, timeline: Timeline, last_W: Floats, seconds_WK: Floats) -> dict[tuple[int, bool], float]:
        """Add the durations of what ended in this timeline, and the gaps before; returns the queues by stage."""
        is_over = (timeline.outcome == Outcome.DONE) | (timeline.outcome == Outcome.DROPPED)
        queues = np.zeros((len(Stage), 2))
        for first in range(0, len(last_W), _WORK_AT_ONCE):
            work = timeline.activities.work
            rows = np.flatnonzero(is_over & (work >= first) & (work < first + _WORK_AT_ONCE))
            if len(rows):
                rows = rows[np.argsort(work[rows], kind="stable")]
                self._add_rows(timeline, rows, last_W, seconds_WK, queues)
        found = zip(*np.nonzero(queues), strict=True)
        return {(int(stage), bool(at_edge)): float(queues[stage, at_edge]) for stage, at_edge in found}

    def _add_rows(self, timeline: Timeline, rows: Ints, last_W: Floats, seconds_WK: Floats, queues: Floats) -> None:
        """Add some work's rows, work item after work item."""
        activities = timeline.activities
        work, start, finish = activities.work[rows], timeline.start_seconds[rows], timeline.finish_seconds[rows]
        # What was dropped before it started has only waited.
        start = np.where(np.isfinite(start), start, finish)
        is_first = np.concatenate([[True], work[1:] != work[:-1]])
        is_last = np.concatenate([is_first[1:], [True]])
        previous = np.where(is_first, last_W[work], np.concatenate([[0.0], finish[:-1]]))
        gap_kind, duration_kind = self._kinds(timeline, rows)
        np.add.at(seconds_WK, (work, gap_kind), start - previous)
        np.add.at(seconds_WK, (work, duration_kind), finish - start)
        last_W[work[is_last]] = finish[is_last]
        for at_edge, kind in enumerate((_CLIENT_QUEUE, _EDGE_QUEUE)):
            chosen = gap_kind == kind
            np.add.at(queues[:, at_edge], activities.label[rows[chosen]], (start - previous)[chosen])

    def _add_parts(self, timeline: Timeline, parts: TransferParts, parts_W3: Floats) -> None:
        """Add the parts of the transfers' durations."""
        work_T = timeline.activities.work[parts.rows_T]
        of_work = work_T >= 0
        for part in range(len(PARTS)):
            seconds_T = parts.seconds_T3[of_work, part]
            parts_W3[:, part] += np.bincount(work_T[of_work], weights=seconds_T, minlength=len(parts_W3))

    def _kinds(self, timeline: Timeline, rows: Ints) -> tuple[Ints, Ints]:
        """Return for each row the kind of the gap before it and of its duration."""
        activities = timeline.activities
        computes = activities.kind[rows] == ActivityKind.COMPUTE
        at_edge = self._is_edge[activities.source[rows]]
        to_client = self._is_client[activities.target[rows]]
        gap = np.where(computes, np.where(at_edge, _EDGE_QUEUE, _CLIENT_QUEUE), _WAIT)
        duration = np.where(computes, np.where(at_edge, _EDGE, _CLIENT), np.where(to_client, _DOWN, _UP))
        return gap, duration
