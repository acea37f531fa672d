"""Max-min fair rates of flows that share capacities, at one moment: progressive filling."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

Uses = Sequence[tuple[int, float]]
"""The capacities that a flow crosses, each with the coefficient by which a byte of the flow loads it."""


def max_min_rates(bounds: Sequence[float], uses: Sequence[Uses], capacities: Mapping[int, float]) -> list[float]:
    """Return the max-min fair rate of each flow, in bytes per second.

    All rates rise together from zero. A flow stops rising at its own bound, or when a capacity that it crosses is
    full; the rest rise on. (Bertsekas and Gallager, *Data Networks*, 1992, section 6.5.2.) In the result no flow could
    be faster without slowing one that is no faster than itself.

    Args:
        bounds: for each flow, the rate that it cannot exceed, in bytes per second.
        uses: for each flow, the capacities that it crosses, none twice.
        capacities: bytes per second by capacity; all that ``uses`` names.
    """
    filling = _Filling(uses, capacities)
    by_bound = sorted(range(len(bounds)), key=bounds.__getitem__, reverse=True)
    rates = [-1.0] * len(bounds)
    level = 0.0
    while by_bound:
        if rates[by_bound[-1]] >= 0:
            by_bound.pop()
            continue
        share, tightest = filling.tightest()
        # The level never falls; a share below it is the rounding of an equal one.
        level = max(level, share)
        stopped = []
        while by_bound and bounds[by_bound[-1]] <= level:
            flow = by_bound.pop()
            if rates[flow] < 0:
                rates[flow] = bounds[flow]
                stopped.append(flow)
        if not stopped:
            stopped = [flow for flow in filling.flows_on[tightest] if rates[flow] < 0]
            for flow in stopped:
                rates[flow] = level
        filling.stop(stopped, rates)
    return rates


class _Filling:
    """What is left of each capacity while rates rise: spare bytes per second, and the flows that still share it."""

    def __init__(self, uses: Sequence[Uses], capacities: Mapping[int, float]) -> None:
        self.uses = uses
        self.flows_on: dict[int, list[int]] = {capacity: [] for capacity in capacities}
        self.rising = dict.fromkeys(capacities, 0)
        self.load = dict.fromkeys(capacities, 0.0)
        for flow, crossed in enumerate(uses):
            for capacity, coefficient in crossed:
                self.flows_on[capacity].append(flow)
                self.rising[capacity] += 1
                self.load[capacity] += coefficient
        self.spare = dict(capacities)
        self.shares = [(self._share(capacity), capacity) for capacity in capacities if self.rising[capacity]]
        heapq.heapify(self.shares)

    def tightest(self) -> tuple[float, int]:
        """Return the least level at which a capacity is full, and that capacity; (inf, -1) when none is left."""
        while self.shares:
            share, capacity = self.shares[0]
            if not self.rising[capacity]:
                heapq.heappop(self.shares)
                continue
            current = self._share(capacity)
            if current <= share:
                return share, capacity
            # Shares only grow, as the flows that stopped took less than an equal part: an old one is a lower bound.
            heapq.heapreplace(self.shares, (current, capacity))
        return math.inf, -1

    def stop(self, flows: Sequence[int], rates: Sequence[float]) -> None:
        """Take the flows' final rates off what is spare."""
        taken: dict[int, list[float]] = {}
        for flow in flows:
            for capacity, coefficient in self.uses[flow]:
                taken.setdefault(capacity, []).append(coefficient * rates[flow])
                self.rising[capacity] -= 1
                self.load[capacity] -= coefficient
        for capacity, amounts in taken.items():
            # One rounding a batch, not one a flow: the spare rest of a crowded link is a small difference.
            self.spare[capacity] -= math.fsum(amounts)

    def _share(self, capacity: int) -> float:
        return self.spare[capacity] / self.load[capacity]
