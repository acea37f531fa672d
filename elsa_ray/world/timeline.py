"""A timeline: when each planned activity happened, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from elsa_ray.world.incidents import Incidents
from elsa_ray.world.paths import Paths
from elsa_ray.world.plan import Activities, Bools, Floats, Ints, WorkItems, WorkKey
from elsa_ray.world.troubles import Cause, Troubles


class Outcome(IntEnum):
    """What became of an activity."""

    DONE = 0
    PENDING = 1
    DROPPED = 2
    SKIPPED = 3

    @property
    def label(self) -> str:
        """The name in records."""
        return self.name.lower()


@dataclass(frozen=True)
class Timeline:
    """What happened between two global aggregations.

    Attributes:
        begin_seconds, end_seconds: simulated time at the round's start and end.
        activities: rows carried over from earlier rounds, then those of the plan; ``work`` points into ``work``.
        start_seconds, finish_seconds: of each activity; NaN for what has not started or ended.
        outcome: an Outcome for each activity. PENDING rows appear again in the next timeline.
        carried_bytes: what the links carried of each transfer by its end.
        work: work items carried over, then those of the plan.
        arrivals: for each gather of the plan the keys of the work that it took, in client order.
        gather_seconds: when each gather of the plan closed.
        dropped: keys of the work that was given up.
        skipped: keys of the work that did not begin because its client was still busy.
        pending: keys of the work that goes on.
        causes: why each of the dropped was given up.
        dropped_seconds: when.
        incidents: what has befallen links, nodes and clients.
        paths: the ways of the activities.
        lost_nodes: edges that have crashed before their part of this round was with the cloud.
        down_nodes: edges that are down at the end.
        present: clients [N] that are there at the end; None where all always are.
    """

    begin_seconds: float
    end_seconds: float
    activities: Activities
    start_seconds: Floats
    finish_seconds: Floats
    outcome: npt.NDArray[np.uint8]
    carried_bytes: Ints
    work: WorkItems
    arrivals: tuple[tuple[WorkKey, ...], ...]
    gather_seconds: Floats
    dropped: tuple[WorkKey, ...]
    skipped: tuple[WorkKey, ...]
    pending: tuple[WorkKey, ...]
    causes: tuple[Cause, ...]
    dropped_seconds: Floats
    incidents: Incidents
    paths: Paths
    lost_nodes: frozenset[int] = frozenset()
    down_nodes: tuple[int, ...] = ()
    present: Bools | None = None

    def work_row(self, key: WorkKey) -> int:
        """Return the row of a work item."""
        return next(row for row in range(len(self.work)) if self.work.key(row) == key)


@dataclass(frozen=True)
class WorldState:
    """The world between two rounds.

    Attributes:
        clock_seconds: simulated time.
        activities: what has not ended, in order.
        predecessors, successors: dependencies between these rows.
        phase: a Phase for each row.
        start_seconds: NaN for what has not started.
        remaining: bytes left for a flowing transfer; in absolute seconds the end of a latency or computation, and the
            arrival of a computation that waits for a slot; else 0.
        work: the work items they belong to, and those in the inbox.
        inbox: work that has arrived at a node (index) and was not yet gathered.
        troubles: of the activities; None where nothing befalls any.
        settled_seconds: all changes of the world up to here have taken place.
        fault_begins: when those faults have begun that count from a global round.
        present: clients [N] that are there; None where all always are.
        down_nodes: edges that are down.
        next_change_seconds: when the next client comes, or the next edge; infinite where nothing is awaited.
    """

    clock_seconds: float
    activities: Activities
    predecessors: Ints
    successors: Ints
    phase: Ints
    start_seconds: Floats
    remaining: Floats
    work: WorkItems
    inbox: tuple[tuple[int, WorkKey], ...]
    troubles: Troubles | None = None
    settled_seconds: float = -math.inf
    fault_begins: tuple[tuple[int, float], ...] = ()
    present: Bools | None = None
    down_nodes: tuple[int, ...] = ()
    next_change_seconds: float = math.inf

    @property
    def unavailable_clients(self) -> frozenset[int]:
        """Clients that can not begin new work: busy ones, and those that are not there."""
        away = [] if self.present is None else np.flatnonzero(~self.present).tolist()
        return self.busy_clients.union(away)

    @property
    def busy_clients(self) -> frozenset[int]:
        """Clients whose earlier work still goes on."""
        rows = np.unique(self.activities.work)
        return frozenset(int(client) for client in self.work.client[rows[rows >= 0]])
