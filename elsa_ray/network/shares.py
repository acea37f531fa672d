"""Deals things by shares, exactly: every share gets its whole part, what is left over goes to the largest fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def dealt(shares: Sequence[float], count: int) -> list[int]:
    """Return how many of ``count`` each share gets; of equal fractions the first gets what is left over.

    Args:
        shares: positive, in any unit.
        count: how many are dealt.
    """
    # Rounded, because 0.7 * 45 is not 31.5 in binary: equal fractions must be equal numbers.
    quotas = np.round(np.array(shares) / math.fsum(shares) * count, 9)
    counts = np.floor(quotas).astype(np.int64)
    largest_first = np.argsort(counts - quotas, kind="stable")
    counts[largest_first[: count - counts.sum()]] += 1
    return [int(number) for number in counts]
