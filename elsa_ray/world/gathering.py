"""Gathers in the course of a plan: work arrives, gathers close and take it, what misses one is late.

Also what a part of a round that is played by itself hears of those before it, as that starts rows and opens gathers.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from heapq import heappush

import numpy as np

from elsa_ray.network.sharing import FluidSharing
from elsa_ray.world.course import ENDED, Course, Field
from elsa_ray.world.incidents import Incidents
from elsa_ray.world.parts import Part
from elsa_ray.world.plan import ActivityKind, WorkKey
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from elsa_ray.world.troubles import Cause

ENDS_WORK, OPENS_GATHERS, TROUBLED = 1, 2, 4
"""What is notable of a row's end."""


class Gathering(Course):
    """The course of a plan's rows up to its gathers.

    Args:
        part, before, field, links: as for ``Course``.

    Attributes:
        is_over: the last gather has closed.
    """

    def __init__(self, part: Part, before: WorldState, field: Field, links: FluidSharing) -> None:
        super().__init__(part, before, field, links)
        self._plan = plan = part.plan
        self._tidings = list(part.tidings)
        for _, whom in self._tidings:
            if whom >= 0:
                self._waits_for[whom] += 1
        self._unfinished_at = self._unfinished_work()
        self._dropped: list[tuple[WorkKey, Cause, float]] = []
        self._skipped: list[WorkKey] = []
        self._inbox: dict[int, list[WorkKey]] = defaultdict(list)
        for node, key in before.inbox:
            self._inbox[node].append(key)
        self._gather_of_row = {int(row) + self._rows.offset: g for g, row in enumerate(plan.gathers.activity)}
        self._gathers_opened_by: dict[int, list[int]] = defaultdict(list)
        for gather, opener in enumerate(plan.gathers.opener.tolist()):
            if gather in part.opened_by_others:
                continue
            opening_row = opener + self._rows.offset if opener >= 0 else -1
            self._gathers_opened_by[opening_row].append(gather)
            if opening_row >= 0:
                self._notable[opening_row] |= OPENS_GATHERS
        self._num_members = Counter(plan.work.gather.tolist())
        self._quorum_left = plan.gathers.quorum.tolist()  # 0 where there is none
        self._arrivals: list[tuple[WorkKey, ...]] = [()] * len(plan.gathers)
        self._deadlines: list[tuple[float, int]] = []
        self.is_over = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left: neither a row nor work that nobody has gathered."""
        return self._phase.count(ENDED) == len(self._phase) and not any(self._inbox.values())

    def _tell(self, row: int) -> None:
        """Deliver the work that a row ends, and open the gathers that it opens."""
        if self._notable[row] & ENDS_WORK:
            work, node = self._rows.work_of[row], self._target[row]
            self._unfinished_at[node].discard(work)
            self._inbox[node].append(self._rows.work.key(work))
            self._count_for_quorum(int(self._rows.work.gather[work]))
        if self._notable[row] & OPENS_GATHERS:
            self._open_gathers(row)

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

    def _hear(self, limit: float) -> None:
        """Take note of what has ended in other parts by ``limit``."""
        tidings = self._tidings
        while tidings and tidings[-1][0] <= limit:
            whom = tidings.pop()[1]
            if whom < 0:
                self._open([~whom])
            else:
                self._count_off(whom)

    def _close(self, row: int) -> None:
        """Close a gather: take what has arrived, deal with what is late, let the next round open."""
        if self._phase[row] == ENDED:
            return
        gather = self._gather_of_row[row]
        node = int(self._plan.gathers.node[gather])
        self._arrivals[gather] = tuple(sorted(self._inbox.pop(node, ())))
        self._start[row] = self._now
        self._settle(row, Outcome.DONE)
        self._deal_with_late_work(gather, node)
        self._open_gathers(row)
        self._release_successors(row)
        self.is_over = self.is_over or gather == len(self._plan.gathers) - 1

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

    def _wait_for_late_work(self, row: int, gather: int) -> None:
        """Let a gather without members of its own wait for what is late at its node.

        Without this a round in which everybody is still busy would close at once, and time would stand still.
        """
        edge_round = int(self._plan.gathers.edge_round[gather])
        for work in sorted(self._unfinished_at[int(self._plan.gathers.node[gather])]):
            if self._edge_round_in_plan(work) < edge_round:
                self._late_for.setdefault(int(self._rows.last_row_of_work[work]), []).append(row)
                self._waits_for[row] += 1

    def _unfinished_work(self) -> dict[int, set[int]]:
        """Return the work that goes on, by the node that gathers it: where its last activity ends."""
        rows, unfinished = self._rows, defaultdict[int, set[int]](set)
        for work in np.flatnonzero(rows.last_row_of_work >= 0).tolist():
            last = int(rows.last_row_of_work[work])
            unfinished[rows.target[last]].add(work)
            self._notable[last] |= ENDS_WORK
        return unfinished

    def _unfinished(self) -> set[int]:
        return {work for works in self._unfinished_at.values() for work in works}

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
            if self._phase[row] != ENDED:
                self._break_off(row, outcome)
        self._unfinished_at[self._rows.target[int(self._rows.last_row_of_work[work])]].discard(work)
        self._num_members[int(self._rows.work.gather[work])] -= 1

    def _timeline(self, resent: Mapping[int, int], incidents: Incidents, lost_nodes: frozenset[int]) -> Timeline:
        """Return what happened; ``resent``: how often rows were sent in vain."""
        rows = self._rows
        finish, outcome = np.frombuffer(self._finish), np.frombuffer(self._outcome, np.uint8)
        whole = (outcome == Outcome.DONE) & (rows.activities.kind == ActivityKind.TRANSFER)
        carried_bytes = np.where(whole, rows.activities.num_bytes, 0)
        carried_bytes[list(self._broken_off_bytes)] = list(self._broken_off_bytes.values())
        for row, times in resent.items():
            if self._phase[row] == ENDED:
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
            incidents=incidents,
            paths=self._paths,
            lost_nodes=lost_nodes,
        )
