"""The course of a plan under faults, deadlines and quorums, instant by instant on SimPy.

Everything that falls on one instant is handled together, in the order of the rows: first what ends, then turns of the
world (faults, clients that go off), then deadlines and quorums, then what may start. So the log does not depend on the
order in which equal times were scheduled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator
from heapq import heappop, heappush

import numpy as np
import simpy

from elsa_ray.network.instants import SAME_INSTANT
from elsa_ray.network.schedule import CapacityChanges
from elsa_ray.network.sharing import FluidSharing
from elsa_ray.world.course import ENDED, LATENCY, SURELY, Field
from elsa_ray.world.disturbances import Disturbances
from elsa_ray.world.faults import Spell, Target
from elsa_ray.world.gathering import TROUBLED, Gathering
from elsa_ray.world.incidents import IncidentKind, IncidentLog
from elsa_ray.world.parts import Part
from elsa_ray.world.plan import Ints
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from elsa_ray.world.troubles import Cause, Troubles
from elsa_ray.world.turns import TurnKind, Turns


class Eventful(Gathering):
    """The course of a plan to which anything may happen.

    What happens at an instant, and in which order, is ``_handle_instant``.

    Args:
        part, before, field, links: as for ``Course``.
        disturbances: of the round; those of single rows stand in the part.
        changes: of the links' capacities.
        incidents: takes what happens.
    """

    def __init__(
        self,
        part: Part,
        before: WorldState,
        field: Field,
        links: FluidSharing,
        *,
        disturbances: Disturbances,
        changes: CapacityChanges,
        incidents: IncidentLog,
    ) -> None:
        super().__init__(part, before, field, links)
        self._capacity_changes, self._incidents = changes, incidents
        self._spells = disturbances.spells
        self._turns = Turns(disturbances, self._rows.work.client, before.settled_seconds)
        self._silent: Counter[int] = Counter()  # nodes that do not answer, by how many faults
        self._held: list[int] = []  # gathers that are due while their node does not answer
        self._lost_nodes: set[int] = set()
        self._spoilt, self._resent = self._mark_troubles(self._rows.troubles)
        self._next_turn, self._next_flow = math.inf, math.inf

    def run(self) -> None:
        """Let SimPy move the clock until the last gather has closed, or nothing is under way any more."""
        self._resume()
        self._resume_spells()
        self._open_gathers(-1)
        self._find_ready()
        self._take_turns(self._now)
        self._next_turn = self._find_next_turn()
        environment = simpy.Environment(initial_time=self._now)
        environment.run(environment.process(self._instants(environment)))

    def _instants(self, environment: simpy.Environment) -> Generator[simpy.Event, None, None]:
        self._start_ready()
        tick = _Tick(environment)
        while not self.is_over:
            instant = self._next_instant()
            if instant == math.inf:
                return
            yield tick.at(instant)
            self._now = instant
            self._handle_instant()

    def _handle_instant(self) -> None:
        """Let end what ends now, turn the world, close what is due, and start what may start."""
        now, timers, phases = self._now, self._timers, self._phase
        limit = now * (1 + SAME_INSTANT)
        due = [row for row, _ in self._links.complete_until(now)] if self._next_flow <= limit * SURELY else []
        while timers and timers[0][0] <= limit:
            due.append(heappop(timers)[1])
        if len(due) > 1:
            due.sort()
        for row in due:
            phase = phases[row]
            if phase == LATENCY:
                self._start_flow(row, self._num_bytes[row])
            elif phase != ENDED:
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

    def _close(self, row: int) -> None:
        """Close a gather, or hold it while its node does not answer."""
        if self._silent[int(self._plan.gathers.node[self._gather_of_row[row]])] > 0 and self._phase[row] != ENDED:
            self._held.append(row)
        else:
            super()._close(row)

    def _mark_troubles(self, troubles: Troubles | None) -> tuple[dict[int, int], dict[int, int]]:
        """Mark the rows that something befalls; returns spoilt sendings to come, and those that have been, by row."""
        if troubles is None:
            return {}, {}
        for row in np.flatnonzero((troubles.cause != Cause.NONE) | (troubles.spoilt > 0)).tolist():
            self._notable[row] |= TROUBLED
        columns = (troubles.spoilt, troubles.resent)
        spoilt, resent = ({row: int(column[row]) for row in np.flatnonzero(column).tolist()} for column in columns)
        return spoilt, resent

    def _meets_trouble(self, row: int) -> bool:
        if not self._notable[row] & TROUBLED:
            return False
        troubles, work = self._rows.troubles, self._rows.work_of[row]
        assert troubles is not None
        self._phase[row] = LATENCY  # it is in no slot and on no link any more
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
            left = [row for row in rows.rows_of_work(work) if self._phase[row] != ENDED]
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
            if self._phase[int(rows.last_row_of_work[work])] != ENDED:
                self._drop(work, Cause.EDGE_CRASHED)
        lost = list(self._inbox.pop(node, ()))
        activities = rows.activities
        own = ((activities.source == node) | (activities.target == node)) & (activities.work < 0)
        untold = [row for row in np.flatnonzero(own).tolist() if self._phase[row] != ENDED]
        if untold:
            self._lost_nodes.add(node)
            for gather in np.flatnonzero(gathers.node == node).tolist():
                lost += self._arrivals[gather]
                self._arrivals[gather] = ()
        for row in untold:
            self._break_off(row, Outcome.DROPPED)
        self._dropped += [(key, Cause.EDGE_CRASHED, self._now) for key in sorted(lost)]

    def timeline(self) -> Timeline:
        """Return what happened."""
        return self._timeline(self._resent, self._incidents.incidents(), frozenset(self._lost_nodes))

    def state(self) -> WorldState:
        """Return the world as it goes on."""
        work, phase = self._rows.work, np.frombuffer(self._phase, np.uint8)
        rows = np.flatnonzero(phase != ENDED)
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
