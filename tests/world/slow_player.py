"""The slow obvious player that the real one is compared with: rational numbers, everything anew at each event.

It knows one round: transfers, computations, gathers with deadlines, and both policies for what is late. Times are
fractions, so "the same instant" means equal, and rates are solved from scratch whenever anything happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Router
from elsa_ray.world.plan import ActivityKind, Plan
from tests.network.slow_solver import fair_rates


@dataclass
class Row:
    """What has become of a row: ``end`` without ``outcome`` done means when it was given up."""

    start: Fraction | None = None
    end: Fraction | None = None
    outcome: str = "pending"
    carried: int = 0


class SlowPlayer:
    def __init__(self, plan: Plan, network: Network, speeds: Sequence[int], slots: Sequence[int]) -> None:
        self.plan, self.speeds, self.slots = plan, speeds, slots
        self.capacities = [Fraction(value) for value in network.capacity_bytes_per_second.tolist()]
        router = Router(network)
        table = plan.activities
        self.kind, self.work = table.kind.tolist(), table.work.tolist()
        self.source, self.target = table.source.tolist(), table.target.tolist()
        self.size, self.flops = table.num_bytes.tolist(), table.flops.tolist()
        self.rows = [Row() for _ in self.kind]
        self.routes = [router.route(*ends) for ends in zip(self.source, self.target, strict=True)]
        self.arrived: dict[int, Fraction] = {}  # at a slot's queue
        self.timer: dict[int, Fraction] = {}  # end of latency or computation
        self.left: dict[int, Fraction] = {}  # of flowing transfers
        self.opened: dict[int, Fraction] = {}  # gathers, by ordinal
        self.taken: dict[int, list[int]] = {}  # work by gather
        self.inbox: dict[int, list[int]] = {}
        self.now = Fraction(0)

    def play(self) -> SlowPlayer:
        gathers = self.plan.gathers
        for gather in range(len(gathers)):
            if gathers.opener[gather] == -1:
                self.opened[gather] = self.now
        self._start()
        last = int(gathers.activity[-1])
        while self.rows[last].outcome == "pending":
            rates = self._rates()
            events = [*self.timer.values(), *self._deadlines().values()]
            events += [self.now + self.left[row] / rates[row] for row in self.left]
            step = min(events)
            for row in self.left:
                self.left[row] -= rates[row] * (step - self.now)
            self.now = step
            self._end_what_is_due()
            for gather in sorted(g for g, due in self._deadlines().items() if due == self.now):
                self._close(gather)
            self._start()
        return self

    def _rates(self) -> dict[int, Fraction]:
        flowing = sorted(self.left)
        crossed = [self.routes[row].capacities for row in flowing]  # type: ignore[union-attr]
        return dict(zip(flowing, fair_rates(crossed, self.capacities), strict=True))

    def _deadlines(self) -> dict[int, Fraction]:
        gathers = self.plan.gathers
        return {
            gather: opening + Fraction(float(gathers.deadline_seconds[gather]))
            for gather, opening in self.opened.items()
            if gathers.deadline_seconds[gather] < float("inf")
            and self.rows[int(gathers.activity[gather])].outcome == "pending"
        }

    def _end_what_is_due(self) -> None:
        due = {row for row, end in self.timer.items() if end == self.now}
        due |= {row for row, left in self.left.items() if left == 0}
        for row in sorted(due):
            was_latency = row in self.timer and self.kind[row] == ActivityKind.TRANSFER
            self.timer.pop(row, None)
            self.left.pop(row, None)
            if was_latency and self.size[row] > 0:
                self.left[row] = Fraction(self.size[row])
            else:
                self._finish(row)

    def _finish(self, row: int) -> None:
        self.rows[row].end, self.rows[row].outcome = self.now, "done"
        if self.kind[row] == ActivityKind.TRANSFER:
            self.rows[row].carried = self.size[row]
        if self.work[row] >= 0 and row == self._rows_of(self.work[row])[-1]:
            self.inbox.setdefault(self.target[row], []).append(self.work[row])

    def _start(self) -> None:
        """Start whatever may start, lowest row first, until nothing more may; then fill the slots."""
        while True:
            ready = [row for row in range(len(self.rows)) if self._is_ready(row)]
            if not ready:
                break
            row = ready[0]
            if self.kind[row] == ActivityKind.GATHER:
                self._close(self.plan.gathers.activity.tolist().index(row))
            elif self.kind[row] == ActivityKind.COMPUTE:
                self.arrived[row] = self.now
            else:
                self.rows[row].start = self.now
                route = self.routes[row]
                assert route is not None
                if route.latency_seconds > 0:
                    self.timer[row] = self.now + Fraction(route.latency_seconds)
                elif self.size[row] > 0 and route.links:
                    self.left[row] = Fraction(self.size[row])
                else:
                    self._finish(row)
        for node in range(len(self.slots)):
            waiting = sorted((when, row) for row, when in self.arrived.items() if self.source[row] == node)
            running = [row for row in self.timer if self.kind[row] == ActivityKind.COMPUTE and self.source[row] == node]
            for _, row in waiting[: max(0, self.slots[node] - len(running))]:
                del self.arrived[row]
                self.rows[row].start = self.now
                self.timer[row] = self.now + Fraction(self.flops[row], self.speeds[node])

    def _is_ready(self, row: int) -> bool:
        state = self.rows[row]
        if state.outcome != "pending" or state.start is not None or row in self.arrived:
            return False
        pairs = zip(self.plan.predecessors.tolist(), self.plan.successors.tolist(), strict=True)
        return all(self.rows[before].outcome != "pending" for before, after in pairs if after == row)

    def _close(self, gather: int) -> None:
        gathers, row = self.plan.gathers, int(self.plan.gathers.activity[gather])
        node, edge_round = int(gathers.node[gather]), int(gathers.edge_round[gather])
        self.rows[row] = Row(self.now, self.now, "done")
        self.taken[gather] = sorted(self.inbox.pop(node, []))
        unfinished = [
            work
            for work in range(len(self.plan.work))
            if self.target[self._rows_of(work)[-1]] == node and self.rows[self._rows_of(work)[-1]].outcome == "pending"
        ]
        round_of = {work: int(gathers.edge_round[self.plan.work.gather[work]]) for work in unfinished}
        late = [work for work in unfinished if round_of[work] <= edge_round]
        if not self.plan.keep_late:
            for work in late:
                self._give_up(work, "dropped")
        else:
            clients = {int(self.plan.work.client[work]) for work in late}
            for work in unfinished:
                if round_of[work] == edge_round + 1 and int(self.plan.work.client[work]) in clients:
                    self._give_up(work, "skipped")
        for other in range(len(gathers)):
            if gathers.opener[other] == row:
                self.opened[other] = self.now

    def _give_up(self, work: int, outcome: str) -> None:
        for row in self._rows_of(work):
            if self.rows[row].outcome == "pending":
                carried = self.size[row] - round(self.left.pop(row)) if row in self.left else 0
                self.timer.pop(row, None)
                self.arrived.pop(row, None)
                self.rows[row] = Row(self.rows[row].start, self.now, outcome, carried)

    def _rows_of(self, work: int) -> list[int]:
        return [row for row, own in enumerate(self.work) if own == work]
