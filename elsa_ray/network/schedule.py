"""Capacities over time: bandwidths that follow a schedule, and factors (outage, degradation) on top of them.

Everything is piecewise constant in simulated seconds from 0 on. Values only; nothing here remembers a clock but the
cursor that a player moves along.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from elsa_ray.network.instants import is_same_instant
from elsa_ray.network.sharing import FluidSharing


class PiecewiseConstant(Protocol):
    """A quantity that jumps at some moments and is constant between them; a jump's new value holds at its moment."""

    def value_at(self, seconds: float) -> float:
        """Return the value at a moment >= 0."""

    def next_change(self, after_seconds: float) -> float:
        """Return the first moment later than ``after_seconds`` at which the value may jump; inf where none comes."""


@dataclass(frozen=True)
class Steps:
    """Values that each hold from their moment on, once or over and over.

    Attributes:
        seconds: ascending; the first is 0.
        values: the value from each of these moments on; finite and >= 0.
        repeat_seconds: start anew after so many seconds, more than the last moment; None holds the last value for ever.
    """

    seconds: tuple[float, ...]
    values: tuple[float, ...]
    repeat_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check what the attributes promise.

        Raises:
            ValueError: they break it.
        """
        if len(self.seconds) != len(self.values) or not self.seconds or self.seconds[0] != 0:
            raise ValueError("as many seconds as values, the first of them 0")
        if any(not a < b for a, b in zip(self.seconds, self.seconds[1:], strict=False)):
            raise ValueError("ascending seconds")
        if not all(0 <= value < math.inf for value in (*self.values, self.seconds[-1])):
            raise ValueError("finite numbers >= 0")
        if self.repeat_seconds is not None and not self.seconds[-1] < self.repeat_seconds < math.inf:
            raise ValueError("a finite repeat_seconds later than the last moment")

    def value_at(self, seconds: float) -> float:
        """Return the value at a moment >= 0."""
        return self.values[self._place(seconds)[1] - 1]

    def next_change(self, after_seconds: float) -> float:
        """Return the first moment later than ``after_seconds`` at which a step begins; inf where none comes."""
        begin, passed = self._place(after_seconds)
        if passed < len(self.seconds):
            return begin + self.seconds[passed]
        return math.inf if self.repeat_seconds is None else self._begin(round(begin / self.repeat_seconds) + 1)

    def _begin(self, cycle: int) -> float:
        return 0.0 if self.repeat_seconds is None else cycle * self.repeat_seconds

    def _place(self, seconds: float) -> tuple[float, int]:
        """Return when the present cycle began, and how many of its steps have begun, at least one.

        Sums are compared as ``next_change`` returns them, so that a value is the new one at exactly its moment.
        """
        cycle = 0
        if self.repeat_seconds is not None:
            cycle = int(seconds // self.repeat_seconds)
            cycle += self._begin(cycle + 1) <= seconds
            cycle -= self._begin(cycle) > seconds
        begin = self._begin(cycle)
        passed = bisect_right(self.seconds, seconds, key=lambda step: begin + step)
        return begin, max(passed, 1)


@dataclass(frozen=True)
class CapacitySchedule:
    """What each capacity carries at each moment.

    Attributes:
        bytes_per_second: of each capacity, where no schedule says otherwise.
        bandwidths: for some capacities, the bytes per second over time; they replace the fixed figure.
        factors: for some capacities, factors >= 0 that multiply it, such as outages (0) and degradations.
        usable_part: the part of any bandwidth that the network's model gives to payloads.
    """

    bytes_per_second: Sequence[float]
    bandwidths: Mapping[int, PiecewiseConstant] = field(default_factory=dict)
    factors: Mapping[int, Sequence[PiecewiseConstant]] = field(default_factory=dict)
    usable_part: float = 1.0

    def __post_init__(self) -> None:
        """Check that all that changes is there.

        Raises:
            ValueError: a schedule is of no capacity.
        """
        if any(not 0 <= capacity < len(self.bytes_per_second) for capacity in self.changing):
            raise ValueError("schedules of capacities that exist")

    def with_factors(self, factors: Mapping[int, Sequence[PiecewiseConstant]]) -> CapacitySchedule:
        """Return the schedule with more factors on some capacities."""
        merged = {capacity: (*self.factors.get(capacity, ()), *more) for capacity, more in factors.items()}
        return CapacitySchedule(
            self.bytes_per_second, self.bandwidths, {**self.factors, **merged}, usable_part=self.usable_part
        )

    def value_at(self, capacity: int, seconds: float) -> float:
        """Return what a capacity carries at a moment, in bytes per second."""
        bandwidth = self.bandwidths.get(capacity)
        value = self.bytes_per_second[capacity] if bandwidth is None else bandwidth.value_at(seconds)
        for factor in self.factors.get(capacity, ()):
            value *= factor.value_at(seconds)
        return value * self.usable_part

    @property
    def changing(self) -> list[int]:
        """The capacities that may change, ascending."""
        return sorted({*self.bandwidths, *self.factors})

    def next_change(self, capacity: int, after_seconds: float) -> float:
        """Return the first moment later than ``after_seconds`` at which a capacity may change; inf where none comes."""
        parts = [*self.factors.get(capacity, ())]
        if capacity in self.bandwidths:
            parts.append(self.bandwidths[capacity])
        return min((part.next_change(after_seconds) for part in parts), default=math.inf)

    def sharing(self, seconds: float) -> FluidSharing:
        """Return the sharing of these capacities, as they are at a moment."""
        sharing = FluidSharing(value * self.usable_part for value in self.bytes_per_second)
        for capacity in self.changing:
            sharing.set_capacity(capacity, self.value_at(capacity, seconds), seconds)
        return sharing

    def changes(self, after_seconds: float) -> CapacityChanges:
        """Return a cursor over the changes later than a moment."""
        return CapacityChanges(self, after_seconds)


class CapacityChanges:
    """The changes of a schedule in the order of time: one more source of instants for whoever moves the clock."""

    def __init__(self, schedule: CapacitySchedule, after_seconds: float) -> None:
        """Stand at a moment; its own changes are behind."""
        self._schedule = schedule
        upcoming = [(schedule.next_change(capacity, after_seconds), capacity) for capacity in schedule.changing]
        self._upcoming = [entry for entry in upcoming if entry[0] < math.inf]
        heapq.heapify(self._upcoming)

    @property
    def next_seconds(self) -> float | None:
        """When the next change is; None where none comes."""
        return self._upcoming[0][0] if self._upcoming else None

    def pop_until(self, now: float) -> list[tuple[int, float]]:
        """Take the changes that are due by ``now``; return (capacity, its new bytes per second), each capacity once.

        Moments within 1e-12 relative are one instant.
        """
        due = set()
        moment = now
        while self._upcoming and (self._upcoming[0][0] <= now or is_same_instant(self._upcoming[0][0], now)):
            moment = max(moment, self._upcoming[0][0])
            capacity = self._upcoming[0][1]
            due.add(capacity)
            following = self._schedule.next_change(capacity, self._upcoming[0][0])
            if following < math.inf:
                heapq.heapreplace(self._upcoming, (following, capacity))
            else:
                heapq.heappop(self._upcoming)
        return [(capacity, self._schedule.value_at(capacity, moment)) for capacity in sorted(due)]
