"""What the network's paths are on idle links, for many pairs of nodes at once: latency, rate, capacities.

Shapes: T transfers, P different pairs of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from elsa_ray.world.plan import Floats, Ints


class IdlePath(Protocol):
    """A path, as ``Router.route`` returns it."""

    @property
    def capacities(self) -> Sequence[int]:
        """Indices of the capacities that it draws from."""

    @property
    def latency_seconds(self) -> float:
        """Before the first byte flows."""

    @property
    def bottleneck_bytes_per_second(self) -> float:
        """The rate of a transfer that shares with nobody."""


def codes_of(source_T: npt.NDArray[np.signedinteger], target_T: npt.NDArray[np.signedinteger]) -> Ints:
    """Return one number for each pair of nodes [T]: the source's index * 2^32 + the target's."""
    return (source_T.astype(np.int64) << 32) | target_T


def nodes_of(code: int) -> tuple[int, int]:
    """Return source and target of a pair's number."""
    return code >> 32, code & 0xFFFFFFFF


class Ways:
    """Paths by pair of nodes; each is looked up once.

    Args:
        find_path: the path between two nodes by index, None where there is none.
        codes: pairs that are known from the start, as ``codes`` has them.
    """

    def __init__(self, find_path: Callable[[int, int], IdlePath | None], codes: Iterable[int] = ()) -> None:
        self._find_path = find_path
        self._pair_of_code: dict[int, int] = {}
        self._latency: list[float] = []
        self._rate: list[float] = []
        self._capacities: list[Sequence[int]] = []
        for code in codes:
            self._add(code)

    @property
    def codes(self) -> tuple[int, ...]:
        """The known pairs in the order of their numbers, each as ``codes_of`` has it.

        Sums over links are taken in this order, so whoever goes on after an interruption must have it.
        """
        return tuple(self._pair_of_code)

    def pairs(self, source_T: Ints, target_T: Ints) -> Ints:
        """Return for each transfer the number of its pair, an index into what the other methods return."""
        codes_P, inverse_T = np.unique(codes_of(source_T, target_T), return_inverse=True)
        known = self._pair_of_code
        for code in codes_P.tolist():
            if code not in known:
                self._add(code)
        return np.array([known[code] for code in codes_P.tolist()], np.int64)[inverse_T]

    def latency_seconds(self) -> Floats:
        """Return the latency [P] of each pair's path; 0 without a path."""
        return np.array(self._latency, np.float64)

    def bytes_per_second(self) -> Floats:
        """Return the rate [P] of a transfer that shares with nobody; infinite from a node to itself."""
        return np.array(self._rate, np.float64)

    def crossings(self) -> tuple[Ints, Ints]:
        """Return pair and capacity of each crossing: a path's own, one after the other, each capacity once."""
        counts = [len(capacities) for capacities in self._capacities]
        flat = [capacity for capacities in self._capacities for capacity in capacities]
        return np.repeat(np.arange(len(counts)), counts), np.array(flat, np.int64)

    def _add(self, code: int) -> None:
        path = self._find_path(*nodes_of(code))
        self._pair_of_code[code] = len(self._latency)
        self._latency.append(path.latency_seconds if path is not None else 0.0)
        self._rate.append(path.bottleneck_bytes_per_second if path is not None else np.inf)
        self._capacities.append(tuple(dict.fromkeys(path.capacities)) if path is not None else ())
