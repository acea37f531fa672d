"""The ways of many transfers as columns: each pair of nodes once, with no object that stays.

Shapes: A activities, P different pairs of nodes, X crossings (the capacities of a pair, pair after pair).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from copy import copy
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from elsa_ray.world.plan import Activities, ActivityKind, Ints


class Path(Protocol):
    """The way of a transfer, as a model of the network has it (``network.models.Way``)."""

    @property
    def capacities(self) -> Sequence[int]:
        """Indices of the capacities; one that is crossed twice occurs twice."""

    @property
    def coefficients(self) -> Sequence[float] | None:
        """What a byte takes of each of them; None is 1."""

    @property
    def latency_seconds(self) -> float:
        """Before the first byte flows."""

    @property
    def bottleneck_bytes_per_second(self) -> float:
        """The rate of a transfer that shares with nobody."""

    @property
    def weight(self) -> float:
        """Its share of a contended capacity, relative to others'."""

    @property
    def bound_bytes_per_second(self) -> float:
        """What it cannot exceed."""


class Paths:
    """The ways that some activities take.

    Attributes:
        pair: of each activity [A] the number of its pair of nodes; -1 for what is sent nowhere.
        latency_seconds, bottleneck_bytes_per_second, weight, bound_bytes_per_second: of each pair [P].
        first: where the crossings of each pair begin [P + 1].
        capacity, coefficient: of each crossing [X].

    Args:
        activities: who is on its way.
        find_path: the way between two nodes, by index.
    """

    def __init__(self, activities: Activities, find_path: Callable[[int, int], Path]) -> None:
        is_sent = (activities.kind == ActivityKind.TRANSFER) & (activities.source != activities.target)
        sent = np.flatnonzero(is_sent)
        codes, pair = np.unique(_codes(activities.source[sent], activities.target[sent]), return_inverse=True)
        self.pair = np.full(len(activities), -1, np.int32)
        self.pair[sent] = pair
        latency_seconds, bottleneck, weight, bound = (array("d") for _ in range(4))
        first, capacity, coefficient = array("i", [0]), array("i"), array("d")
        for code in codes.tolist():
            path = find_path(code >> 32, code & 0xFFFFFFFF)
            latency_seconds.append(path.latency_seconds)
            bottleneck.append(path.bottleneck_bytes_per_second)
            weight.append(path.weight)
            bound.append(path.bound_bytes_per_second)
            capacity.extend(path.capacities)
            coefficient.extend([1.0] * len(path.capacities) if path.coefficients is None else path.coefficients)
            first.append(len(capacity))
        self.latency_seconds, self.bottleneck_bytes_per_second = latency_seconds, bottleneck
        self.weight, self.bound_bytes_per_second = weight, bound
        self.first, self.capacity, self.coefficient = first, capacity, coefficient

    def __len__(self) -> int:
        return len(self.latency_seconds)

    def __eq__(self, other: object) -> bool:
        """Tell whether the same activities take the same ways."""
        if not isinstance(other, Paths):
            return NotImplemented
        return all(np.array_equal(own, vars(other)[name]) for name, own in vars(self).items())

    def take(self, rows: npt.NDArray[np.signedinteger]) -> Self:
        """Return the same for some of the activities; the pairs keep their numbers."""
        some = copy(self)
        some.pair = self.pair[rows]
        return some

    def crossings(self) -> tuple[Ints, Ints]:
        """Return pair and capacity of each crossing, pair after pair; a capacity that is crossed twice occurs once."""
        pair, capacity = self.pair_of_crossing(), np.frombuffer(self.capacity, np.int32)
        _, first = np.unique(_codes(pair, capacity), return_index=True)
        first.sort()
        return pair[first].astype(np.int64), capacity[first].astype(np.int64)

    def pair_of_crossing(self) -> npt.NDArray[np.int32]:
        """Return the pair [X] that each crossing is of."""
        first: npt.NDArray[np.int32] = np.frombuffer(self.first, np.int32)
        return np.repeat(np.arange(len(self), dtype=np.int32), first[1:] - first[:-1])

    def capacities_of(self, pair: int) -> Sequence[int]:
        """Return what a pair's way crosses."""
        return self.capacity[self.first[pair] : self.first[pair + 1]]

    def coefficients_of(self, pair: int) -> Sequence[float]:
        """Return what a byte takes of each of ``capacities_of``."""
        return self.coefficient[self.first[pair] : self.first[pair + 1]]


def _codes(one: npt.NDArray[np.signedinteger], other: npt.NDArray[np.signedinteger]) -> Ints:
    """Return one number for each pair of numbers of 32 bits."""
    return (one.astype(np.int64) << 32) | other
