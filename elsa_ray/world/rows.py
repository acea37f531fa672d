"""The rows of one playing as flat arrays: what was carried over first, then the plan's.

A plan of a hundred thousand clients has millions of rows, so there is no object a row: columns are arrays, and the
successors of a row are a stretch of one long array. Single elements are read from ``array`` and ``bytes``, which give
plain numbers three times as fast as numpy does.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from elsa_ray.world.plan import Activities, ActivityKind, Floats, Ints, Plan, WorkItems
from elsa_ray.world.timeline import WorldState
from elsa_ray.world.troubles import Troubles


class Rows:
    """What does not change while a plan is played.

    Attributes:
        activities, work: of the state, then of the plan; ``work`` of the plan's activities points behind the state's.
        offset: where the plan's activities begin.
        kind: an ActivityKind for each row.
        source, target, work_of: columns of the activities.
        num_bytes: of a transfer.
        compute_seconds: of a computation on one slot of its node, up to where its work stops; 0 for other rows.
        waits_for: rows that must end first, for each row at the start.
        only_successor: of a row that one other waits for; else -1, for none or several.
        last_row_of_work: the upload, or the edge's test of it.
        troubles: what befalls the rows; None where nothing befalls any.

    Args:
        state, plan: where they come from.
        flops_per_second: of one slot, by node.
        troubles: of the plan's activities.
    """

    def __init__(
        self,
        state: WorldState,
        plan: Plan,
        flops_per_second: Sequence[float] | Floats,
        troubles: Troubles | None,
    ) -> None:
        self.offset = len(state.activities)
        self.work = WorkItems.concatenate([state.work, plan.work])
        self.activities = activities = merged_activities(state, plan)
        count = len(activities)
        self.kind = activities.kind.astype(np.uint8).tobytes()
        self.source, self.target = _plain(activities.source), _plain(activities.target)
        self.work_of = _plain(activities.work)
        self.num_bytes = _plain(activities.num_bytes, "q")
        self.troubles = _merged_troubles(state, plan, troubles)
        self.compute_seconds = _compute_seconds(activities, flops_per_second, self.troubles)
        predecessors = np.concatenate([state.predecessors, plan.predecessors + self.offset])
        successors = np.concatenate([state.successors, plan.successors + self.offset])
        self.waits_for = _plain(np.bincount(successors, minlength=count))
        self._successors, self._first = _by_row(predecessors, successors, count)
        self.only_successor = self._find_only_successors()
        self.last_row_of_work = _last_rows(activities.work, len(self.work))
        self._rows_of_work: tuple[array[int], array[int]] | None = None
        self._work_of_client: tuple[array[int], array[int]] | None = None

    def __len__(self) -> int:
        return len(self.kind)

    def successors(self, row: int) -> Sequence[int]:
        """Return the rows that wait for a row."""
        return self._successors[self._first[row] : self._first[row + 1]]

    def _find_only_successors(self) -> array[int]:
        only, first = np.full(len(self), -1, np.intc), np.frombuffer(self._first, np.intc)
        has_one = np.flatnonzero(np.diff(first) == 1)
        if len(has_one):
            only[has_one] = np.frombuffer(self._successors, np.intc)[first[has_one]]
        return array("i", only.tobytes())

    def rows_of_work(self, work: int) -> Sequence[int]:
        """Return the rows of a work item, in order."""
        if self._rows_of_work is None:
            of_work = np.flatnonzero(self.activities.work >= 0)
            self._rows_of_work = _by_row(self.activities.work[of_work], of_work, len(self.work))
        rows, first = self._rows_of_work
        return rows[first[work] : first[work + 1]]

    def work_of_client(self, client: int) -> Sequence[int]:
        """Return the work items of a client, in order."""
        if self._work_of_client is None:
            clients = self.work.client
            self._work_of_client = _by_row(clients, np.arange(len(clients)), int(clients.max(initial=0)) + 1)
        work, first = self._work_of_client
        return work[first[client] : first[client + 1]]

    def dependencies_among(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return the pairs of predecessor and successor that both are among some rows, as positions in these."""
        position = np.full(len(self), -1, np.int64)
        position[rows] = np.arange(len(rows))
        first = np.frombuffer(self._first, np.intc)
        predecessors = position[np.repeat(np.arange(len(self)), np.diff(first))]
        successors = position[np.frombuffer(self._successors, np.intc)] if len(self._successors) else predecessors
        among = (predecessors >= 0) & (successors >= 0)
        return predecessors[among], successors[among]


def merged_activities(state: WorldState, plan: Plan) -> Activities:
    """Return the state's activities and then the plan's, whose work stands behind the state's."""
    if not len(state.work):
        return Activities.concatenate([state.activities, plan.activities]) if len(state.activities) else plan.activities
    shifted = np.where(plan.activities.work >= 0, plan.activities.work + len(state.work), -1)
    return Activities.concatenate([state.activities, plan.activities.with_columns(work=shifted)])


def _merged_troubles(state: WorldState, plan: Plan, troubles: Troubles | None) -> Troubles | None:
    if state.troubles is None and troubles is None:
        return None
    before = state.troubles if state.troubles is not None else Troubles.none(len(state.activities))
    new = troubles if troubles is not None else Troubles.none(len(plan.activities))
    return Troubles.concatenate([before, new])


def _compute_seconds(
    activities: Activities, flops_per_second: Sequence[float] | Floats, troubles: Troubles | None
) -> array[float]:
    seconds = np.zeros(len(activities))
    computes = np.flatnonzero(activities.kind == ActivityKind.COMPUTE)
    rates = np.asarray(flops_per_second, np.float64)
    seconds[computes] = activities.flops[computes] / rates[activities.source[computes]]
    if troubles is not None:
        seconds *= troubles.slowdown * np.where(np.isnan(troubles.stop_share), 1.0, troubles.stop_share)
    return array("d", seconds.tobytes())


def _by_row(owner: Ints, values: Ints, num_rows: int) -> tuple[array[int], array[int]]:
    """Return the values sorted by their owner, and where each owner's begin."""
    order = np.argsort(owner, kind="stable")
    first = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=num_rows), out=first[1:])
    return _plain(values[order]), _plain(first)


def _last_rows(work: Ints, num_work: int) -> Ints:
    """Return the last row of each work item; -1 for one without rows."""
    last = np.full(num_work, -1, np.int64)
    rows = np.flatnonzero(work >= 0)
    np.maximum.at(last, work[rows], rows)
    return last


def _plain(column: npt.NDArray[np.int64], code: str = "i") -> array[int]:
    """Return a column as an ``array``: of C ints (``i``), or of 8 bytes each (``q``)."""
    return array(code, column.astype(np.dtype(code)).tobytes())
