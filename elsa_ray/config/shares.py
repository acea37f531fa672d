"""Shares of a whole: how many of the clients have each of several profiles."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

Shares = dict[str, Annotated[float, Field(gt=0)]]
"""Share by the name of a profile."""


def check_whole(shares: Shares, allowed: str) -> Shares:
    """Return shares that sum to 1.

    Raises:
        ValueError: they do not; it says what is allowed.
    """
    if not math.isclose(math.fsum(shares.values()), 1.0, rel_tol=0, abs_tol=1e-6):
        raise ValueError(allowed)
    return shares
