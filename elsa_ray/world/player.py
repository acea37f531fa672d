"""Plays a plan: a discrete-event simulation on SimPy of transfers, computations and gathers.

Everything that falls on one instant is handled together, in the order of the rows: first what ends, then turns of the
world (faults, clients that go off), then deadlines and quorums, then what may start. So the log does not depend on the
order in which equal times were scheduled.
"""

from __future__ import annotations

import gc
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import IntEnum
from heapq import heappop, heappush, heapreplace

import numpy as np
import simpy

from elsa_ray.network.schedule import CapacitySchedule, PiecewiseConstant
from elsa_ray.network.sharing import SAME_INSTANT, Lane
from elsa_ray.world.compute import ComputeSlots
from elsa_ray.world.disturbances import UNDISTURBED, Disturbances
from elsa_ray.world.faults import Spell, Target, capacity_factors
from elsa_ray.world.incidents import IncidentKind, IncidentLog
from elsa_ray.world.parts import Parts, parts_of
from elsa_ray.world.paths import Path, Paths
from elsa_ray.world.plan import Activities, ActivityKind, Floats, Ints, Plan, WorkItems, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.rows import Rows, merged_activities
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from elsa_ray.world.troubles import Cause, Troubles
from elsa_ray.world.turns import TurnKind, Turns


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
    flops_per_second: Sequence[float]
    slots: Sequence[int]
    client_nodes: Sequence[int] = ()
    bandwidths: Mapping[int, PiecewiseConstant] = dataclass_field(default_factory=dict)
    usable_part: float = 1.0


def play(
    plan: Plan, state: WorldState, field: Field, disturbances: Disturbances = UNDISTURBED
) -> tuple[Timeline, WorldState]:
    """Play one round on top of what still goes on, and stop when the plan's last gather has closed.

    Args:
        plan: of the round.
        state: of the world before it.
        field: what does not change.
        disturbances: faults and the like.

    Returns:
        The timeline of all activities of the state and the plan, and the state after the round.

    Raises:
        RuntimeError: the plan can never end (a dependency without end), which is a protocol's mistake.
    """
    paths = Paths(merged_activities(state, plan), field.find_path)
    with _without_collection():
        parts = parts_of(plan, paths) if _may_fall_apart(plan, state, field, disturbances) else None
        player = _Player(plan, state, field, disturbances, paths, parts)
        if parts is not None and not player.play_apart(parts):
            player, parts = _Player(plan, state, field, disturbances, paths), None
        if parts is None:
            player.play_whole()
    return player.timeline(), player.state()


def _may_fall_apart(plan: Plan, state: WorldState, field: Field, disturbances: Disturbances) -> bool:
    """Tell whether nothing goes on from one round to the next, or befalls several edges at a time."""
    goes_on = len(state.activities) > 0 or len(state.inbox) > 0 or plan.keep_late
    return not (goes_on or field.bandwidths or disturbances.spells or disturbances.off_seconds is not None)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector out: playing makes no cycles, and millions of events would make it look for them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_TRANSFER, _COMPUTE, _GATHER = (int(kind) for kind in ActivityKind)
_WAITING, _QUEUED, _LATENCY, _FLOWING, _COMPUTING, _ENDED = (int(phase) for phase in Phase)
_DONE = int(Outcome.DONE)
_SURELY = 1 + SAME_INSTANT
"""What may be one instant is asked for, and the links decide."""
_ENDS_WORK, _OPENS_GATHERS, _TROUBLED = 1, 2, 4


class _Player:
    """One playing of one plan; rows are the merged ones of ``Rows``.

    What happens at an instant, and in which order, is ``_handle_instant``. How long a row takes is decided when it
    starts: ``_send`` and ``_compute``. ``_abandon`` stops all that a work item still does.
    """

    def __init__(
        self,
        plan: Plan,
        state: WorldState,
        field: Field,
        disturbances: Disturbances,
        paths: Paths,
        parts: Parts | None = None,
    ) -> None:
        self._plan, self._before, self._field = plan, state, field
        is_inner = parts.is_inner if parts is not None else None
        self._rows = rows = Rows(state, plan, field.flops_per_second, disturbances.troubles, is_inner)
        count = len(rows)
        # What is read at every event is at hand, not behind other objects.
        self._kind, self._source, self._target = rows.kind, rows.source, rows.target
        self._num_bytes, self._compute_seconds = rows.num_bytes, rows.compute_seconds
        self._only_successor = rows.only_successor
        self._paths, self._pair, self._latency_seconds = paths, array("i", paths.pair.tobytes()), paths.latency_seconds
        self._lanes: dict[int, Lane] = {}
        self._phase, self._outcome = bytearray(count), bytearray([Outcome.PENDING]) * count
        self._start, self._finish = (array("d", [math.nan]) * count for _ in range(2))
        self._waits_for = rows.waits_for
        self._broken_off_bytes: dict[int, int] = {}  # what the links carried of a transfer before it was stopped
        self._notable = bytearray(count)
        self._unfinished_at = self._unfinished_work()
        self._dropped: list[tuple[WorkKey, Cause, float]] = []
        self._skipped: list[WorkKey] = []
        self._inbox: dict[int, list[WorkKey]] = defaultdict(list)
        for node, key in state.inbox:
            self._inbox[node].append(key)
        self._gather_of_row = {int(row) + rows.offset: g for g, row in enumerate(plan.gathers.activity)}
        self._gathers_opened_by: dict[int, list[int]] = defaultdict(list)
        for gather, opener in enumerate(plan.gathers.opener.tolist()):
            if parts is not None and gather in parts.opened_by_others:
                continue
            opening_row = opener + rows.offset if opener >= 0 else -1
            self._gathers_opened_by[opening_row].append(gather)
            if opening_row >= 0:
                self._notable[opening_row] |= _OPENS_GATHERS
        self._late_for: dict[int, list[int]] = {}  # gathers that wait for a row beyond the plan
        self._num_members = Counter(plan.work.gather.tolist())
        self._quorum_left = plan.gathers.quorum.tolist()  # 0 where there is none
        self._arrivals: list[tuple[WorkKey, ...]] = [()] * len(plan.gathers)
        schedule = CapacitySchedule(
            field.capacity_bytes_per_second,
            field.bandwidths,
            capacity_factors(disturbances.spells),
            usable_part=field.usable_part,
        )
        self._links = schedule.sharing(state.clock_seconds)
        self._capacity_changes = schedule.changes(state.clock_seconds)
        self._slots = ComputeSlots(field.slots)
        self._timers: list[tuple[float, int]] = []
        self._free_at: dict[int, list[float]] = {}  # where all is foreseen: when each slot of a node is free, a heap
        self._deadlines: list[tuple[float, int]] = []
        self._ready: list[int] = []
        self._spells = disturbances.spells
        self._turns = Turns(disturbances, rows.work.client, state.settled_seconds)
        self._tidings: list[tuple[float, int]] = []  # of other parts, where each is played by itself
        self._silent: Counter[int] = Counter()  # nodes that do not answer, by how many faults
        self._held: list[int] = []  # gathers that are due while their node does not answer
        self._lost_nodes: set[int] = set()
        self._incidents = IncidentLog()
        self._spoilt, self._resent = self._mark_troubles(rows.troubles)
        self._now = state.clock_seconds
        self._next_turn, self._next_flow = self._find_next_turn(), math.inf
        self._over = False

    def play_whole(self) -> None:
        """Play all rows together until the last gather has closed.

        Raises:
            RuntimeError: nothing is under way, and it has not.
        """
        self._resume()
        self._resume_spells()
        self._open_gathers(-1)
        waits_for = np.frombuffer(self._waits_for, np.intc)
        self._ready = np.flatnonzero(waits_for == 0).tolist()
        del waits_for
        self._take_turns(self._now)
        self._next_turn = self._find_next_turn()
        self._run()
        if not self._over:
            raise RuntimeError(f"round {self._plan.round_index}: nothing is under way, and the round is not over")

    def play_apart(self, parts: Parts) -> bool:
        """Play each part by itself; tell whether that was right. Where it was not, this player is of no more use."""
        is_calm = self._is_calm()
        rows_by_part = np.argsort(parts.of_row, kind="stable")
        ends = np.cumsum(np.bincount(parts.of_row, minlength=parts.behind + 1))
        opener = self._plan.gathers.opener
        part_of_gather = parts.of_row[self._plan.gathers.activity]
        for part, rows in enumerate(np.split(rows_by_part, ends[:-1])):
            self._now = self._before.clock_seconds
            self._links.rewind(self._now)
            self._lanes.clear()
            waits_for = np.frombuffer(self._waits_for, np.intc)[rows]
            self._ready = rows[waits_for == 0].tolist()
            self._tidings = self._tidings_for(parts, part)
            self._open(np.flatnonzero((part_of_gather == part) & (opener < 0)).tolist())
            self._next_turn = self._find_next_turn()
            if is_calm:
                self._run_calmly()
            else:
                self._run()
        self._incidents.sort()
        start, finish = np.frombuffer(self._start), np.frombuffer(self._finish)
        is_done = self._over and self._phase.count(_ENDED) == len(self._phase)
        return is_done and bool(finish.max() <= self._now * _SURELY) and parts.never_met(start, finish)

    def _tidings_for(self, parts: Parts, part: int) -> list[tuple[float, int]]:
        """Return what a part hears of those before it, the last first: when, and a row that waits for it, or ~gather.

        What has not ended is never heard of.
        """
        sources, whom = parts.tidings_for(part)
        seconds = np.frombuffer(self._finish)[sources].tolist()
        tidings = [entry for entry in zip(seconds, whom.tolist(), strict=True) if not math.isnan(entry[0])]
        return sorted(tidings, reverse=True)

    def _hear(self, limit: float) -> None:
        """Take note of what has ended in other parts by ``limit``."""
        tidings = self._tidings
        while tidings and tidings[-1][0] <= limit:
            whom = tidings.pop()[1]
            if whom < 0:
                self._open([~whom])
                continue
            left = self._waits_for[whom] = self._waits_for[whom] - 1
            if left == 0 and self._phase[whom] == _WAITING:
                heappush(self._ready, whom)

    def _run(self) -> None:
        """Let SimPy move the clock until the last gather has closed, or nothing is under way any more."""
        environment = simpy.Environment(initial_time=self._now)
        environment.run(environment.process(self._instants(environment)))

    def _instants(self, environment: simpy.Environment) -> Generator[simpy.Event, None, None]:
        self._start_ready()
        tick = _Tick(environment)
        while not self._over:
            instant = self._next_instant()
            if instant == math.inf:
                return
            yield tick.at(instant)
            self._now = instant
            self._handle_instant()

    def _is_calm(self) -> bool:
        """Tell whether nothing that has begun can be broken off."""
        gathers, troubles = self._plan.gathers, self._rows.troubles
        is_troubled = troubles is not None and bool((troubles.cause != Cause.NONE).any() or troubles.spoilt.any())
        return not (is_troubled or np.isfinite(gathers.deadline_seconds).any() or gathers.quorum.any())

    def _run_calmly(self) -> None:
        """Play a part in which what has begun is sure to end: what follows from it alone needs no instants of its own.

        First come, first served: a computation that arrives knows at once when a slot will be free for it, and when it
        ends. A transfer that waits for nothing else starts then, and its first byte flows a latency later: only this
        is an instant again. The times are those of ``_instants``.
        """
        links, timers, phases = self._links, self._timers, self._phase
        num_bytes, ready = self._num_bytes, self._ready
        self._free_at = {}
        self._start_ready_calmly()
        while not self._over:
            flow = links.next_completion()
            instant = math.inf if flow is None else flow
            if timers and timers[0][0] < instant:
                instant = timers[0][0]
            if self._next_turn < instant:
                instant = self._next_turn
            if instant == math.inf:
                return
            self._now = instant
            limit = instant * _SURELY
            due = [row for row, _ in links.complete_until(instant)] if flow is not None and flow <= limit else []
            while timers and timers[0][0] <= limit:
                due.append(heappop(timers)[1])
            if len(due) > 1:
                due.sort()
            for row in due:
                if phases[row] == _LATENCY:
                    self._start_flow(row, num_bytes[row])
                else:
                    self._end(row)
            if self._next_turn <= limit:
                self._hear(limit)
                self._next_turn = self._find_next_turn()
            if ready:
                self._start_ready_calmly()

    def _start_ready_calmly(self) -> None:
        ready, kinds = self._ready, self._kind
        while ready:
            row = heappop(ready)
            kind = kinds[row]
            if kind == _COMPUTE:
                self._foresee(row)
            elif kind == _TRANSFER:
                self._start_transfer(row)
            else:
                self._close(row)

    def _foresee(self, row: int) -> None:
        """Find when a computation starts and ends, and when a transfer that waits for it alone begins to flow."""
        node, now = self._source[row], self._now
        free_at = self._free_at.get(node)
        if free_at is None:
            free_at = self._free_at[node] = [-math.inf] * self._field.slots[node]
        begin = free_at[0]
        if begin <= now * _SURELY:
            begin = now
        self._start[row] = begin
        end = begin + self._compute_seconds[row]
        heapreplace(free_at, end)
        following = self._only_successor[row]
        if (
            following >= 0
            and not self._notable[row]
            and self._kind[following] == _TRANSFER
            and self._waits_for[following] == 1
            and self._pair[following] >= 0
        ):
            self._phase[row], self._outcome[row], self._finish[row] = _ENDED, _DONE, end
            self._waits_for[following] = 0
            self._start[following] = end
            self._phase[following] = _LATENCY
            heappush(self._timers, (end + self._latency_seconds[self._pair[following]], following))
        else:
            self._phase[row] = _QUEUED  # not computing: it holds no slot that its end would have to release
            heappush(self._timers, (end, row))

    def _handle_instant(self) -> None:
        """Let end what ends now, turn the world, close what is due, and start what may start."""
        now, timers, phases = self._now, self._timers, self._phase
        limit = now * (1 + SAME_INSTANT)
        due = [row for row, _ in self._links.complete_until(now)] if self._next_flow <= limit * _SURELY else []
        while timers and timers[0][0] <= limit:
            due.append(heappop(timers)[1])
        if len(due) > 1:
            due.sort()
        for row in due:
            phase = phases[row]
            if phase == _LATENCY:
                self._start_flow(row, self._num_bytes[row])
            elif phase != _ENDED:
                self._end(row)
        if self._next_turn <= limit:
            self._hear(limit)
            self._take_turns(limit)
            for capacity, bytes_per_second in self._capacity_changes.pop_until(now):
                self._links.set_capacity(capacity, bytes_per_second, now)
            self._next_turn = self._find_next_turn()
        if self._deadlines and self._deadlines[0][0] <= limit:
            for row in sorted(_pop_due(self._deadlines, limit)):
                self._close(row)
        self._start_ready()

    def _next_instant(self) -> float:
        """Return when the next thing happens; infinite where nothing will."""
        flow = self._links.next_completion()
        self._next_flow = instant = math.inf if flow is None else flow
        for heap in (self._timers, self._deadlines):
            if heap and heap[0][0] < instant:
                instant = heap[0][0]
        return min(instant, self._next_turn)

    def _find_next_turn(self) -> float:
        """Return when the world turns next, in absolute seconds: a fault, a client that goes off, a bandwidth.

        Or when another part is heard of.
        """
        turns = (self._turns.next_seconds, self._capacity_changes.next_seconds)
        if self._tidings:
            return self._tidings[-1][0]  # parts that are played by themselves know no turns
        return min((seconds for seconds in turns if seconds is not None), default=math.inf)

    def _start_ready(self) -> None:
        """Start what waits for nothing any more, in the order of the rows, then fill freed slots."""
        ready, now = self._ready, self._now
        if len(ready) == 1 and self._kind[ready[0]] == _COMPUTE and self._is_idle_for(ready[0]):
            self._compute(ready.pop())
        while ready:
            row = heappop(ready)
            # A gather that lost its last own member to skipping may by now wait for late work.
            if self._phase[row] != _WAITING or self._waits_for[row] > 0:
                continue
            kind = self._kind[row]
            if kind == _COMPUTE:
                self._phase[row] = _QUEUED
                self._slots.enqueue(self._source[row], row, now)
            elif kind == _TRANSFER:
                self._start_transfer(row)
            else:
                self._close(row)
        if self._slots.are_touched:
            for row in self._slots.take_startable():
                self._compute(row)

    def _is_idle_for(self, row: int) -> bool:
        """Take a slot for a computation that is the only one to start at this instant, if it needs not queue."""
        starts = self._phase[row] == _WAITING and self._waits_for[row] == 0
        return starts and self._slots.take_idle(self._source[row])

    def _compute(self, row: int) -> None:
        self._start[row] = self._now
        self._phase[row] = _COMPUTING
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
            self._phase[row] = _LATENCY
            heappush(self._timers, (self._now + latency_seconds, row))
        else:
            self._start_flow(row, self._num_bytes[row])

    def _start_flow(self, row: int, num_bytes: float) -> None:
        if num_bytes == 0:
            self._end(row)
            return
        self._phase[row] = _FLOWING
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
        if self._phase[row] == _COMPUTING:
            self._slots.release(self._source[row])
        notable = self._notable[row]
        if notable & _TROUBLED and self._meet_trouble(row):
            return
        self._phase[row], self._outcome[row], self._finish[row] = _ENDED, _DONE, self._now
        if notable:
            self._tell_gathers(row)
        successor = self._only_successor[row]
        if successor < 0 or self._late_for:
            self._release_successors(row)
        else:
            left = self._waits_for[successor] = self._waits_for[successor] - 1
            if left == 0 and self._phase[successor] == _WAITING:
                heappush(self._ready, successor)

    def _tell_gathers(self, row: int) -> None:
        """Deliver the work that a row ends, and open the gathers that it opens."""
        if self._notable[row] & _ENDS_WORK:
            work, node = self._rows.work_of[row], self._rows.target[row]
            self._unfinished_at[node].discard(work)
            self._inbox[node].append(self._rows.work.key(work))
            self._count_for_quorum(int(self._rows.work.gather[work]))
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
        if self._silent[node] > 0:
            self._held.append(row)
            return
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
            has_quorum = self._plan.gathers.quorum[gather] > 0 and self._quorum_left[gather] <= 0
            for work in late:
                self._drop(work, Cause.QUORUM if has_quorum else Cause.DEADLINE)
            return
        busy = {int(self._rows.work.client[work]) for work in late}
        for work in here:
            if self._edge_round_in_plan(work) == edge_round + 1 and int(self._rows.work.client[work]) in busy:
                self._skipped.append(self._rows.work.key(work))
                self._abandon(work, Outcome.SKIPPED)

    def _count_for_quorum(self, gather: int) -> None:
        """Count the arrival of a gather's own member; the last one that is needed closes it at this instant."""
        if gather >= 0 and self._quorum_left[gather] > 0:
            self._quorum_left[gather] -= 1
            if self._quorum_left[gather] == 0:
                heappush(self._deadlines, (self._now, int(self._plan.gathers.activity[gather]) + self._rows.offset))

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

    def _drop(self, work: int, cause: Cause) -> None:
        """Give a work item up."""
        self._dropped.append((self._rows.work.key(work), cause, self._now))
        self._abandon(work, Outcome.DROPPED)

    def _abandon(self, work: int, outcome: Outcome) -> None:
        """Stop all activities of a work item; those that wait for it wait no longer."""
        for row in self._rows.rows_of_work(work):
            if self._phase[row] != _ENDED:
                self._break_off(row, outcome)
        self._unfinished_at[self._rows.target[int(self._rows.last_row_of_work[work])]].discard(work)
        self._num_members[int(self._rows.work.gather[work])] -= 1

    def _break_off(self, row: int, outcome: Outcome) -> None:
        """Stop an activity; rows of others that wait for it wait no longer."""
        phase = self._phase[row]
        if phase == _FLOWING:
            left = self._links.stop(row, self._now)
            self._broken_off_bytes[row] = self._rows.num_bytes[row] - round(left)
        elif phase == _COMPUTING:
            self._slots.release(self._rows.source[row])
        elif phase == _QUEUED:
            self._slots.withdraw(self._rows.source[row], row)
        self._settle(row, outcome)
        work = self._rows.work_of[row]
        for successor in self._successors(row):
            if work < 0 or self._rows.work_of[successor] != work:
                self._waits_for[successor] -= 1
                if self._waits_for[successor] == 0:
                    heappush(self._ready, successor)

    def _mark_troubles(self, troubles: Troubles | None) -> tuple[dict[int, int], dict[int, int]]:
        """Mark the rows that something befalls; returns spoilt sendings to come, and those that have been, by row."""
        if troubles is None:
            return {}, {}
        for row in np.flatnonzero((troubles.cause != Cause.NONE) | (troubles.spoilt > 0)).tolist():
            self._notable[row] |= _TROUBLED
        columns = (troubles.spoilt, troubles.resent)
        spoilt, resent = ({row: int(column[row]) for row in np.flatnonzero(column).tolist()} for column in columns)
        return spoilt, resent

    def _meet_trouble(self, row: int) -> bool:
        """Let befall a row that would have ended now what is to befall it; tell whether it has not ended well."""
        troubles, work = self._rows.troubles, self._rows.work_of[row]
        assert troubles is not None
        self._phase[row] = _LATENCY  # it is in no slot and on no link any more
        if self._spoilt.get(row, 0) > 0:
            self._spoilt[row] -= 1
            self._resent[row] = self._resent.get(row, 0) + 1
            self._tell_of_spoilt(row)
            if self._spoilt[row] == 0 and troubles.is_lost[row]:
                self._drop(work, Cause.CORRUPTED)
            else:
                self._send(row)
            return True
        cause = Cause(int(troubles.cause[row]))
        if cause is Cause.NONE:
            return False
        if cause is Cause.BEFORE_TRAINING:
            self._settle(row, Outcome.DONE)
        elif cause is Cause.AFTER_TRAINING:
            self._broken_off_bytes[row] = self._rows.num_bytes[row]
        self._drop(work, cause)
        return True

    def _tell_of_spoilt(self, row: int) -> None:
        role = Role(int(self._rows.activities.label[row])).label
        self._incidents.add(
            IncidentKind.PAYLOAD_CORRUPTED,
            self._now,
            node=self._rows.target[row],
            client=int(self._rows.activities.client[row]),
            detail=f"{role}, sending {self._resent[row]}",
        )

    def _resume_spells(self) -> None:
        """Let the faults hold that held at the end of the last round."""
        settled = self._before.settled_seconds
        for spell in self._spells:
            if not spell.is_new and spell.begin_seconds <= settled < spell.end_seconds:
                self._let_hold(spell)

    def _take_turns(self, limit: float) -> None:
        """Let faults begin and end, and clients go off, that do so by ``limit``."""
        while self._turns.next_seconds is not None and self._turns.next_seconds <= limit:
            seconds, kind, subject = self._turns.pop()
            if kind is TurnKind.CLIENT_OFF:
                self._go_off(subject, seconds)
            elif kind is TurnKind.BEGINS:
                self._begin_spell(self._spells[subject], seconds)
            else:
                self._end_spell(self._spells[subject], seconds)

    def _begin_spell(self, spell: Spell, seconds: float) -> None:
        fault = spell.fault
        kind = (IncidentKind.LINKS_DEGRADED, IncidentKind.EDGE_CRASHED, IncidentKind.CLOUD_DOWN)[fault.target]
        detail = f"{fault.name}, {fault.factor:g} of the bandwidth" if fault.target is Target.LINKS else fault.name
        self._incidents.add(kind, seconds, node=fault.node, detail=detail)
        self._let_hold(spell)

    def _let_hold(self, spell: Spell) -> None:
        if spell.fault.target is Target.EDGE:
            self._lose_node(spell.fault.node)
        elif spell.fault.target is Target.CLOUD:
            self._silent[spell.fault.node] += 1

    def _end_spell(self, spell: Spell, seconds: float) -> None:
        fault = spell.fault
        kind = (IncidentKind.LINKS_RESTORED, IncidentKind.EDGE_RECOVERED, IncidentKind.CLOUD_UP)[fault.target]
        self._incidents.add(kind, seconds, node=fault.node, detail=fault.name)
        if fault.target is Target.CLOUD:
            self._silent[fault.node] -= 1
            if self._silent[fault.node] == 0:
                for row in self._held:
                    heappush(self._deadlines, (self._now, row))
                self._held.clear()

    def _go_off(self, client: int, seconds: float) -> None:
        """Give up all work that a client has still a part in."""
        rows = self._rows
        given_up = []
        for work in rows.work_of_client(client):
            left = [row for row in rows.rows_of_work(work) if self._phase[row] != _ENDED]
            node = self._field.client_nodes[client]
            if any(node in (rows.source[row], rows.target[row]) for row in left):
                given_up.append(work)
        if given_up:
            self._incidents.add(IncidentKind.CLIENT_OFF, seconds, node=node, client=client)
        for work in given_up:
            self._drop(work, Cause.CLIENT_OFF)

    def _lose_node(self, node: int) -> None:
        """Let an edge lose all that it has: work under way through it, in its inbox, or gathered and not yet told."""
        rows, gathers = self._rows, self._plan.gathers
        for work in np.flatnonzero((rows.work.edge == node) & (rows.last_row_of_work >= 0)).tolist():
            if self._phase[int(rows.last_row_of_work[work])] != _ENDED:
                self._drop(work, Cause.EDGE_CRASHED)
        lost = list(self._inbox.pop(node, ()))
        activities = rows.activities
        own = ((activities.source == node) | (activities.target == node)) & (activities.work < 0)
        untold = [row for row in np.flatnonzero(own).tolist() if self._phase[row] != _ENDED]
        if untold:
            self._lost_nodes.add(node)
            for gather in np.flatnonzero(gathers.node == node).tolist():
                lost += self._arrivals[gather]
                self._arrivals[gather] = ()
        for row in untold:
            self._break_off(row, Outcome.DROPPED)
        self._dropped += [(key, Cause.EDGE_CRASHED, self._now) for key in sorted(lost)]

    def _open_gathers(self, opener: int) -> None:
        """Open the gathers that this row opens; -1 is the start of the plan."""
        self._open(self._gathers_opened_by.get(opener, ()))

    def _open(self, gathers: Sequence[int]) -> None:
        for gather in gathers:
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
                self._late_for.setdefault(int(self._rows.last_row_of_work[work]), []).append(row)
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
        for row, times in self._resent.items():
            if self._phase[row] == _ENDED:
                carried_bytes[row] += times * rows.num_bytes[row]
        dropped = sorted(self._dropped)
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
            dropped=tuple(key for key, _, _ in dropped),
            skipped=tuple(sorted(self._skipped)),
            pending=tuple(sorted(rows.work.key(work) for work in self._unfinished())),
            causes=tuple(cause for _, cause, _ in dropped),
            dropped_seconds=np.array([seconds for _, _, seconds in dropped], np.float64),
            incidents=self._incidents.incidents(),
            lost_nodes=frozenset(self._lost_nodes),
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
            troubles=self._troubles_left(rows),
            settled_seconds=self._now * (1 + SAME_INSTANT),
        )

    def _troubles_left(self, rows: Ints) -> Troubles | None:
        """Return what is still to befall the rows that go on; None where that is nothing."""
        if self._rows.troubles is None or not len(rows):
            return None
        left = self._rows.troubles.take(rows)
        spoilt, resent = (
            np.array([counts.get(row, 0) for row in rows.tolist()], np.int64) for counts in (self._spoilt, self._resent)
        )
        return left.with_columns(spoilt=spoilt, resent=resent)

    def _unfinished(self) -> set[int]:
        return {work for works in self._unfinished_at.values() for work in works}

    def _remaining(self, rows: Ints) -> Floats:
        """Return what WorldState says of each row's remainder."""
        known = (
            {row: seconds for seconds, row in self._timers} | self._slots.arrivals() | self._links.remaining(self._now)
        )
        return np.array([known.get(row, 0.0) for row in rows.tolist()], np.float64)


class _Tick(simpy.Event):
    """The one event of the clock, used again for every instant: a timeout for each would be an object an event."""

    def __init__(self, environment: simpy.Environment) -> None:
        super().__init__(environment)
        self._ok, self._value = True, None

    def at(self, seconds: float) -> simpy.Event:
        """Happen at some moment, or now if SimPy's own sum has been rounded past it."""
        self.callbacks: simpy.events.EventCallbacks = []
        self.env.schedule(self, delay=max(0.0, seconds - self.env.now))
        return self


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
