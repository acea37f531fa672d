"""Plays a plan: a discrete-event simulation on SimPy of transfers, computations and gathers.

Everything that falls on one instant is handled together, in the order of the rows: first what ends, then deadlines,
then what may start. So the log does not depend on the order in which equal times were scheduled.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import simpy

from elsa_ray.network.sharing import SAME_INSTANT, FluidSharing
from elsa_ray.world.compute import ComputeSlots
from elsa_ray.world.plan import Activities, ActivityKind, Floats, Ints, Plan, WorkItems, WorkKey
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


class _Player:
    """One playing of one plan. Lists are indexed by the merged row: carried over first, then the plan's."""

    def __init__(self, plan: Plan, state: WorldState, field: Field) -> None:
        self._plan, self._before, self._field = plan, state, field
        self._offset = len(state.activities)
        self._work = _merged_work(state, plan)
        self._rows = _merged_activities(state, plan)
        count = len(self._rows)
        # Plain lists: single elements of numpy arrays are slow to read.
        self._kind, self._of_work = self._rows.kind.tolist(), self._rows.work.tolist()
        self._source, self._target = self._rows.source.tolist(), self._rows.target.tolist()
        self._num_bytes, self._flops = self._rows.num_bytes.tolist(), self._rows.flops.tolist()
        self._phase = [Phase.WAITING] * count
        self._outcome = [Outcome.PENDING] * count
        self._start, self._finish = [np.nan] * count, [np.nan] * count
        self._carried_bytes = [0] * count
        self._link_dependencies(count)
        self._rows_of_work: dict[int, list[int]] = defaultdict(list)
        for row, work in enumerate(self._of_work):
            if work >= 0:
                self._rows_of_work[work].append(row)
        self._unfinished_at: dict[int, set[int]] = defaultdict(set)
        for work in self._rows_of_work:
            self._unfinished_at[self._destination(work)].add(work)
        self._abandoned: dict[Outcome, list[WorkKey]] = {Outcome.DROPPED: [], Outcome.SKIPPED: []}
        self._inbox: dict[int, list[WorkKey]] = defaultdict(list)
        for node, key in state.inbox:
            self._inbox[node].append(key)
        self._gather_of_row = {int(row) + self._offset: g for g, row in enumerate(plan.gathers.activity)}
        self._gathers_opened_by: dict[int, list[int]] = defaultdict(list)
        for gather, opener in enumerate(plan.gathers.opener.tolist()):
            self._gathers_opened_by[opener + self._offset if opener >= 0 else -1].append(gather)
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
        self._ready = [row for row, left in enumerate(self._waits_for) if left == 0]
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
        limit = self._now * (1 + SAME_INSTANT)
        flowed = [row for row, _ in self._links.complete_until(self._now)]
        for row in sorted(flowed + _pop_due(self._timers, limit)):
            if self._phase[row] is Phase.LATENCY:
                self._start_flow(row, self._num_bytes[row])
            elif self._phase[row] is not Phase.ENDED:
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
            row = heapq.heappop(self._ready)
            # A gather that lost its last own member to skipping may by now wait for late work.
            if self._phase[row] is not Phase.WAITING or self._waits_for[row] > 0:
                continue
            if self._kind[row] == ActivityKind.GATHER:
                self._close(row)
            elif self._kind[row] == ActivityKind.TRANSFER:
                self._start_transfer(row)
            else:
                self._phase[row] = Phase.QUEUED
                self._slots.enqueue(self._source[row], row, self._now)
        self._fill_slots()

    def _start_transfer(self, row: int) -> None:
        self._start[row] = self._now
        if self._source[row] == self._target[row]:
            self._end(row)
            return
        path = self._field.find_path(self._source[row], self._target[row])
        if path.latency_seconds > 0:
            self._phase[row] = Phase.LATENCY
            heapq.heappush(self._timers, (self._now + path.latency_seconds, row))
        else:
            self._start_flow(row, self._num_bytes[row])

    def _start_flow(self, row: int, num_bytes: float) -> None:
        if num_bytes == 0:
            self._end(row)
            return
        self._phase[row] = Phase.FLOWING
        path = self._field.find_path(self._source[row], self._target[row])
        self._links.start(row, num_bytes, path.capacities, self._now)

    def _fill_slots(self) -> None:
        for row in self._slots.take_startable():
            self._start[row] = self._now
            self._phase[row] = Phase.COMPUTING
            seconds = self._flops[row] / self._field.flops_per_second[self._source[row]]
            heapq.heappush(self._timers, (self._now + seconds, row))

    def _end(self, row: int) -> None:
        """Mark an activity as done and count it off at those that wait for it."""
        if self._phase[row] is Phase.COMPUTING:
            self._slots.release(self._source[row])
        self._settle(row, Outcome.DONE)
        if self._kind[row] == ActivityKind.TRANSFER:
            self._carried_bytes[row] = self._num_bytes[row]
        work = self._of_work[row]
        if work >= 0 and row == self._rows_of_work[work][-1]:
            self._unfinished_at[self._target[row]].discard(work)
            self._inbox[self._target[row]].append(self._work.key(work))
        self._open_gathers(row)
        self._release_successors(row)

    def _settle(self, row: int, outcome: Outcome) -> None:
        self._phase[row] = Phase.ENDED
        self._outcome[row] = outcome
        self._finish[row] = self._now

    def _release_successors(self, row: int) -> None:
        for successor in self._successors[row]:
            self._waits_for[successor] -= 1
            if self._waits_for[successor] == 0 and self._phase[successor] is Phase.WAITING:
                heapq.heappush(self._ready, successor)

    def _close(self, row: int) -> None:
        """Close a gather: take what has arrived, deal with what is late, let the next round open."""
        if self._phase[row] is Phase.ENDED:
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
        busy = {int(self._work.client[work]) for work in late}
        for work in here:
            if self._edge_round_in_plan(work) == edge_round + 1 and int(self._work.client[work]) in busy:
                self._abandon(work, Outcome.SKIPPED)

    def _destination(self, work: int) -> int:
        """Return the node that gathers the work: where its last activity, the upload, ends."""
        return int(self._target[self._rows_of_work[work][-1]])

    def _edge_round_in_plan(self, work: int) -> int:
        """Return the edge round that waits for the work; -1 for work carried over from an earlier global round."""
        gather = int(self._work.gather[work])
        return int(self._plan.gathers.edge_round[gather]) if gather >= 0 else -1

    def _abandon(self, work: int, outcome: Outcome) -> None:
        """Stop all activities of a work item; those that wait for it wait no longer."""
        for row in self._rows_of_work[work]:
            if self._phase[row] is Phase.ENDED:
                continue
            if self._phase[row] is Phase.FLOWING:
                left = self._links.stop(row, self._now)
                self._carried_bytes[row] = self._num_bytes[row] - round(left)
            elif self._phase[row] is Phase.COMPUTING:
                self._slots.release(self._source[row])
            elif self._phase[row] is Phase.QUEUED:
                self._slots.withdraw(self._source[row], row)
            self._settle(row, outcome)
            for successor in self._successors[row]:
                if self._of_work[successor] != work:
                    self._waits_for[successor] -= 1
                    if self._waits_for[successor] == 0:
                        heapq.heappush(self._ready, successor)
        self._unfinished_at[self._destination(work)].discard(work)
        self._num_members[int(self._work.gather[work])] -= 1
        self._abandoned[outcome].append(self._work.key(work))

    def _open_gathers(self, opener: int) -> None:
        """Open the gathers that this row opens; -1 is the start of the plan."""
        for gather in self._gathers_opened_by.get(opener, ()):
            row = int(self._plan.gathers.activity[gather]) + self._offset
            if self._num_members[gather] == 0:
                self._wait_for_late_work(row, gather)
            deadline = float(self._plan.gathers.deadline_seconds[gather])
            if math.isfinite(deadline):
                heapq.heappush(self._deadlines, (self._now + deadline, row))

    def _wait_for_late_work(self, row: int, gather: int) -> None:
        """Let a gather without members of its own wait for what is late at its node.

        Without this a round in which everybody is still busy would close at once, and time would stand still.
        """
        edge_round = int(self._plan.gathers.edge_round[gather])
        for work in sorted(self._unfinished_at[int(self._plan.gathers.node[gather])]):
            if self._edge_round_in_plan(work) < edge_round:
                self._successors[self._rows_of_work[work][-1]].append(row)
                self._waits_for[row] += 1

    def _link_dependencies(self, count: int) -> None:
        predecessors = np.concatenate([self._before.predecessors, self._plan.predecessors + self._offset])
        successors = np.concatenate([self._before.successors, self._plan.successors + self._offset])
        self._waits_for: list[int] = np.bincount(successors, minlength=count).tolist()
        self._successors: list[list[int]] = [[] for _ in range(count)]
        for predecessor, successor in zip(predecessors.tolist(), successors.tolist(), strict=True):
            self._successors[predecessor].append(successor)

    def _resume(self) -> None:
        """Put what was under way at the end of the last round back to where it was."""
        before = self._before
        for row in range(self._offset):
            phase, remaining = Phase(int(before.phase[row])), float(before.remaining[row])
            self._phase[row] = phase
            self._start[row] = float(before.start_seconds[row])
            if phase is Phase.FLOWING:
                self._start_flow(row, remaining)
            elif phase in (Phase.LATENCY, Phase.COMPUTING):
                heapq.heappush(self._timers, (remaining, row))
                if phase is Phase.COMPUTING:
                    self._slots.occupy(self._source[row])
            elif phase is Phase.QUEUED:
                self._slots.enqueue(self._source[row], row, remaining)

    def timeline(self) -> Timeline:
        """Return what happened."""
        rows = [int(row) + self._offset for row in self._plan.gathers.activity]
        return Timeline(
            begin_seconds=self._before.clock_seconds,
            end_seconds=self._now,
            activities=self._rows,
            start_seconds=np.array(self._start, np.float64),
            finish_seconds=np.array(self._finish, np.float64),
            outcome=np.array(self._outcome, np.int64),
            carried_bytes=np.array(self._carried_bytes, np.int64),
            work=self._work,
            arrivals=tuple(self._arrivals),
            gather_seconds=np.array([self._finish[row] for row in rows], np.float64),
            dropped=tuple(sorted(self._abandoned[Outcome.DROPPED])),
            skipped=tuple(sorted(self._abandoned[Outcome.SKIPPED])),
            pending=tuple(sorted(self._work.key(work) for work in self._unfinished())),
        )

    def state(self) -> WorldState:
        """Return the world as it goes on."""
        rows = np.array([row for row, phase in enumerate(self._phase) if phase is not Phase.ENDED], np.int64)
        inbox = tuple((node, key) for node in sorted(self._inbox) for key in sorted(self._inbox[node]))
        kept = self._unfinished()
        if inbox:
            work_of_key = {self._work.key(work): work for work in range(len(self._work))}
            kept |= {work_of_key[key] for _, key in inbox}
        new_row = {work: position for position, work in enumerate(sorted(kept))} | {-1: -1}
        predecessors, successors = self._dependencies_among(rows)
        activities = self._rows.take(rows)
        renumbered = np.array([new_row[work] for work in activities.work.tolist()], np.int64)
        return WorldState(
            clock_seconds=self._now,
            activities=_replaced(activities, work=renumbered),
            predecessors=predecessors,
            successors=successors,
            phase=np.array([int(self._phase[row]) for row in rows], np.int64),
            start_seconds=np.array([self._start[row] for row in rows], np.float64),
            remaining=self._remaining(rows),
            work=_replaced(self._work.take(np.array(sorted(kept), np.int64)), gather=np.full(len(kept), -1)),
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

    def _dependencies_among(self, rows: Ints) -> tuple[Ints, Ints]:
        renumber = {int(row): position for position, row in enumerate(rows)}
        pairs = [(row, after) for row in renumber for after in self._successors[row] if after in renumber]
        before = np.array([renumber[row] for row, _ in pairs], np.int64)
        return before, np.array([renumber[after] for _, after in pairs], np.int64)


def _pop_due(heap: list[tuple[float, int]], limit: float) -> list[int]:
    """Take the rows out of a heap of (seconds, row) that are due by ``limit``."""
    due = []
    while heap and heap[0][0] <= limit:
        due.append(heapq.heappop(heap)[1])
    return due


def initial_state() -> WorldState:
    """Return the world before the first round: time zero, nothing under way."""
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return WorldState(0.0, Activities.empty(), none, none, none, nothing, nothing, WorkItems.empty(), ())


def _merged_work(state: WorldState, plan: Plan) -> WorkItems:
    return WorkItems.concatenate([state.work, plan.work])


def _merged_activities(state: WorldState, plan: Plan) -> Activities:
    shifted = np.where(plan.activities.work >= 0, plan.activities.work + len(state.work), -1)
    return Activities.concatenate([state.activities, _replaced(plan.activities, work=shifted)])


def _replaced(table: Activities | WorkItems, **columns: Ints):  # type: ignore[no-untyped-def]
    return type(table)(**{**vars(table), **columns})
