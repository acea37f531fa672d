"""Parts of a round that never share anything at the same time, so that each can be played by itself.

In a tree of edges most of a round is local: the clients of an edge compute, and send through links that only they use.
What edges and the cloud send each other comes before all of that, or after it. Playing edge after edge gives the same
times as playing them together, but the queues are shorter, and what is at hand is less.

A plan is cut by its edges: *before* them is what the cloud does without having heard of any, *behind* them is what
waits for one of them. That nothing was shared after all is checked on the times that were found (``never_met``).

Shapes: A activities, W work items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elsa_ray.network.instants import SAME_INSTANT
from elsa_ray.world.paths import Paths
from elsa_ray.world.plan import Activities, ActivityKind, Bools, Floats, Ints, Plan

BEFORE = 0
"""The number of the part before all edges; edges are 1, 2, ..., and what is behind them has the last number."""


class Parts:
    """A plan that falls apart at its edges.

    Attributes:
        of_row: the number [A] of each activity's part.
        behind: the number of the last part.
        is_inner: of each of the plan's dependencies, whether it stays in a part.
        opened_by_others: gathers whose opener is in another part.
    """

    def __init__(self, plan: Plan, of_row: Ints, paths: Paths, part_at_capacity: Ints) -> None:
        self.of_row = of_row
        self.behind = int(of_row.max())
        self._paths, self._part_at_capacity = paths, part_at_capacity
        self.is_inner: Bools = of_row[plan.predecessors] == of_row[plan.successors]
        opened = np.flatnonzero(plan.gathers.opener >= 0)
        opener = plan.gathers.opener[opened]
        outer = of_row[opener] != of_row[plan.gathers.activity[opened]]
        self.opened_by_others = frozenset(opened[outer].tolist())
        sources = np.concatenate([plan.predecessors[~self.is_inner], opener[outer]])
        whom = np.concatenate([plan.successors[~self.is_inner], ~opened[outer]])
        part = np.concatenate([of_row[plan.successors[~self.is_inner]], of_row[plan.gathers.activity[opened[outer]]]])
        order = np.argsort(part, kind="stable")
        self._tidings = sources[order], whom[order]
        self._first_tiding = np.searchsorted(part[order], np.arange(self.behind + 2))

    def tidings_for(self, part: int) -> tuple[Ints, Ints]:
        """Return the rows of other parts whose end a part has to know, and for whom: a row, or ~gather to be opened."""
        own = slice(self._first_tiding[part], self._first_tiding[part + 1])
        sources, whom = self._tidings
        return sources[own], whom[own]

    def never_met(self, start_seconds: Floats, finish_seconds: Floats) -> bool:
        """Tell whether at no time two parts used one capacity, as things went when each was played by itself."""
        begin, end = np.full(self.behind + 1, np.inf), np.full(self.behind + 1, -np.inf)
        started = ~np.isnan(start_seconds)  # what has been given up before its time has not
        np.minimum.at(begin, self.of_row[started], start_seconds[started])
        np.maximum.at(end, self.of_row, finish_seconds)
        begin[BEFORE], end[BEFORE] = np.inf, -np.inf  # what no edge uses has this number
        begin *= 1 + SAME_INSTANT
        last_before: dict[int, float] = {}  # by capacity: when the last transfer before all edges had ended
        for row in self._common_transfers(BEFORE):
            finish = float(finish_seconds[row])
            for capacity in self._capacities(row):
                last_before[capacity] = max(finish, last_before.get(capacity, finish))
                if finish > begin[self._part_at_capacity[capacity]]:
                    return False
        for row in self._common_transfers(self.behind):
            start = float(start_seconds[row]) * (1 + SAME_INSTANT)
            for capacity in self._capacities(row):
                if start < max(end[self._part_at_capacity[capacity]], last_before.get(capacity, start)):
                    return False
        return True

    def _common_transfers(self, part: int) -> list[int]:
        rows: list[int] = np.flatnonzero((self.of_row == part) & (self._paths.pair >= 0)).tolist()
        return rows

    def _capacities(self, row: int) -> Sequence[int]:
        return self._paths.capacities_of(int(self._paths.pair[row]))


def parts_of(plan: Plan, paths: Paths) -> Parts | None:
    """Return the parts; None where the plan does not fall apart, or two edges use the same capacity."""
    of_row = _cut(plan)
    if of_row is None:
        return None
    is_local = (of_row != BEFORE) & (of_row != of_row.max()) & (paths.pair >= 0)
    pair, users = paths.pair[is_local], of_row[is_local]
    part_of_pair = np.full(len(paths), BEFORE, np.int32)
    part_of_pair[pair] = users
    if (part_of_pair[pair] != users).any():
        return None
    capacity, users = np.frombuffer(paths.capacity, np.int32), part_of_pair[paths.pair_of_crossing()]
    part_at_capacity = np.full(int(capacity.max(initial=0)) + 1, BEFORE, np.int32)
    is_local = users != BEFORE
    part_at_capacity[capacity[is_local]] = users[is_local]
    if (part_at_capacity[capacity[is_local]] != users[is_local]).any():
        return None
    return Parts(plan, of_row, paths, part_at_capacity.astype(np.int64))


def _cut(plan: Plan) -> Ints | None:
    """Return the number [A] of each activity's part; None where the plan does not fall apart at its edges."""
    activities, work, gathers = plan.activities, plan.work, plan.gathers
    if not len(work) or (work.edge < 0).any() or not len(gathers):
        return None
    edges = np.unique(work.edge)
    num_nodes = int(max(activities.source.max(), activities.target.max(), edges[-1])) + 1
    part_at = np.zeros(num_nodes, np.int32)
    part_at[edges] = np.arange(1, len(edges) + 1)
    behind = len(edges) + 1
    part_W = part_at[work.edge]
    is_local = activities.source == activities.target
    part = np.where(is_local, part_at[activities.source], np.int32(BEFORE))
    of_work = np.flatnonzero(activities.work >= 0)
    part[of_work] = part_W[activities.work[of_work]]
    _mark_behind(part, plan, behind)
    is_apart = (
        len(edges) > 1
        and part[gathers.activity[-1]] == behind
        and _flows_onward(part[plan.predecessors], part[plan.successors], behind)
        and _flows_onward(
            part[gathers.opener[gathers.opener >= 0]], part[gathers.activity[gathers.opener >= 0]], behind
        )
        and (part[gathers.activity[work.gather]] == part_W).all()
        and _is_gathered_at_home(activities, plan)
        and _computes_apart(activities, part, num_nodes)
    )
    return part if is_apart else None


def _mark_behind(part: Ints, plan: Plan, behind: int) -> None:
    """Tell apart what is before all edges and what is behind some."""
    common = part[plan.successors] == BEFORE
    predecessors, successors = plan.predecessors[common], plan.successors[common]
    while True:
        found = (part[predecessors] != BEFORE) & (part[successors] == BEFORE)
        if not found.any():
            return
        part[successors[found]] = behind


def _flows_onward(earlier: Ints, later: Ints, behind: int) -> bool:
    """Tell whether each pair stays in its part, or leads away from the first or into the last one."""
    return bool(((earlier == later) | (earlier == BEFORE) | (later == behind)).all())


def _is_gathered_at_home(activities: Activities, plan: Plan) -> bool:
    """Tell whether all work ends at its own edge."""
    last = np.full(len(plan.work), -1, np.int64)
    of_work = np.flatnonzero(activities.work >= 0)
    np.maximum.at(last, activities.work[of_work], of_work)
    return bool((activities.target[last[last >= 0]] == plan.work.edge[last >= 0]).all())


def _computes_apart(activities: Activities, part: Ints, num_nodes: int) -> bool:
    """Tell whether each node computes in one part only."""
    rows = np.flatnonzero(activities.kind == ActivityKind.COMPUTE)
    part_at = np.zeros(num_nodes, np.int32)
    part_at[activities.source[rows]] = part[rows]
    return bool((part_at[activities.source[rows]] == part[rows]).all())
