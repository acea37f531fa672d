"""The course of the rows of a plan: what waits, queues, flows, computes and ends, and when.

How long a row takes is decided when it starts: ``_send`` and ``_compute``. What gathers and faults add is told by
subclasses.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import IntEnum
from heapq import heappop, heappush

import numpy as np

from elsa_ray.network.instants import SAME_INSTANT
from elsa_ray.network.schedule import PiecewiseConstant
from elsa_ray.network.sharing import FluidSharing, Lane
from elsa_ray.world.compute import ComputeSlots
from elsa_ray.world.parts import Part
from elsa_ray.world.paths import Path
from elsa_ray.world.plan import ActivityKind, Floats, Ints
from elsa_ray.world.rows import Rows
from elsa_ray.world.timeline import Outcome, WorldState


class Phase(IntEnum):
    """How far an activity is."""

    WAITING = 0
    QUEUED = 1
    LATENCY = 2
    FLOWING = 3
    COMPUTING = 4
    ENDED = 5


@dataclass(frozen=True)
class Field:
    """The part of the world that does not change: ways, capacities, speeds and slots of the nodes.

    Attributes:
        find_path: the way between two node indices.
        capacity_bytes_per_second: by capacity index.
        flops_per_second: of one slot, by node index.
        slots: computations at once, by node index.
        client_nodes: node index by client; needed only where clients go off.
        bandwidths: bytes per second over time, of the capacities that have a schedule.
        usable_part: of each capacity, what payloads can use.
    """

    find_path: Callable[[int, int], Path]
    capacity_bytes_per_second: Sequence[float]
    flops_per_second: Sequence[float] | Floats
    slots: Sequence[int]
    client_nodes: Sequence[int] = ()
    bandwidths: Mapping[int, PiecewiseConstant] = dataclass_field(default_factory=dict)
    usable_part: float = 1.0


TRANSFER, COMPUTE, GATHER = (int(kind) for kind in ActivityKind)
WAITING, QUEUED, LATENCY, FLOWING, COMPUTING, ENDED = (int(phase) for phase in Phase)
DONE = int(Outcome.DONE)
SURELY = 1 + SAME_INSTANT
"""What may be one instant is asked for, and the links decide."""


class Course:
    """How far each row is; rows are the merged ones of ``Rows``.

    A notable row is one whose end is more than that: see ``_meets_trouble`` and ``_tell``.

    Args:
        part: what is played.
        before: the state of the world before it.
        field: what does not change.
        links: shared by what flows.
    """

    def __init__(self, part: Part, before: WorldState, field: Field, links: FluidSharing) -> None:
        self._rows = rows = Rows(before, part.plan, field.flops_per_second, part.troubles)
        count = len(rows)
        self._before, self._field, self._paths, self._links = before, field, part.paths, links
        # What is read at every event is at hand, not behind other objects.
        self._kind, self._source, self._target = rows.kind, rows.source, rows.target
        self._num_bytes, self._compute_seconds = rows.num_bytes, rows.compute_seconds
        self._only_successor, self._waits_for = rows.only_successor, rows.waits_for
        self._pair, self._latency_seconds = array("i", part.paths.pair.tobytes()), part.paths.latency_seconds
        self._lanes: dict[int, Lane] = {}
        self._phase, self._outcome = bytearray(count), bytearray([Outcome.PENDING]) * count
        self._start, self._finish = (array("d", [math.nan]) * count for _ in range(2))
        self._notable = bytearray(count)
        self._late_for: dict[int, list[int]] = {}  # gathers that wait for a row beyond the plan
        self._broken_off_bytes: dict[int, int] = {}  # what the links carried of a transfer before it was stopped
        self._slots = ComputeSlots(field.slots)
        self._timers: list[tuple[float, int]] = []
        self._ready: list[int] = []
        self._now = before.clock_seconds

    def _meets_trouble(self, row: int) -> bool:
        """Let befall a notable row that would end now what is to befall it; tell whether it has not ended well."""
        return False

    def _tell(self, row: int) -> None:
        """Tell on that a notable row has ended."""

    def _close(self, row: int) -> None:
        """Close a gather, whose row waits for nothing any more."""
        raise NotImplementedError

    def _find_ready(self) -> None:
        self._ready = np.flatnonzero(np.frombuffer(self._waits_for, np.intc) == 0).tolist()

    def _start_ready(self) -> None:
        """Start what waits for nothing any more, in the order of the rows, then fill freed slots."""
        ready, now = self._ready, self._now
        if len(ready) == 1 and self._kind[ready[0]] == COMPUTE and self._is_idle_for(ready[0]):
            self._compute(ready.pop())
        while ready:
            row = heappop(ready)
            # A gather that lost its last own member to skipping may by now wait for late work.
            if self._phase[row] != WAITING or self._waits_for[row] > 0:
                continue
            kind = self._kind[row]
            if kind == COMPUTE:
                self._phase[row] = QUEUED
                self._slots.enqueue(self._source[row], row, now)
            elif kind == TRANSFER:
                self._start_transfer(row)
            else:
                self._close(row)
        if self._slots.are_touched:
            for row in self._slots.take_startable():
                self._compute(row)

    def _is_idle_for(self, row: int) -> bool:
        """Take a slot for a computation that is the only one to start at this instant, if it needs not queue."""
        starts = self._phase[row] == WAITING and self._waits_for[row] == 0
        return starts and self._slots.take_idle(self._source[row])

    def _compute(self, row: int) -> None:
        self._start[row] = self._now
        self._phase[row] = COMPUTING
        heappush(self._timers, (self._now + self._compute_seconds[row], row))

    def _start_transfer(self, row: int) -> None:
        self._start[row] = self._now
        if self._source[row] == self._target[row]:
            self._end(row)
        else:
            self._send(row)

    def _send(self, row: int) -> None:
        """Put a transfer on its way, for the first time or once more."""
        latency_seconds = self._latency_seconds[self._pair[row]]
        if latency_seconds > 0:
            self._phase[row] = LATENCY
            heappush(self._timers, (self._now + latency_seconds, row))
        else:
            self._start_flow(row, self._num_bytes[row])

    def _start_flow(self, row: int, num_bytes: float) -> None:
        if num_bytes == 0:
            self._end(row)
            return
        self._phase[row] = FLOWING
        lane = self._lanes.get(self._pair[row])
        if lane is None:
            lane = self._lanes[self._pair[row]] = self._lane(self._pair[row])
        self._links.start_on(lane, row, num_bytes, self._now)

    def _lane(self, pair: int) -> Lane:
        paths = self._paths
        return self._links.lane(
            paths.capacities_of(pair),
            paths.coefficients_of(pair),
            weight=paths.weight[pair],
            bound_bytes_per_second=paths.bound_bytes_per_second[pair],
        )

    def _end(self, row: int) -> None:
        """Mark an activity as done and count it off at those that wait for it."""
        if self._phase[row] == COMPUTING:
            self._slots.release(self._source[row])
        notable = self._notable[row]
        if notable and self._meets_trouble(row):
            return
        self._phase[row], self._outcome[row], self._finish[row] = ENDED, DONE, self._now
        if notable:
            self._tell(row)
        successor = self._only_successor[row]
        if successor < 0 or self._late_for:
            self._release_successors(row)
        else:
            left = self._waits_for[successor] = self._waits_for[successor] - 1
            if left == 0 and self._phase[successor] == WAITING:
                heappush(self._ready, successor)

    def _settle(self, row: int, outcome: Outcome) -> None:
        self._phase[row] = ENDED
        self._outcome[row] = outcome
        self._finish[row] = self._now

    def _release_successors(self, row: int) -> None:
        for successor in self._successors(row):
            self._count_off(successor)

    def _count_off(self, row: int) -> None:
        """Let a row wait for one thing less."""
        left = self._waits_for[row] = self._waits_for[row] - 1
        if left == 0 and self._phase[row] == WAITING:
            heappush(self._ready, row)

    def _successors(self, row: int) -> Sequence[int]:
        """Return the rows that wait for a row, those of the plan first."""
        of_plan = self._rows.successors(row)
        return [*of_plan, *self._late_for[row]] if row in self._late_for else of_plan

    def _break_off(self, row: int, outcome: Outcome) -> None:
        """Stop an activity; rows of others that wait for it wait no longer."""
        phase = self._phase[row]
        if phase == FLOWING:
            left = self._links.stop(row, self._now)
            self._broken_off_bytes[row] = self._rows.num_bytes[row] - round(left)
        elif phase == COMPUTING:
            self._slots.release(self._rows.source[row])
        elif phase == QUEUED:
            self._slots.withdraw(self._rows.source[row], row)
        self._settle(row, outcome)
        work = self._rows.work_of[row]
        for successor in self._successors(row):
            if work < 0 or self._rows.work_of[successor] != work:
                self._waits_for[successor] -= 1
                if self._waits_for[successor] == 0:
                    heappush(self._ready, successor)

    def _resume(self) -> None:
        """Put what was under way at the end of the last round back to where it was."""
        before = self._before
        for row in range(self._rows.offset):
            phase, remaining = Phase(int(before.phase[row])), float(before.remaining[row])
            self._phase[row] = phase
            self._start[row] = float(before.start_seconds[row])
            if phase is Phase.FLOWING:
                self._start_flow(row, remaining)
            elif phase in (Phase.LATENCY, Phase.COMPUTING):
                heappush(self._timers, (remaining, row))
                if phase is Phase.COMPUTING:
                    self._slots.occupy(self._rows.source[row])
            elif phase is Phase.QUEUED:
                self._slots.enqueue(self._rows.source[row], row, remaining)

    def _remaining(self, rows: Ints) -> Floats:
        """Return what WorldState says of each row's remainder."""
        known = (
            {row: seconds for seconds, row in self._timers} | self._slots.arrivals() | self._links.remaining(self._now)
        )
        return np.array([known.get(row, 0.0) for row in rows.tolist()], np.float64)
