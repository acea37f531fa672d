"""Fluid max-min fair sharing over time: flows start, share capacities, and complete.

Fluid, flow-level: the standard model of network simulators, right for transfers much longer than a round trip. A flow
is a number of bytes that runs at the max-min fair rate of the moment; there are no packets, and no slow start.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

from elsa_ray.network.instants import SAME_INSTANT
from elsa_ray.network.instants import is_same_instant as _is_same_instant
from elsa_ray.network.max_min import max_min_rates

__all__ = ["SAME_INSTANT", "FluidSharing"]

_SURELY_SLACK = 1 - 1e-6
"""Below this part of a capacity, rounding of the sum of its flows' demands cannot matter."""


class FluidSharing:
    """Flows that share capacities max-min fairly; the caller moves the clock, in absolute seconds.

    Each flow is bounded by the least capacity that it crosses. A capacity that its flows, all at their bounds, cannot
    fill constrains nobody, so it ties no flows together: rates are computed anew only for the flows that are tied,
    through capacities that *are* contended, to what has changed. All changes of one instant cost one computation.
    """

    def __init__(self, capacity_bytes_per_second: Iterable[float]) -> None:
        """Share these capacities, in bytes per second; flows name them by their place.

        Raises:
            ValueError: one is no finite number > 0; ``set_capacity`` may lower it to 0 later.
        """
        self._capacity = [float(value) for value in capacity_bytes_per_second]
        if not all(0 < value < math.inf for value in self._capacity):
            raise ValueError("capacities must be finite numbers > 0")
        self._flows: dict[int, _Flow] = {}
        self._flows_on: dict[int, dict[int, None]] = {}  # dicts as ordered sets: the order of sums must not vary
        self._demand: dict[int, float] = {}
        self._contended: set[int] = set()
        self._touched: dict[int, None] = {}
        self._new: dict[int, None] = {}  # flows that started, or whose ties changed
        self._completions: list[tuple[float, int]] = []  # a heap; entries of changed flows stay until they surface
        self._clock = -math.inf

    def start(
        self,
        flow_id: int,
        num_bytes: float,
        capacities: Sequence[int],
        now: float,
        coefficients: Sequence[float] | None = None,
        *,
        weight: float = 1.0,
        bound_bytes_per_second: float = math.inf,
    ) -> None:
        """Start a flow of ``num_bytes`` over the capacities, at ``now`` seconds.

        Args:
            flow_id: a number that no active flow has.
            num_bytes: zero completes at once, as does a flow that crosses no capacity.
            capacities: indices; one that occurs twice is used twice.
            now: seconds, no earlier than any time given before.
            coefficients: how much a byte of the flow loads each of the capacities; 1 where not given.
            weight: > 0; where a capacity is contended, rates over weights are equal.
            bound_bytes_per_second: what the flow cannot exceed.

        Raises:
            ValueError: the id is taken, the clock would go back, or a completion before ``now`` was not collected.
        """
        self._move_clock(now)
        if flow_id in self._flows:
            raise ValueError(f"flow {flow_id} is active already")
        load: dict[int, float] = {}
        for position, capacity in enumerate(capacities):
            load[capacity] = load.get(capacity, 0.0) + (1.0 if coefficients is None else coefficients[position])
        # All else is in levels: rate over weight.
        uses = tuple((int(capacity), coefficient * weight) for capacity, coefficient in load.items() if coefficient > 0)
        limit = bound_bytes_per_second / weight
        bound = min((self._capacity[capacity] / coefficient for capacity, coefficient in uses), default=math.inf)
        bound = min(bound, limit)
        self._flows[flow_id] = _Flow(float(num_bytes) / weight, uses, bound, self._clock, weight, limit)
        self._new[flow_id] = None
        for capacity, coefficient in uses:
            self._flows_on.setdefault(capacity, {})[flow_id] = None
            self._demand[capacity] = self._demand.get(capacity, 0.0) + coefficient * bound
            self._touched[capacity] = None

    def stop(self, flow_id: int, now: float) -> float:
        """End a flow before its completion, at ``now`` seconds; return the bytes that it had left.

        Raises:
            KeyError: there is no such flow.
            ValueError: as for ``start``.
        """
        self._move_clock(now)
        flow = self._flows[flow_id]
        remaining = flow.remaining_at(self._clock) * flow.weight
        self._remove(flow_id)
        return remaining

    def set_capacity(self, capacity: int, bytes_per_second: float, now: float) -> None:
        """Change a capacity at ``now`` seconds; at 0 the flows that cross it stand still until it is changed again.

        Raises:
            ValueError: the new capacity is no finite number >= 0, or as for ``start``.
        """
        if not 0 <= bytes_per_second < math.inf:
            raise ValueError("capacities must be finite numbers >= 0")
        self._move_clock(now)
        self._capacity[capacity] = float(bytes_per_second)
        for flow_id in self._flows_on.get(capacity, ()):
            flow = self._flows[flow_id]
            bound = min(self._capacity[crossed] / coefficient for crossed, coefficient in flow.uses)
            bound = min(bound, flow.limit)
            for crossed, coefficient in flow.uses:
                self._demand[crossed] += coefficient * (bound - flow.bound)
                self._touched[crossed] = None
            flow.bound = bound
            self._new[flow_id] = None

    def next_completion(self) -> float | None:
        """Return when, in absolute seconds, the next flow completes if nothing changes before; None without flows."""
        self._share()
        while self._completions:
            finish, flow_id = self._completions[0]
            flow = self._flows.get(flow_id)
            if flow is not None and flow.finish == finish:
                return finish if finish < math.inf else None
            heapq.heappop(self._completions)
        return None

    def complete_until(self, now: float) -> list[tuple[int, float]]:
        """Complete all flows that are due by ``now``; return their ids with their finish, in absolute seconds.

        Completions within 1e-12 relative are one instant, with one finish, in the order of their ids. Called with
        ``next_completion()`` as ``now``, it gives the flows of that instant; called later, those of each instant since.
        """
        completed: list[tuple[int, float]] = []
        while True:
            instant = self.next_completion()
            if instant is None or (instant > now and not _is_same_instant(instant, now)):
                return completed
            is_last = _is_same_instant(instant, now)
            # The caller's clock may be a rounding past the instant; what it starts next must not be a second one.
            self._clock = max(self._clock, instant, now if is_last else instant)
            due = self._pop_due(instant)
            for flow_id in due:
                self._remove(flow_id)
            completed += [(flow_id, instant) for flow_id in due]
            if is_last:
                return completed  # and ask for no new rates yet: what these completions start comes first

    def remaining(self, now: float) -> dict[int, float]:
        """Return the bytes that each active flow has left at ``now`` seconds, to be started again later.

        Raises:
            ValueError: as for ``start``.
        """
        self._move_clock(now)
        return {flow_id: flow.remaining_at(self._clock) * flow.weight for flow_id, flow in self._flows.items()}

    def rates(self) -> dict[int, float]:
        """Return the present rate of each active flow, in bytes per second; inf where it crosses no capacity."""
        self._share()
        return {flow_id: flow.rate * flow.weight for flow_id, flow in self._flows.items()}

    def _move_clock(self, now: float) -> None:
        if now <= self._clock:
            if now < self._clock and not _is_same_instant(now, self._clock):
                raise ValueError(f"time went back from {self._clock!r} to {now!r} seconds")
            return
        due = self.next_completion()
        if due is not None and due < now and not _is_same_instant(due, now):
            raise ValueError(f"a flow completes at {due!r} seconds: call complete_until before {now!r}")
        self._clock = now

    def _pop_due(self, instant: float) -> list[int]:
        due: dict[int, None] = {}
        while self._completions:
            finish, flow_id = self._completions[0]
            if finish > instant and not _is_same_instant(finish, instant):
                break
            heapq.heappop(self._completions)
            if flow_id in self._flows and self._flows[flow_id].finish == finish:
                due[flow_id] = None
        return sorted(due)

    def _remove(self, flow_id: int) -> None:
        flow = self._flows.pop(flow_id)
        self._new.pop(flow_id, None)
        for capacity, coefficient in flow.uses:
            flows = self._flows_on[capacity]
            del flows[flow_id]
            # An empty capacity starts from an exact zero again, so that roundings do not gather over a long run.
            self._demand[capacity] = self._demand[capacity] - coefficient * flow.bound if flows else 0.0
            self._touched[capacity] = None

    def _share(self) -> None:
        """Give each flow that the changes of this instant concern its new rate and completion."""
        if not self._touched and not self._new:
            return
        self._find_contended()
        flows, capacities = self._component()
        rates = max_min_rates(
            [flow.bound for flow in flows.values()],
            [flow.ties for flow in flows.values()],
            {capacity: self._capacity[capacity] for capacity in capacities},
        )
        now = self._clock
        for (flow_id, flow), rate in zip(flows.items(), rates, strict=True):
            if flow.left_bytes == 0 and flow.rate == 0:
                rate = math.inf  # nothing to carry: not even a link that is down holds it up
            if rate != flow.rate:  # else the predicted completion stands, and gathers no rounding
                flow.left_bytes = flow.remaining_at(now)
                flow.since = now
                flow.rate = rate
                flow.finish = now + flow.left_bytes / rate if rate > 0 else math.inf
                heapq.heappush(self._completions, (flow.finish, flow_id))
        if len(self._completions) > 4 * len(self._flows) + 64:
            self._completions = [(flow.finish, flow_id) for flow_id, flow in self._flows.items()]
            heapq.heapify(self._completions)
        self._touched.clear()
        self._new.clear()

    def _find_contended(self) -> None:
        """Decide anew which of the touched capacities tie their flows together, and tell those flows."""
        concerned = dict.fromkeys(self._new)
        for capacity in self._touched:
            flows = self._flows_on[capacity]
            # The one flow of a capacity is bounded by it already.
            fills = self._demand[capacity] > self._capacity[capacity] * _SURELY_SLACK and len(flows) > 1
            if fills != (capacity in self._contended):
                self._contended ^= {capacity}
                concerned.update(flows)
        for flow_id in concerned:
            flow = self._flows[flow_id]
            flow.ties = [use for use in flow.uses if use[0] in self._contended]
            # Also where a flow is tied no longer: its rate may rise.
            self._new[flow_id] = None

    def _component(self) -> tuple[dict[int, _Flow], set[int]]:
        """Return the flows that share, over any number of contended capacities, with what changed; and those."""
        flows = {flow_id: self._flows[flow_id] for flow_id in self._new}
        seen = {capacity for capacity in self._touched if capacity in self._contended}
        frontier = list(seen)
        for flow in flows.values():
            for capacity, _ in flow.ties:
                if capacity not in seen:
                    seen.add(capacity)
                    frontier.append(capacity)
        while frontier:
            for flow_id in self._flows_on[frontier.pop()]:
                if flow_id in flows:
                    continue
                flow = flows[flow_id] = self._flows[flow_id]
                for capacity, _ in flow.ties:
                    if capacity not in seen:
                        seen.add(capacity)
                        frontier.append(capacity)
        return flows, seen


class _Flow:
    """An active flow: the bytes left at ``since``, and its rate and predicted completion from then on."""

    __slots__ = ("bound", "finish", "left_bytes", "limit", "rate", "since", "ties", "uses", "weight")

    def __init__(
        self,
        num_bytes: float,
        uses: tuple[tuple[int, float], ...],
        bound: float,
        now: float,
        weight: float,
        limit: float,
    ) -> None:
        self.weight = weight
        self.limit = limit
        self.left_bytes = num_bytes
        self.uses = uses
        self.ties: list[tuple[int, float]] = []  # the uses of contended capacities
        self.bound = bound
        self.rate = 0.0
        self.since = now
        self.finish = math.inf

    def remaining_at(self, now: float) -> float:
        """Return the bytes left at ``now``."""
        if now >= self.finish:
            return 0.0
        if now <= self.since:
            return self.left_bytes
        return max(0.0, self.left_bytes - self.rate * (now - self.since))
