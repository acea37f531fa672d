"""The slow obvious solver that the fast one is compared with: rational numbers, everything anew at each event."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def fair_rates(flows: Sequence[Sequence[int]], capacities: Sequence[Fraction]) -> list[Fraction]:
    """Raise all rates together; whoever crosses a capacity that is full stops."""
    rates: dict[int, Fraction] = {}
    while len(rates) < len(flows):
        levels = {}
        for capacity, size in enumerate(capacities):
            taken = sum((rates[flow] * list(flows[flow]).count(capacity) for flow in rates), Fraction(0))
            rising = sum(list(flows[flow]).count(capacity) for flow in range(len(flows)) if flow not in rates)
            if rising:
                levels[capacity] = (size - taken) / rising
        tightest = min(levels, key=lambda capacity: levels[capacity])
        for flow, crossed in enumerate(flows):
            if flow not in rates and tightest in crossed:
                rates[flow] = levels[tightest]
    return [rates[flow] for flow in range(len(flows))]


def slow_finish(
    flows: Sequence[tuple[float, float, Sequence[int]]], capacity_bytes_per_second: Sequence[float]
) -> list[Fraction]:
    """Return the finish of each flow (arrival in seconds, bytes, capacities crossed), stepping from event to event."""
    capacities = [Fraction(size) for size in capacity_bytes_per_second]
    arrival = [Fraction(flow[0]) for flow in flows]
    left = [Fraction(flow[1]) for flow in flows]
    finish: dict[int, Fraction] = {
        number: arrival[number] for number, flow in enumerate(flows) if flow[1] == 0 or not flow[2]
    }
    now = min(arrival, default=Fraction(0))
    while len(finish) < len(flows):
        active = [number for number in range(len(flows)) if number not in finish and arrival[number] <= now]
        rates = dict(zip(active, fair_rates([flows[number][2] for number in active], capacities), strict=True))
        events = [arrival[number] for number in range(len(flows)) if number not in finish and arrival[number] > now]
        events += [now + left[number] / rates[number] for number in active]
        step = min(events)
        for number in active:
            left[number] -= rates[number] * (step - now)
            if left[number] == 0:
                finish[number] = step
        now = step
    return [finish[number] for number in range(len(flows))]
