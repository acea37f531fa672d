"""The course of a plan in which nothing that has begun can be broken off: most of it is foreseen."""

from __future__ import annotations

import math
from heapq import heappop, heappush, heapreplace

import numpy as np

from elsa_ray.network.sharing import FluidSharing
from elsa_ray.world.course import COMPUTE, DONE, ENDED, LATENCY, QUEUED, SURELY, TRANSFER, Field
from elsa_ray.world.gathering import Gathering
from elsa_ray.world.incidents import IncidentRows, Incidents
from elsa_ray.world.parts import Part
from elsa_ray.world.plan import Plan
from elsa_ray.world.timeline import Timeline, WorldState
from elsa_ray.world.troubles import Cause, Troubles


def is_calm(plan: Plan, troubles: Troubles | None) -> bool:
    """Tell whether nothing that has begun can be broken off, as far as plan and troubles say."""
    gathers = plan.gathers
    is_troubled = troubles is not None and bool((troubles.cause != Cause.NONE).any() or troubles.spoilt.any())
    return not (is_troubled or np.isfinite(gathers.deadline_seconds).any() or gathers.quorum.any())


class Calm(Gathering):
    """The course of a calm plan: what follows from a row alone needs no instants of its own.

    First come, first served: a computation that arrives knows at once when a slot will be free for it, and when it
    ends. A transfer that waits for nothing else starts then, and its first byte flows a latency later: only this is an
    instant again. The times are those of ``Eventful``.

    Args:
        part, before, field, links: as for ``Course``.
    """

    def __init__(self, part: Part, before: WorldState, field: Field, links: FluidSharing) -> None:
        super().__init__(part, before, field, links)
        self._free_at: dict[int, list[float]] = {}  # when each slot of a node is free, a heap

    def run(self) -> None:
        """Move the clock until the last gather has closed, or nothing is under way any more."""
        self._open_gathers(-1)
        self._find_ready()
        links, timers, phases, tidings = self._links, self._timers, self._phase, self._tidings
        num_bytes, ready = self._num_bytes, self._ready
        self._start_ready()
        while not self.is_over:
            flow = links.next_completion()
            instant = math.inf if flow is None else flow
            if timers and timers[0][0] < instant:
                instant = timers[0][0]
            if tidings and tidings[-1][0] < instant:
                instant = tidings[-1][0]
            if instant == math.inf:
                return
            self._now = instant
            limit = instant * SURELY
            due = [row for row, _ in links.complete_until(instant)] if flow is not None and flow <= limit else []
            while timers and timers[0][0] <= limit:
                due.append(heappop(timers)[1])
            if len(due) > 1:
                due.sort()
            for row in due:
                if phases[row] == LATENCY:
                    self._start_flow(row, num_bytes[row])
                else:
                    self._end(row)
            if tidings and tidings[-1][0] <= limit:
                self._hear(limit)
            if ready:
                self._start_ready()

    def _start_ready(self) -> None:
        ready, kinds = self._ready, self._kind
        while ready:
            row = heappop(ready)
            kind = kinds[row]
            if kind == COMPUTE:
                self._foresee(row)
            elif kind == TRANSFER:
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
        if begin <= now * SURELY:
            begin = now
        self._start[row] = begin
        end = begin + self._compute_seconds[row]
        heapreplace(free_at, end)
        following = self._only_successor[row]
        if (
            following >= 0
            and not self._notable[row]
            and self._kind[following] == TRANSFER
            and self._waits_for[following] == 1
            and self._pair[following] >= 0
        ):
            self._phase[row], self._outcome[row], self._finish[row] = ENDED, DONE, end
            self._waits_for[following] = 0
            self._start[following] = end
            self._phase[following] = LATENCY
            heappush(self._timers, (end + self._latency_seconds[self._pair[following]], following))
        else:
            self._phase[row] = QUEUED  # not computing: it holds no slot that its end would have to release
            heappush(self._timers, (end, row))

    def timeline(self) -> Timeline:
        """Return what happened."""
        return self._timeline({}, Incidents(IncidentRows.empty()), frozenset())
