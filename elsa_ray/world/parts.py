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
from dataclasses import dataclass, replace

import numpy as np

from elsa_ray.network.instants import SAME_INSTANT
from elsa_ray.world.paths import Paths
from elsa_ray.world.plan import Activities, ActivityKind, Floats, Ints, Plan
from elsa_ray.world.troubles import Troubles

_INT = np.dtype("i")
"""Places of rows, of which there may be many millions, are kept as numbers of 32 bits."""

BEFORE = 0
"""The number of the part before all edges; edges are 1, 2, ..., and what is behind them has the last number."""


@dataclass(frozen=True)
class Part:
    """What is played at one go: a whole plan, or a part of one with row numbers of its own.

    Attributes:
        plan: its rows, work and gathers.
        paths: the ways of the rows to be played: of what goes on, then of the plan's.
        troubles: of the plan's rows; None where nothing befalls any.
        opened_by_others: gathers that are opened from outside of the part.
        tidings: what is heard from there, the last first: when, and a row that waits for it, or ~gather that it opens.
    """

    plan: Plan
    paths: Paths
    troubles: Troubles | None
    opened_by_others: frozenset[int] = frozenset()
    tidings: tuple[tuple[float, int], ...] = ()


class Parts:
    """A plan that falls apart at its edges. What a part has is found when it is asked for.

    Attributes:
        of_row: the number [A] of each activity's part.
        behind: the number of the last part.
    """

    def __init__(self, plan: Plan, of_row: Ints, paths: Paths, part_at_capacity: Ints) -> None:
        self.of_row = of_row
        self.behind = int(of_row.max())
        self._plan, self._paths, self._part_at_capacity = plan, paths, part_at_capacity
        gathers = plan.gathers
        self._rows = _Stretches(of_row, self.behind)
        self._place = self._rows.places()
        self._gathers = _Stretches(of_row[gathers.activity], self.behind)
        self._gather_place = self._gathers.places()
        self._work = _Stretches(of_row[gathers.activity[plan.work.gather]], self.behind)
        part = of_row[plan.successors]
        is_inner = of_row[plan.predecessors] == part
        self._inner = _Stretches(np.where(is_inner, part, self.behind + 1), self.behind)
        outer = np.flatnonzero(~is_inner)
        del is_inner
        opened = np.flatnonzero(gathers.opener >= 0)
        opened = opened[of_row[gathers.opener[opened]] != of_row[gathers.activity[opened]]]
        self._sources = np.concatenate([plan.predecessors[outer], gathers.opener[opened]])
        self._whom = np.concatenate([self._place[plan.successors[outer]], ~self._gather_place[opened]])
        self._tidings = _Stretches(np.concatenate([part[outer], of_row[gathers.activity[opened]]]), self.behind)

    def rows_of(self, part: int) -> Ints:
        """Return the plan's rows that are in a part, ascending; they stand in this order there."""
        return self._rows.of(part)

    def gathers_of(self, part: int) -> Ints:
        """Return the plan's gathers that are in a part, ascending; they stand in this order there."""
        return self._gathers.of(part)

    def part(self, number: int, finish_seconds: Floats, troubles: Troubles | None) -> Part | None:
        """Return a part as a plan of its own; None where what it would hear of has never ended.

        Args:
            number: which.
            finish_seconds: of the plan's activities, as far as they have been played.
            troubles: of the plan's activities.
        """
        plan, rows, gathers, items = self._plan, self._rows.of(number), self._gathers.of(number), self._work.of(number)
        new_item = np.searchsorted(items, plan.activities.work[rows])
        activities = plan.activities.take(rows)
        activities = activities.with_columns(work=np.where(activities.work >= 0, new_item, -1))
        inner, heard = self._inner.of(number), self._tidings.of(number)
        opener = plan.gathers.opener[gathers]
        is_foreign = (opener >= 0) & (self.of_row[opener] != number)
        sources, whom = self._sources[heard], self._whom[heard]
        seconds = finish_seconds[sources]
        if np.isnan(seconds).any():
            return None
        part = replace(
            plan,
            activities=activities,
            predecessors=self._place[plan.predecessors[inner]],
            successors=self._place[plan.successors[inner]],
            work=plan.work.take(items).with_columns(gather=self._gather_place[plan.work.gather[items]]),
            gathers=plan.gathers.take(gathers).with_columns(
                activity=self._place[plan.gathers.activity[gathers]],
                opener=np.where((opener >= 0) & ~is_foreign, self._place[opener], -1),
            ),
        )
        return Part(
            part,
            self._paths.take(rows),
            troubles.take(rows) if troubles is not None else None,
            frozenset(np.flatnonzero(is_foreign).tolist()),
            tuple(sorted(zip(seconds.tolist(), whom.tolist(), strict=True), reverse=True)),
        )

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


class _Stretches:
    """Places sorted by their part, so that each part's are a stretch; those of numbers above the last are left out."""

    def __init__(self, part: Ints, last: int) -> None:
        # Numbers of 16 bits are sorted by counting.
        small = part.astype(np.uint16) if last < np.iinfo(np.uint16).max else part
        self._order: Ints = np.argsort(small, kind="stable").astype(_INT)
        self._first = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=last + 1))])

    def of(self, part: int) -> Ints:
        """Return the places of a part, ascending."""
        return self._order[self._first[part] : self._first[part + 1]]

    def places(self) -> Ints:
        """Return for each place where it stands among those of its part."""
        place: Ints = np.empty(len(self._order), _INT)
        counts = np.diff(self._first)
        place[self._order] = np.arange(len(place)) - np.repeat(self._first[:-1], counts)
        return place


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
