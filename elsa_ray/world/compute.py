"""Slots of the nodes: who computes, who waits. First come, first served; at one instant in the order of the rows."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


class ComputeSlots:
    """The queues of all nodes.

    Args:
        slots: computations at once, by node index.
    """

    def __init__(self, slots: Sequence[int]) -> None:
        self._free = list(slots)
        self._queue: dict[int, list[tuple[float, int]]] = {}
        self._touched: set[int] = set()

    @property
    def are_touched(self) -> bool:
        """Whether some row may get a slot now."""
        return bool(self._touched)

    def take_idle(self, node: int) -> bool:
        """Take a slot at once, for a row that nobody competes with; tells whether there was one and no queue."""
        if self._free[node] > 0 and not self._queue.get(node):
            self._free[node] -= 1
            return True
        return False

    def enqueue(self, node: int, row: int, arrival_seconds: float) -> None:
        """Let a row wait for a slot since ``arrival_seconds``."""
        heapq.heappush(self._queue.setdefault(node, []), (arrival_seconds, row))
        self._touched.add(node)

    def occupy(self, node: int) -> None:
        """Take a slot for a computation that is already under way."""
        self._free[node] -= 1

    def release(self, node: int) -> None:
        """Free the slot of a computation that has ended."""
        self._free[node] += 1
        if self._queue.get(node):
            self._touched.add(node)

    def withdraw(self, node: int, row: int) -> None:
        """Take a row out of the queue."""
        self._queue[node] = [entry for entry in self._queue[node] if entry[1] != row]
        heapq.heapify(self._queue[node])

    def take_startable(self) -> list[int]:
        """Return the rows that get a slot now; their slots are taken."""
        startable = []
        for node in sorted(self._touched):
            queue = self._queue[node]
            while self._free[node] > 0 and queue:
                self._free[node] -= 1
                startable.append(heapq.heappop(queue)[1])
        self._touched.clear()
        return startable

    def arrivals(self) -> dict[int, float]:
        """Return since when, in absolute seconds, each waiting row waits."""
        return {row: seconds for queue in self._queue.values() for seconds, row in queue}
