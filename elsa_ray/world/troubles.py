"""What befalls single activities of a round, and why work ends without arriving."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from elsa_ray.world.plan import Columns, Floats, Ints


class Cause(IntEnum):
    """Why work ended without arriving."""

    NONE = 0
    DEADLINE = 1
    QUORUM = 2
    CLIENT_OFF = 3
    BEFORE_TRAINING = 4
    DURING_TRAINING = 5
    AFTER_TRAINING = 6
    CORRUPTED = 7
    EDGE_CRASHED = 8

    @property
    def label(self) -> str:
        """The name in records."""
        return self.name.lower()


@dataclass(frozen=True)
class Troubles(Columns):
    """What befalls activities, a row each.

    Attributes:
        slowdown: a computation takes so many times as long.
        spoilt: sendings of a transfer that arrive spoilt before the good one.
        is_lost: 1 for a transfer that is given up after these, else 0.
        resent: sendings that have arrived spoilt so far.
        stop_share: the work stops when this part of the activity is done; NaN for never, 1 for its end.
        cause: why it stops, a Cause.
    """

    slowdown: Floats
    spoilt: Ints
    is_lost: Ints
    resent: Ints
    stop_share: Floats
    cause: Ints

    @classmethod
    def none(cls, count: int) -> Troubles:
        """Return rows that nothing befalls."""
        spoilt, is_lost, resent, cause = (np.zeros(count, np.int64) for _ in range(4))
        return cls(np.ones(count), spoilt, is_lost, resent, np.full(count, np.nan), cause)
