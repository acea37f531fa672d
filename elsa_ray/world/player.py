"""Plays a plan: a discrete-event simulation on SimPy of transfers, computations and gathers.

Everything that falls on one instant is handled together, in the order of the rows: first what ends, then deadlines,
then what may start. So the log does not depend on the order in which equal times were scheduled.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from typing import Protocol

import numpy as np
import simpy

from elsa_ray.network.sharing import SAME_INSTANT, FluidSharing
from elsa_ray.world.compute import ComputeSlots
from elsa_ray.world.plan import Activities, ActivityKind, Floats, Ints, Plan, WorkItems, WorkKey
from elsa_ray.world.rows import Rows
from elsa_ray.world.timeline import Outcome, Timeline, WorldState


class Path(Protocol):
    """The way of a transfer: the capacities it draws from, and the sum of its links' latencies."""

    @property
    def capacities(self) -> Sequence[int]:
        """Indices of the capacities; one that is crossed twice occurs twice."""

    @property
    def latency_seconds(self) -> float:
        """Sum over the links."""


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
    """

    find_path: Callable[[int, int], Path]
    capacity_bytes_per_second: Sequence[float]
    flops_per_second: Sequence[float]
    slots: Sequence[int]


def play(plan: Plan, state: WorldState, field: Field) -> tuple[Timeline, WorldState]:
    """Play one round on top of what still goes on, and stop when the plan's last gather has closed.

    Returns:
        The timeline of all activities of the state and the plan, and the state after the round.

    Raises:
        RuntimeError: the plan can never end (a dependency without end), which is a protocol's mistake.
    """
    player = _Player(plan, state, field)
    environment = simpy.Environment(initial_time=state.clock_seconds)
    environment.run(environment.process(player.run(environment)))
    return player.timeline(), player.state()


_TRANSFER, _COMPUTE, _GATHER = (int(kind) for kind in ActivityKind)
_WAITING, _QUEUED, _LATENCY, _FLOWING, _COMPUTING, _ENDED = (int(phase) for phase in Phase)
_ENDS_WORK, _OPENS_GATHERS = 1, 2


class _Player:
    """One playing of one plan; rows are the merged ones of ``Rows``.

    What happens at an instant, and in which order, is ``_handle_instant``. How long a row takes is decided when it
    starts: ``_start_transfer`` and ``_fill_slots``. ``_abandon`` stops all that a work item still does.
    """

    def __init__(self, plan: Plan, state: WorldState, field: Field) -> None:
        self._plan, self._before, self._field = plan, state, field
        self._rows = rows = Rows(state, plan, field.flops_per_second)
        count = len(rows)
        self._phase, self._outcome = bytearray(count), bytearray([Outcome.PENDING]) * count
        self._start, self._finish = (array("d", [math.nan]) * count for _ in range(2))
        self._waits_for = rows.waits_for
        self._broken_off_bytes: dict[int, int] = {}  # what the links carried of a transfer before it was stopped
        self._notable = bytearray(count)
        self._unfinished_at = self._unfinished_work()
        self._abandoned: dict[Outcome, list[WorkKey]] = {Outcome.DROPPED: [], Outcome.SKIPPED: []}
        self._inbox: dict[int, list[WorkKey]] = defaultdict(list)
        for node, key in state.inbox:
            self._inbox[node].append(key)
        self._gather_of_row = {int(row) + rows.offset: g for g, row in enumerate(plan.gathers.activity)}
        self._gathers_opened_by: dict[int, list[int]] = defaultdict(list)
        for gather, opener in enumerate(plan.gathers.opener.tolist()):
            opening_row = opener + rows.offset if opener >= 0 else -1
            self._gathers_opened_by[opening_row].append(gather)
            if opening_row >= 0:
                self._notable[opening_row] |= _OPENS_GATHERS
        self._late_for: dict[int, list[int]] = defaultdict(list)  # gathers that wait for a row beyond the plan
        self._num_members = Counter(plan.work.gather.tolist())
        self._arrivals: list[tuple[WorkKey, ...]] = [()] * len(plan.gathers)
        self._links = FluidSharing(field.capacity_bytes_per_second)
        self._slots = ComputeSlots(field.slots)
        self._timers: list[tuple[float, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._ready: list[int] = []
        self._now = state.clock_seconds
        self._over = False

    def run(self, environment: simpy.Environment) -> Generator[simpy.Event, None, None]:
        """Advance the clock from instant to instant until the last gather has closed."""
        self._resume()
        self._open_gathers(-1)
        waits_for = np.frombuffer(self._waits_for, np.intc)
        self._ready = np.flatnonzero(waits_for == 0).tolist()
        del waits_for
        self._start_ready()
        while not self._over:
            instant = self._next_instant()
            if instant is None:
                raise RuntimeError(f"round {self._plan.round_index}: nothing is under way, and the round is not over")
            # SimPy's own sum may have been rounded past the last instant.
            yield environment.timeout(max(0.0, instant - environment.now))
            self._now = instant
            self._handle_instant()

    def _handle_instant(self) -> None:
        """Let end what ends now, close what is due, and start what may start."""
        limit = self._now * (1 + SAME_INSTANT)
        due = [row for row, _ in self._links.complete_until(self._now)]
        due += _pop_due(self._timers, limit)
        if len(due) > 1:
            due.sort()
        for row in due:
            phase = self._phase[row]
            if phase == _LATENCY:
                self._start_flow(row, self._rows.num_bytes[row])
            elif phase != _ENDED:
                self._end(row)
        for row in sorted(_pop_due(self._deadlines, limit)):
            self._close(row)
        self._start_ready()

    def _next_instant(self) -> float | None:
        times = [heap[0][0] for heap in (self._timers, self._deadlines) if heap]
        flow = self._links.next_completion()
        return min([*times, flow] if flow is not None else times, default=None)

    def _start_ready(self) -> None:
        """Start what waits for nothing any more, in the order of the rows, then fill freed slots."""
        while self._ready:
            row = heappop(self._ready)
            # A gather that lost its last own member to skipping may by now wait for late work.
            if self._phase[row] != _WAITING or self._waits_for[row] > 0:
                continue
            kind = self._rows.kind[row]
            if kind == _COMPUTE:
                self._phase[row] = _QUEUED
                self._slots.enqueue(self._rows.source[row], row, self._now)
            elif kind == _TRANSFER:
                self._start_transfer(row)
            else:
                self._close(row)
        self._fill_slots()

    def _start_transfer(self, row: int) -> None:
        self._start[row] = self._now
        source, target = self._rows.source[row], self._rows.target[row]
        if source == target:
            self._end(row)
            return
        latency_seconds = self._field.find_path(source, target).latency_seconds
        if latency_seconds > 0:
            self._phase[row] = _LATENCY
            heappush(self._timers, (self._now + latency_seconds, row))
        else:
            self._start_flow(row, self._rows.num_bytes[row])

    def _start_flow(self, row: int, num_bytes: float) -> None:
        if num_bytes == 0:
            self._end(row)
            return
        self._phase[row] = _FLOWING
        path = self._field.find_path(self._rows.source[row], self._rows.target[row])
        self._links.start(row, num_bytes, path.capacities, self._now)

    def _fill_slots(self) -> None:
        for row in self._slots.take_startable():
            self._start[row] = self._now
            self._phase[row] = _COMPUTING
            heappush(self._timers, (self._now + self._rows.compute_seconds[row], row))

    def _end(self, row: int) -> None:
        """Mark an activity as done and count it off at those that wait for it."""
        if self._phase[row] == _COMPUTING:
            self._slots.release(self._rows.source[row])
        self._settle(row, Outcome.DONE)
        if self._notable[row]:
            self._tell_gathers(row)
        self._release_successors(row)

    def _tell_gathers(self, row: int) -> None:
        """Deliver the work that a row ends, and open the gathers that it opens."""
        if self._notable[row] & _ENDS_WORK:
            work, node = self._rows.work_of[row], self._rows.target[row]
            self._unfinished_at[node].discard(work)
            self._inbox[node].append(self._rows.work.key(work))
        if self._notable[row] & _OPENS_GATHERS:
            self._open_gathers(row)

    def _settle(self, row: int, outcome: Outcome) -> None:
        self._phase[row] = _ENDED
        self._outcome[row] = outcome
        self._finish[row] = self._now

    def _release_successors(self, row: int) -> None:
        waits_for = self._waits_for
        for successor in self._successors(row):
            left = waits_for[successor] = waits_for[successor] - 1
            if left == 0 and self._phase[successor] == _WAITING:
                heappush(self._ready, successor)

    def _successors(self, row: int) -> Sequence[int]:
        """Return the rows that wait for a row, those of the plan first."""
        of_plan = self._rows.successors(row)
        return [*of_plan, *self._late_for[row]] if row in self._late_for else of_plan

    def _close(self, row: int) -> None:
        """Close a gather: take what has arrived, deal with what is late, let the next round open."""
        if self._phase[row] == _ENDED:
            return
        gather = self._gather_of_row[row]
        node = int(self._plan.gathers.node[gather])
        self._arrivals[gather] = tuple(sorted(self._inbox.pop(node, ())))
        self._start[row] = self._now
        self._settle(row, Outcome.DONE)
        self._deal_with_late_work(gather, node)
        self._open_gathers(row)
        self._release_successors(row)
        self._over = self._over or gather == len(self._plan.gathers) - 1

    def _deal_with_late_work(self, gather: int, node: int) -> None:
        """Drop what has missed this gather, or keep it and let its clients sit out the node's next edge round."""
        edge_round = int(self._plan.gathers.edge_round[gather])
        here = sorted(self._unfinished_at[node])
        late = [work for work in here if self._edge_round_in_plan(work) <= edge_round]
        if not self._plan.keep_late:
            for work in late:
                self._abandon(work, Outcome.DROPPED)
            return
        busy = {int(self._rows.work.client[work]) for work in late}
        for work in here:
            if self._edge_round_in_plan(work) == edge_round + 1 and int(self._rows.work.client[work]) in busy:
                self._abandon(work, Outcome.SKIPPED)

    def _unfinished_work(self) -> dict[int, set[int]]:
        """Return the work that goes on, by the node that gathers it: where its last activity ends."""
        rows, unfinished = self._rows, defaultdict[int, set[int]](set)
        for work in np.flatnonzero(rows.last_row_of_work >= 0).tolist():
            last = int(rows.last_row_of_work[work])
            unfinished[rows.target[last]].add(work)
            self._notable[last] |= _ENDS_WORK
        return unfinished

    def _edge_round_in_plan(self, work: int) -> int:
        """Return the edge round that waits for the work; -1 for work carried over from an earlier global round."""
        gather = int(self._rows.work.gather[work])
        return int(self._plan.gathers.edge_round[gather]) if gather >= 0 else -1

    def _abandon(self, work: int, outcome: Outcome) -> None:
        """Stop all activities of a work item; those that wait for it wait no longer."""
        for row in self._rows.rows_of_work(work):
            phase = self._phase[row]
            if phase == _ENDED:
                continue
            if phase == _FLOWING:
                left = self._links.stop(row, self._now)
                self._broken_off_bytes[row] = self._rows.num_bytes[row] - round(left)
            elif phase == _COMPUTING:
                self._slots.release(self._rows.source[row])
            elif phase == _QUEUED:
                self._slots.withdraw(self._rows.source[row], row)
            self._settle(row, outcome)
            for successor in self._successors(row):
                if self._rows.work_of[successor] != work:
                    self._waits_for[successor] -= 1
                    if self._waits_for[successor] == 0:
                        heappush(self._ready, successor)
        self._unfinished_at[self._rows.target[int(self._rows.last_row_of_work[work])]].discard(work)
        self._num_members[int(self._rows.work.gather[work])] -= 1
        self._abandoned[outcome].append(self._rows.work.key(work))

    def _open_gathers(self, opener: int) -> None:
        """Open the gathers that this row opens; -1 is the start of the plan."""
        for gather in self._gathers_opened_by.get(opener, ()):
            row = int(self._plan.gathers.activity[gather]) + self._rows.offset
            if self._num_members[gather] == 0:
                self._wait_for_late_work(row, gather)
            deadline = float(self._plan.gathers.deadline_seconds[gather])
            if math.isfinite(deadline):
                heappush(self._deadlines, (self._now + deadline, row))

    def _wait_for_late_work(self, row: int, gather: int) -> None:
        """Let a gather without members of its own wait for what is late at its node.

        Without this a round in which everybody is still busy would close at once, and time would stand still.
        """
        edge_round = int(self._plan.gathers.edge_round[gather])
        for work in sorted(self._unfinished_at[int(self._plan.gathers.node[gather])]):
            if self._edge_round_in_plan(work) < edge_round:
                self._late_for[int(self._rows.last_row_of_work[work])].append(row)
                self._waits_for[row] += 1

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

    def timeline(self) -> Timeline:
        """Return what happened."""
        rows = self._rows
        finish, outcome = np.frombuffer(self._finish), np.frombuffer(self._outcome, np.uint8).astype(np.int64)
        whole = (outcome == Outcome.DONE) & (rows.activities.kind == ActivityKind.TRANSFER)
        carried_bytes = np.where(whole, rows.activities.num_bytes, 0)
        carried_bytes[list(self._broken_off_bytes)] = list(self._broken_off_bytes.values())
        return Timeline(
            begin_seconds=self._before.clock_seconds,
            end_seconds=self._now,
            activities=rows.activities,
            start_seconds=np.frombuffer(self._start),
            finish_seconds=finish,
            outcome=outcome,
            carried_bytes=carried_bytes,
            work=rows.work,
            arrivals=tuple(self._arrivals),
            gather_seconds=finish[self._plan.gathers.activity + rows.offset],
            dropped=tuple(sorted(self._abandoned[Outcome.DROPPED])),
            skipped=tuple(sorted(self._abandoned[Outcome.SKIPPED])),
            pending=tuple(sorted(rows.work.key(work) for work in self._unfinished())),
        )

    def state(self) -> WorldState:
        """Return the world as it goes on."""
        work, phase = self._rows.work, np.frombuffer(self._phase, np.uint8)
        rows = np.flatnonzero(phase != _ENDED)
        inbox = tuple((node, key) for node in sorted(self._inbox) for key in sorted(self._inbox[node]))
        kept = self._unfinished()
        if inbox:
            work_of_key = {work.key(item): item for item in range(len(work))}
            kept |= {work_of_key[key] for _, key in inbox}
        items = np.array(sorted(kept), np.int64)
        new_item = np.full(len(work) + 1, -1, np.int64)  # the last place is that of rows without work
        new_item[items] = np.arange(len(items))
        predecessors, successors = self._rows.dependencies_among(rows)
        activities = self._rows.activities.take(rows)
        return WorldState(
            clock_seconds=self._now,
            activities=activities.with_columns(work=new_item[activities.work]),
            predecessors=predecessors,
            successors=successors,
            phase=phase[rows].astype(np.int64),
            start_seconds=np.frombuffer(self._start)[rows],
            remaining=self._remaining(rows),
            work=work.take(items).with_columns(gather=np.full(len(items), -1)),
            inbox=inbox,
        )

    def _unfinished(self) -> set[int]:
        return {work for works in self._unfinished_at.values() for work in works}

    def _remaining(self, rows: Ints) -> Floats:
        """Return what WorldState says of each row's remainder."""
        known = (
            {row: seconds for seconds, row in self._timers} | self._slots.arrivals() | self._links.remaining(self._now)
        )
        return np.array([known.get(row, 0.0) for row in rows.tolist()], np.float64)


def _pop_due(heap: list[tuple[float, int]], limit: float) -> list[int]:
    """Take the rows out of a heap of (seconds, row) that are due by ``limit``."""
    due = []
    while heap and heap[0][0] <= limit:
        due.append(heappop(heap)[1])
    return due


def initial_state() -> WorldState:
    """Return the world before the first round: time zero, nothing under way."""
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return WorldState(0.0, Activities.empty(), none, none, none, nothing, nothing, WorkItems.empty(), ())
