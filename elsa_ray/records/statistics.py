"""Means with Student's confidence intervals, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far it is known.

    Attributes:
        num_values: that the mean is of.
        mean: None of no values.
        half_width: the 95% confidence interval is ``mean ± half_width``; None of fewer than two values.
    """

    num_values: int
    mean: float | None
    half_width: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and Student's t interval of independent values: ``t(0.975, n - 1) * s / sqrt(n)``."""
    num_values = len(values)
    if num_values == 0:
        return Estimate(0, None, None)
    mean = statistics.fmean(values)
    if num_values == 1:
        return Estimate(1, mean, None)
    quantile = float(stdtrit(num_values - 1, (1 + CONFIDENCE) / 2))
    return Estimate(num_values, mean, quantile * statistics.stdev(values) / math.sqrt(num_values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Return the mean of ``value - baseline`` over the seeds that both have, with its interval.

    Args:
        values, baseline: a value by seed.
    """
    return estimate([values[seed] - baseline[seed] for seed in values if seed in baseline])
