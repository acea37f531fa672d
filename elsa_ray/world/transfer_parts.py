"""Where the time of transfers went: latency, what their bytes take on idle links, and what sharing has added.

Shapes: T transfers that ended in a timeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elsa_ray.world.paths import Paths
from elsa_ray.world.plan import ActivityKind, Floats, Ints
from elsa_ray.world.timeline import Timeline

PARTS = ("latency", "bandwidth", "sharing")
"""``bandwidth``: bytes over the rate that the path has alone; ``sharing``: the rest, what others on the links added."""

_NO_SHARING = 1e-9
"""Less than this part of a transfer's time is rounding, not sharing."""


@dataclass(frozen=True)
class TransferParts:
    """The transfers that ended in a timeline after they had started, whole or broken off.

    Attributes:
        rows_T: rows of the timeline's activities, ascending.
        pair_T: pairs of ``paths``; their number for a transfer from a node to itself.
        seconds_T3: in the order of PARTS; their sum is finish less start.
    """

    paths: Paths
    rows_T: Ints
    pair_T: Ints
    seconds_T3: Floats

    def of_row(self, row: int) -> tuple[float, float, float]:
        """Return the parts of one row's time; zeros for a row that is not among them."""
        at = int(np.searchsorted(self.rows_T, row))
        if at == len(self.rows_T) or self.rows_T[at] != row:
            return 0.0, 0.0, 0.0
        latency, bandwidth, sharing = self.seconds_T3[at].tolist()
        return latency, bandwidth, sharing


def transfer_parts(timeline: Timeline) -> TransferParts:
    """Return the parts of each transfer that ended; one that spans rounds is counted whole where it ended."""
    activities, paths = timeline.activities, timeline.paths
    start, finish = timeline.start_seconds, timeline.finish_seconds
    rows_T = np.flatnonzero((activities.kind == ActivityKind.TRANSFER) & np.isfinite(start) & np.isfinite(finish))
    pair_T = np.where(paths.pair[rows_T] >= 0, paths.pair[rows_T], len(paths))
    duration_T = finish[rows_T] - start[rows_T]
    latency_T = np.minimum(np.append(paths.latency_seconds, 0.0)[pair_T], duration_T)
    flowing_T = duration_T - latency_T
    alone_T = timeline.carried_bytes[rows_T] / np.append(paths.bottleneck_bytes_per_second, np.inf)[pair_T]
    sharing_T = flowing_T - np.minimum(alone_T, flowing_T)
    sharing_T[sharing_T < _NO_SHARING * duration_T] = 0.0
    return TransferParts(paths, rows_T, pair_T, np.stack([latency_T, flowing_T - sharing_T, sharing_T], axis=1))
