"""When two moments are one instant."""

from __future__ import annotations

import math

SAME_INSTANT = 1e-12
"""Times that differ by less than this, relatively, are one instant."""


def is_same_instant(first: float, second: float) -> bool:
    """Tell whether two times are one instant."""
    return math.isclose(first, second, rel_tol=SAME_INSTANT, abs_tol=0.0)
