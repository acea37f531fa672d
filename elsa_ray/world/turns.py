"""Turns of the world: instants, known in advance, at which a fault begins or ends, or a client goes off."""

from __future__ import annotations

import heapq
from enum import IntEnum

import numpy as np

from elsa_ray.world.disturbances import Disturbances
from elsa_ray.world.plan import Ints


class TurnKind(IntEnum):
    """What turns; of one instant in this order."""

    ENDS = 0
    BEGINS = 1
    CLIENT_OFF = 2


class Turns:
    """What is to come, in the order of its times.

    Args:
        disturbances: of the round.
        clients: those that have work.
        settled_seconds: what came up to here has been dealt with.
    """

    def __init__(self, disturbances: Disturbances, clients: Ints, settled_seconds: float) -> None:
        heap: list[tuple[float, int, int]] = []
        for number, spell in enumerate(disturbances.spells):
            if spell.is_new or spell.begin_seconds > settled_seconds:
                heap.append((spell.begin_seconds, int(TurnKind.BEGINS), number))
            if spell.is_new or spell.end_seconds > settled_seconds:
                heap.append((spell.end_seconds, int(TurnKind.ENDS), number))
        if disturbances.off_seconds is not None:
            concerned = np.unique(clients)
            off = disturbances.off_seconds[concerned]
            goes = np.isfinite(off)
            kind = int(TurnKind.CLIENT_OFF)
            heap += [(s, kind, c) for s, c in zip(off[goes].tolist(), concerned[goes].tolist(), strict=True)]
        heapq.heapify(heap)
        self._heap = heap

    @property
    def next_seconds(self) -> float | None:
        """When the next one is, in absolute seconds; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def pop(self) -> tuple[float, TurnKind, int]:
        """Take the next one: its time, its kind, and the number of its spell or client."""
        seconds, kind, subject = heapq.heappop(self._heap)
        return seconds, TurnKind(kind), subject
