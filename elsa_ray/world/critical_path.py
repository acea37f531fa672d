"""What a round waited for: the chain of activities, from its end back to its start, each of which held up the next."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.plan import ActivityKind, Floats, Ints, Plan
from elsa_ray.world.timeline import Outcome, Timeline
from elsa_ray.world.transfer_parts import TransferParts

PATH_KINDS = (
    "client_compute",
    "client_queue",
    "edge_compute",
    "edge_queue",
    "latency",
    "bandwidth",
    "sharing",
    "deadline",
    "late_work",
    "other",
)
"""``deadline``: a gather waited for its deadline; ``late_work``: for work of an earlier edge round or round; ``other``:
something could have started or closed and had not, such as a gather whose node does not answer."""

_SAME = 1e-9
"""Relative: a gather that closes so near to its deadline has waited for it."""


@dataclass(frozen=True)
class CriticalPath:
    """The chain that a round waited for.

    Attributes:
        seconds: by PATH_KINDS; kinds without a second are left out. They sum to the round's length.
        clients: whose activities are on the chain, in the order of time.
        rows: rows of the timeline's activities on the chain, in the order of time.
    """

    seconds: dict[str, float]
    clients: tuple[int, ...]
    rows: tuple[int, ...]


def critical_path(plan: Plan, timeline: Timeline, parts: TransferParts, network: Network) -> CriticalPath:
    """Walk from the plan's last gather back to the start of the round.

    What starts last waits for the predecessor that ended last (of equal ones the last row). A gather that no member's
    end has closed waited for its deadline, or for late work, from its opening on; or until its last member was lost.
    """
    walk = _Walk(plan, timeline, parts, network)
    walk.run(int(plan.gathers.activity[-1]))
    clients = [int(timeline.activities.client[row]) for row in reversed(walk.rows)]
    return CriticalPath(
        {kind: walk.seconds[kind] for kind in PATH_KINDS if walk.seconds[kind]},
        tuple(dict.fromkeys(client for client in clients if client >= 0)),
        tuple(reversed(walk.rows)),
    )


class _Walk:
    """Goes back row by row; rows are the plan's, those of the timeline are ``offset`` further down."""

    def __init__(self, plan: Plan, timeline: Timeline, parts: TransferParts, network: Network) -> None:
        self._plan, self._timeline, self._parts, self._network = plan, timeline, parts, network
        self._offset = len(timeline.activities) - len(plan.activities)
        self._by_successor = np.argsort(plan.successors, kind="stable")
        self._successors = plan.successors[self._by_successor]
        self._gather_of_row = {int(row): gather for gather, row in enumerate(plan.gathers.activity)}
        self.seconds = dict.fromkeys(PATH_KINDS, 0.0)
        self.rows: list[int] = []

    def run(self, row: int) -> None:
        """Follow the chain from a row of the plan."""
        while row >= 0:
            self.rows.append(row + self._offset)
            row = self._gather(row) if row in self._gather_of_row else self._activity(row)

    def _activity(self, row: int) -> int:
        activities, at = self._timeline.activities, row + self._offset
        start, finish = float(self._timeline.start_seconds[at]), float(self._timeline.finish_seconds[at])
        if math.isnan(start):  # given up before it could start
            start = finish
        before, ready = self._latest(self._predecessors(row))
        if activities.kind[at] == ActivityKind.COMPUTE:
            tier = "edge" if self._network.node_kinds[activities.source[at]] == "edge" else "client"
            self.seconds[f"{tier}_compute"] += finish - start
            self.seconds[f"{tier}_queue"] += start - ready
        else:
            for kind, seconds in zip(("latency", "bandwidth", "sharing"), self._parts.of_row(at), strict=True):
                self.seconds[kind] += seconds
            self.seconds["other"] += start - ready
        return before

    def _gather(self, row: int) -> int:
        """Return what a gather waited for: a member, its deadline (and then its node), a lost member, or late work."""
        closed = float(self._timeline.finish_seconds[row + self._offset])
        members = self._predecessors(row)
        done, ready = self._latest(members[self._timeline.outcome[members + self._offset] == Outcome.DONE])
        if done >= 0 and ready == closed:
            return done
        gather = self._gather_of_row[row]
        opener = int(self._plan.gathers.opener[gather])
        opened = float(self._timeline.finish_seconds[opener + self._offset]) if opener >= 0 else self._begin
        deadline = float(self._plan.gathers.deadline_seconds[gather])
        if closed - opened >= deadline * (1 - _SAME):
            own = min(deadline, closed - opened)
            self.seconds["deadline"] += own
            self.seconds["other"] += closed - opened - own
            return opener
        last, ended = self._latest(members)
        goes_on = ~np.isfinite(self._timeline.finish_seconds[members + self._offset])
        if last >= 0 and (ended == closed or (gather in self._plan.work.gather and not goes_on.any())):
            self.seconds["other"] += closed - ended
            return last
        self.seconds["late_work"] += closed - opened
        return opener

    @property
    def _begin(self) -> float:
        return self._timeline.begin_seconds

    def _predecessors(self, row: int) -> Ints:
        begin, end = np.searchsorted(self._successors, [row, row + 1]).tolist()
        return self._plan.predecessors[self._by_successor[begin:end]]

    def _latest(self, rows: Ints) -> tuple[int, float]:
        """Return the row that ended last and when; -1 and the round's start where there is none."""
        finish: Floats = self._timeline.finish_seconds[rows + self._offset]
        ended = rows[np.isfinite(finish)]
        if not len(ended):
            return -1, self._begin
        finish = self._timeline.finish_seconds[ended + self._offset]
        latest = int(np.lexsort((ended, finish))[-1])
        return int(ended[latest]), float(finish[latest])
