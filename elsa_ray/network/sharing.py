"""Fluid max-min fair sharing over time: flows start, share capacities, and complete.

Fluid, flow-level: the standard model of network simulators, right for transfers much longer than a round trip. A flow
is a number of bytes that runs at the max-min fair rate of the moment; there are no packets, and no slow start.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Sequence

from elsa_ray.network.bottlenecks import Bottlenecks
from elsa_ray.network.bundles import Bundle, Link, fixed, unfixed
from elsa_ray.network.instants import SAME_INSTANT, is_same_instant

__all__ = ["SAME_INSTANT", "FluidSharing", "Lane"]

_SURELY_SLACK = 1 - 1e-6
"""Below this part of a capacity, rounding of the sum of its flows' demands cannot matter."""


_RELIEVED = 0.75
"""Below this part of a capacity that has been contended its flows run by themselves again."""


class FluidSharing:
    """Flows that share capacities max-min fairly; the caller moves the clock, in absolute seconds.

    Each flow is limited by the least capacity that it crosses. A capacity that its flows, all at their limits, cannot
    fill constrains nobody: a flow over such capacities only runs by itself, and costs as little as a timer. Capacities
    that could be filled are left to ``Bottlenecks``. All changes of one instant cost one computation.
    """

    def __init__(self, capacity_bytes_per_second: Iterable[float]) -> None:
        """Share these capacities, in bytes per second; flows name them by their place.

        Raises:
            ValueError: one is no finite number > 0; ``set_capacity`` may lower it to 0 later.
        """
        self._capacity = array("d", capacity_bytes_per_second)
        if not all(0 < value < math.inf for value in self._capacity):
            raise ValueError("capacities must be finite numbers > 0")
        self._flows: dict[int, _Flow] = {}
        self._links: dict[int, Link] = {}  # those that active flows cross
        self._bundles: dict[tuple[float, ...], Bundle] = {}
        # A heap of (seconds, number, whose): entries of what has changed since stay until they surface.
        self._completions: list[tuple[float, int, _Flow | Bundle | Link]] = []
        self._num_announced = 0
        self._clock = -math.inf
        self._is_settled = False  # the first completion is that of a flow, at present levels
        self._relieved: list[Link] = []  # contended links that may have become too empty for it
        self._age = 0  # how often a capacity has changed
        self._bottlenecks = Bottlenecks(self._announce)

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
            num_bytes: zero completes at once, as does a flow that crosses no capacity and has no bound.
            capacities: indices; one that occurs twice is used twice.
            now: seconds, no earlier than any time given before.
            coefficients: how much a byte of the flow loads each of the capacities; 1 where not given.
            weight: > 0; where a capacity is contended, rates over weights are equal.
            bound_bytes_per_second: what the flow cannot exceed.

        Raises:
            ValueError: the id is taken, the clock would go back, or a completion before ``now`` was not collected.
        """
        lane = self.lane(capacities, coefficients, weight=weight, bound_bytes_per_second=bound_bytes_per_second)
        self.start_on(lane, flow_id, num_bytes, now)

    def lane(
        self,
        capacities: Sequence[int],
        coefficients: Sequence[float] | None = None,
        *,
        weight: float = 1.0,
        bound_bytes_per_second: float = math.inf,
    ) -> Lane:
        """Return what many flows over the same capacities have in common, for ``start_on``; see ``start``."""
        load: dict[int, float] = {}
        for capacity, coefficient in zip(capacities, coefficients or [1.0] * len(capacities), strict=True):
            if coefficient > 0:
                load[capacity] = load.get(capacity, 0.0) + coefficient * weight
        return Lane(tuple(load.items()), weight, bound_bytes_per_second / weight)

    def start_on(self, lane: Lane, flow_id: int, num_bytes: float, now: float) -> None:
        """Start a flow on a lane of this sharing; see ``start``."""
        if now != self._clock:
            self._move_clock(now)
        if flow_id in self._flows:
            raise ValueError(f"flow {flow_id} is active already")
        self._is_settled = False
        uses = lane.uses if num_bytes > 0 else ()
        flow = self._flows[flow_id] = _Flow(flow_id, uses, lane.weight, lane.bound)
        if lane.age != self._age:
            lane.age, lane.cap = self._age, self._cap(lane)
        flow.cap = cap = lane.cap if uses else lane.bound
        crowded = None
        is_tied = False
        links = self._links
        for capacity, weight_there in uses:
            link = links.get(capacity)
            if link is None:
                link = links[capacity] = Link(capacity, self._capacity[capacity])
            link.flows[flow_id] = None
            link.demand = demand = link.demand + weight_there * cap
            if link.is_contended:
                is_tied = True
            elif demand > link.capacity * _SURELY_SLACK and len(link.flows) > 1:
                crowded = [link] if crowded is None else [*crowded, link]
        if crowded is not None:
            for link in crowded:
                self._contend(link, but=flow_id)
        if is_tied or crowded is not None:
            self._tie(flow, fixed(num_bytes / lane.weight))
        else:
            flow.left = num_bytes / lane.weight
            flow.since = self._clock
            self._announce_flow(flow)

    def rewind(self, now: float) -> None:
        """Set the clock, forward or back; nothing may be active.

        Raises:
            ValueError: a flow is active.
        """
        if self._flows:
            raise ValueError("flows are active")
        self._completions.clear()
        self._links.clear()
        self._bottlenecks.share()
        self._clock = self._bottlenecks.now = now

    def stop(self, flow_id: int, now: float) -> float:
        """End a flow before its completion, at ``now`` seconds; return the bytes that it had left.

        Raises:
            KeyError: there is no such flow.
            ValueError: as for ``start``.
        """
        self._move_clock(now)
        flow = self._flows[flow_id]
        self._is_settled = False
        left = flow.left_at(self._clock)
        self._untie(flow)
        self._remove(flow)
        self._relieve()
        return left * flow.weight

    def set_capacity(self, capacity: int, bytes_per_second: float, now: float) -> None:
        """Change a capacity at ``now`` seconds; at 0 the flows that cross it stand still until it is changed again.

        Raises:
            ValueError: the new capacity is no finite number >= 0, or as for ``start``.
        """
        if not 0 <= bytes_per_second < math.inf:
            raise ValueError("capacities must be finite numbers >= 0")
        self._move_clock(now)
        self._is_settled = False
        self._age += 1
        self._capacity[capacity] = float(bytes_per_second)
        link = self._links.get(capacity)
        if link is None:
            return
        link.capacity = self._capacity[capacity]
        crowded: dict[Link, None] = {}
        for flow_id in link.flows:
            flow = self._flows[flow_id]
            cap = self._cap(flow)
            if cap == flow.cap:
                continue
            for crossed, weight in flow.uses:
                self._links[crossed].demand += weight * (cap - flow.cap)
                crowded[self._links[crossed]] = None
            self._change_cap(flow, cap)
        crowded[link] = None
        for crossed_link in crowded:
            if crossed_link.is_contended:
                self._bottlenecks.touch(crossed_link)
            elif len(crossed_link.flows) > 1 and crossed_link.demand > crossed_link.capacity * _SURELY_SLACK:
                self._contend(crossed_link)

    def next_completion(self) -> float | None:
        """Return when, in absolute seconds, the next flow completes if nothing changes before; None if none ever does.

        None does not tell that there are no flows: those over a capacity of 0 wait.
        """
        completions = self._completions
        if self._is_settled:
            return completions[0][0] if completions else None
        self._bottlenecks.share()
        while completions:
            due, _, whose = completions[0]
            if whose.due != due:
                heapq.heappop(completions)
            elif isinstance(whose, Link) and whose.follows is not None:
                whose.due = math.inf
                self._bottlenecks.look_again(whose)
            else:
                self._is_settled = True
                return due
        self._is_settled = True
        return None

    def complete_until(self, now: float) -> list[tuple[int, float]]:
        """Complete all flows that are due by ``now``; return their ids with their finish, in absolute seconds.

        Completions within 1e-12 relative are one instant, with one finish, in the order of their ids. Called with
        ``next_completion()`` as ``now``, it gives the flows of that instant; called later, those of each instant since.
        """
        completed: list[tuple[int, float]] = []
        while True:
            instant = self.next_completion()
            if instant is None or (instant > now and not is_same_instant(instant, now)):
                return completed
            is_last = is_same_instant(instant, now)
            # The caller's clock may be a rounding past the instant; what it starts next must not be a second one.
            self._clock = self._bottlenecks.now = max(self._clock, instant, now if is_last else instant)
            due = self._pop_due(instant)
            for flow in due:
                self._remove(flow)
            if self._relieved:
                self._relieve()
            completed += [(flow.flow_id, instant) for flow in due]
            if is_last:
                return completed  # and ask for no new rates yet: what these completions start comes first

    def remaining(self, now: float) -> dict[int, float]:
        """Return the bytes that each active flow has left at ``now`` seconds, to be started again later.

        Raises:
            ValueError: as for ``start``.
        """
        self._move_clock(now)
        return {flow_id: flow.left_at(self._clock) * flow.weight for flow_id, flow in self._flows.items()}

    def rates(self) -> dict[int, float]:
        """Return the present rate of each active flow, in bytes per second; inf where nothing limits it."""
        self._bottlenecks.share()
        return {
            flow_id: (flow.cap if flow.bundle is None else flow.bundle.level()) * flow.weight
            for flow_id, flow in self._flows.items()
        }

    def _move_clock(self, now: float) -> None:
        if now <= self._clock:
            if now < self._clock and not is_same_instant(now, self._clock):
                raise ValueError(f"time went back from {self._clock!r} to {now!r} seconds")
            return
        due = self.next_completion()
        if due is not None and due < now and not is_same_instant(due, now):
            raise ValueError(f"a flow completes at {due!r} seconds: call complete_until before {now!r}")
        self._clock = self._bottlenecks.now = now

    def _cap(self, flow: _Flow | Lane) -> float:
        """Return the level that the flow cannot exceed: of its own bound, and of each capacity if it were alone."""
        cap = flow.bound
        for capacity, weight in flow.uses:
            level = self._capacity[capacity] / weight
            if level < cap:
                cap = level
        return cap

    def _announce(self, due: float, whose: _Flow | Bundle | Link) -> None:
        self._num_announced += 1
        if len(self._completions) > 4 * len(self._flows) + 64:
            self._completions[:] = [entry for entry in self._completions if entry[2].due == entry[0]]
            heapq.heapify(self._completions)
        heapq.heappush(self._completions, (due, self._num_announced, whose))

    def _announce_flow(self, flow: _Flow) -> None:
        if flow.left <= 0 or flow.cap == math.inf:
            flow.due = flow.since
        else:
            flow.due = flow.since + flow.left / flow.cap if flow.cap > 0 else math.inf
        if flow.due < math.inf:
            self._announce(flow.due, flow)

    def _contend(self, link: Link, but: int = -1) -> None:
        """Let the link hold flows from now on, until none crosses it; ``but`` is one that is not tied yet."""
        link.contend()
        for flow_id in link.flows:
            if flow_id != but:
                self._retie(self._flows[flow_id])

    def _change_cap(self, flow: _Flow, cap: float) -> None:
        left = flow.left_at(self._clock)
        if flow.bundle is None:
            flow.left = left
            flow.since = self._clock
            flow.cap = cap
            flow.due = math.inf
            self._announce_flow(flow)
        else:
            self._untie(flow)
            flow.cap = cap
            self._tie(flow, fixed(left))

    def _retie(self, flow: _Flow) -> None:
        """Put a flow where it belongs now that it crosses another contended link."""
        bundle = flow.bundle
        if bundle is None:
            flow.due = math.inf
            self._tie(flow, fixed(flow.left_at(self._clock)), alone=True)
        else:
            left = flow.tag - bundle.service_at(self._clock)
            self._untie(flow)
            self._tie(flow, left)

    def _tie(self, flow: _Flow, left: int, *, alone: bool = False) -> None:
        """Put a flow that has so much left into its bundle; ``alone``: it has run at its limit until now."""
        links = self._links
        key: list[float] = [flow.cap]
        for capacity, weight in flow.uses:
            if links[capacity].is_contended:
                key += (capacity, weight)
        now = self._clock
        bundle = self._bundles.get(tuple(key))
        if bundle is None:
            uses = [(links[capacity], weight) for capacity, weight in flow.uses if links[capacity].is_contended]
            bundle = self._bottlenecks.make(tuple(key), tuple(uses), flow.cap, now)
            self._bundles[bundle.key] = bundle
            if alone and bundle.holder is None:
                # It goes on as it was, and so does what was predicted of it, to the bit.
                bundle.since = flow.since
                left = fixed(flow.left)
        flow.bundle = bundle
        flow.tag = tag = bundle.service_at(bundle.since if bundle.count == 0 else now) + left
        self._bottlenecks.add(bundle, 1)
        heapq.heappush(bundle.ends, (tag, flow.flow_id))
        if bundle.tag < 0 or tag < bundle.tag:
            self._bottlenecks.set_tag(bundle, tag)

    def _untie(self, flow: _Flow) -> None:
        """Take a flow out of its bundle, if it is in one."""
        bundle = flow.bundle
        if bundle is None:
            return
        flow.bundle = None
        self._leave(bundle)
        if bundle.count > 0 and bundle.tag == flow.tag:
            self._find_tag(bundle)

    def _leave(self, bundle: Bundle) -> None:
        self._bottlenecks.add(bundle, -1)
        if bundle.count == 0:
            self._bottlenecks.remove(bundle)
            del self._bundles[bundle.key]
        elif len(bundle.ends) > 2 * bundle.count + 64:
            bundle.ends = [(tag, flow_id) for tag, flow_id in set(bundle.ends) if self._is_in(bundle, tag, flow_id)]
            heapq.heapify(bundle.ends)

    def _is_in(self, bundle: Bundle, tag: int, flow_id: int) -> bool:
        flow = self._flows.get(flow_id)
        return flow is not None and flow.bundle is bundle and flow.tag == tag

    def _find_tag(self, bundle: Bundle) -> None:
        ends = bundle.ends
        while not self._is_in(bundle, *ends[0]):
            heapq.heappop(ends)
        if ends[0][0] != bundle.tag or bundle.due == math.inf:
            self._bottlenecks.set_tag(bundle, ends[0][0])

    def _remove(self, flow: _Flow) -> None:
        flow_id = flow.flow_id
        del self._flows[flow_id]
        flow.due = math.inf
        for capacity, weight in flow.uses:
            link = self._links[capacity]
            del link.flows[flow_id]
            if not link.flows:
                link.demand = 0.0  # it starts anew, so that nothing gathers over a long run
                if link.is_contended:
                    self._forget(link)
                continue
            link.demand -= weight * flow.cap
            if link.is_contended:
                link.num_ended += 1
                if link.num_ended > len(link.flows) and link.demand < link.capacity * _RELIEVED:
                    self._relieved.append(link)

    def _forget(self, link: Link) -> None:
        """Let go a contended link; the next flow finds a new one."""
        del self._links[link.index]
        link.is_contended = False
        link.due = math.inf

    def _relieve(self) -> None:
        """Let flows run by themselves again whose links have become too empty to hold any.

        A link has seen as many flows end as it now lets go, so this costs no more than they did.
        """
        for link in self._relieved:
            if not link.is_contended:
                continue
            flows = [self._flows[flow_id] for flow_id in link.flows]
            for flow in flows:
                self._release(flow)
            self._forget(link)
            fresh = self._links[link.index] = Link(link.index, link.capacity)
            fresh.flows = link.flows
            fresh.demand = math.fsum(
                [weight * flow.cap for flow in flows for capacity, weight in flow.uses if capacity == link.index]
            )
            for flow in flows:
                if any(self._links[capacity].is_contended for capacity, _ in flow.uses):
                    self._retie(flow)
                else:
                    self._announce_flow(flow)
        self._relieved.clear()

    def _release(self, flow: _Flow) -> None:
        """Take a flow out of its bundle; from here on it runs at its limit."""
        bundle = flow.bundle
        assert bundle is not None
        # What ran at its limit before goes on as it was, to the bit.
        flow.since = bundle.since if bundle.holder is None else self._clock
        flow.left = max(0.0, unfixed(flow.tag - bundle.service_at(flow.since)))
        self._untie(flow)
        flow.due = math.inf

    def _pop_due(self, instant: float) -> list[_Flow]:
        """Take the flows that complete at this instant out of their bundles; return them in the order of their ids."""
        self._is_settled = False
        due: list[_Flow] = []
        completions = self._completions
        while completions:
            seconds, _, whose = completions[0]
            if seconds > instant and not is_same_instant(seconds, instant):
                break
            heapq.heappop(completions)
            if whose.due != seconds:
                continue
            whose.due = math.inf
            if isinstance(whose, Link) and whose.follows is not None:
                self._bottlenecks.wake(whose)
            if isinstance(whose, _Flow):
                due.append(whose)
            elif isinstance(whose, Bundle):
                due.append(self._pop_end(whose))
            else:
                following = self._bottlenecks.next_end(whose)
                while following is not None and (following[0] <= instant or is_same_instant(following[0], instant)):
                    due.append(self._pop_end(following[1]))
                    following = self._bottlenecks.next_end(whose)
        due.sort(key=_flow_id)
        return due

    def _pop_end(self, bundle: Bundle) -> _Flow:
        flow = self._flows[bundle.ends[0][1]]
        self._untie(flow)
        return flow


class Lane:
    """What flows over the same capacities have in common: see ``FluidSharing.lane``."""

    __slots__ = ("age", "bound", "cap", "uses", "weight")

    def __init__(self, uses: tuple[tuple[int, float], ...], weight: float, bound: float) -> None:
        self.uses = uses
        self.weight = weight
        self.bound = bound
        self.cap = math.inf
        self.age = -1
        """The age of the sharing for which ``cap`` holds."""


class _Flow:
    """An active flow: by itself at its limit, with what was left at ``since``; or in a bundle, with a tag.

    What is left is in bytes over its weight.
    """

    __slots__ = ("bound", "bundle", "cap", "due", "flow_id", "left", "since", "tag", "uses", "weight")

    def __init__(self, flow_id: int, uses: tuple[tuple[int, float], ...], weight: float, bound: float) -> None:
        self.flow_id = flow_id
        self.uses = uses
        """Each capacity with the part of it that a level of 1 takes."""
        self.weight = weight
        self.bound = bound
        self.cap = math.inf
        self.bundle: Bundle | None = None
        self.left = 0.0
        self.since = 0.0
        self.due = math.inf
        self.tag = 0

    def left_at(self, now: float) -> float:
        """Return what is left at ``now``."""
        if self.bundle is not None:
            return max(0.0, unfixed(self.tag - self.bundle.service_at(now)))
        if now >= self.due:
            return 0.0
        if now <= self.since:
            return self.left
        return max(0.0, self.left - self.cap * (now - self.since))


def _flow_id(flow: _Flow) -> int:
    return flow.flow_id
