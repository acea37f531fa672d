"""Slots of the nodes: who computes, who waits. First come, first served; at one instant in the order of the rows."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence


class ComputeSlots:
    """The queues of all nodes.

    Args:
        slots: computations at once, by node index.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        self._free = dict(enumerate(slots))
        self._queue: dict[int, list[tuple[float, int]]] = defaultdict(list)
        self._touched: set[int] = set()

    def enqueue(self, node: int, row: int, arrival_seconds: float) -> None:
        """Let a row wait for a slot since ``arrival_seconds``."""
        heapq.heappush(self._queue[node], (arrival_seconds, row))
        self._touched.add(node)

    def occupy(self, node: int) -> None:
        """Take a slot for a computation that is already under way."""
        self._free[node] -= 1

    def release(self, node: int) -> None:
        """Free the slot of a computation that has ended."""
        self._free[node] += 1
        self._touched.add(node)

    def withdraw(self, node: int, row: int) -> None:
        """Take a row out of the queue."""
        self._queue[node] = [entry for entry in self._queue[node] if entry[1] != row]
        heapq.heapify(self._queue[node])

    def take_startable(self) -> list[int]:
        """Return the rows that get a slot now; their slots are taken."""
        startable = []
        for node in sorted(self._touched):
            while self._free[node] > 0 and self._queue[node]:
                self._free[node] -= 1
                startable.append(heapq.heappop(self._queue[node])[1])
        self._touched.clear()
        return startable

    def arrivals(self) -> dict[int, float]:
        """Return since when, in absolute seconds, each waiting row waits."""
        return {row: seconds for queue in self._queue.values() for seconds, row in queue}
