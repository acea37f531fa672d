"""How many of some things a share of them is."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np


def count_of_share(share: float, total: Any) -> Any:
    """Return ceil(share · total), exactly, of an integer or an array of them.

    The share is read as the decimal number that was written, so that 0.1 of 30 is 3.
    """
    numerator, denominator = Fraction(str(share)).as_integer_ratio()
    if isinstance(total, int):
        return -(-total * numerator // denominator)
    totals = np.asarray(total, np.int64)
    fits = max(numerator * int(totals.max(initial=0)), denominator) < 2**63
    # Where a share of many digits overflows int64, Python's integers do it.
    exact = totals if fits else totals.astype(object)
    return np.asarray(-(-exact * numerator // denominator), np.int64)
