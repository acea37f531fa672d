"""Intervals and paired differences, against a printed table of t, figures by hand, and scipy's own tests."""

from __future__ import annotations

import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.records.statistics import Estimate, estimate, paired_difference

NUMBERS = st.integers(-(10**6), 10**6).map(lambda thousandths: thousandths / 1000)
VALUES = st.lists(NUMBERS, min_size=2, max_size=12).filter(lambda values: len(set(values)) > 1)
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045}
"""Student's t at 0.975 by degrees of freedom, as any textbook prints it."""


@pytest.mark.parametrize("freedom", T_975)
def test_the_interval_is_t_times_the_standard_error(freedom: int) -> None:
    """Of n/2 values 0 and as many 2 (or one 1 more), the sum of squares about the mean 1 is known."""
    num_values = freedom + 1
    values = [0.0, 2.0] * (num_values // 2) + [1.0] * (num_values % 2)
    found = estimate(values)
    squares = 2 * (num_values // 2)
    assert found.mean == 1.0 and found.half_width is not None
    assert found.half_width == pytest.approx(T_975[freedom] * math.sqrt(squares / freedom / num_values), rel=2e-4)


def test_three_values_by_hand() -> None:
    """Mean 0.92, s = 0.02, t(0.975, 2) = 4.302653: 4.302653 * 0.02 / sqrt(3) = 0.0496828."""
    found = estimate([0.90, 0.92, 0.94])
    assert found.num_values == 3 and found.mean == pytest.approx(0.92)
    assert found.half_width == pytest.approx(0.0496828, rel=1e-5)


def test_few_values_have_no_interval() -> None:
    assert estimate([]) == Estimate(0, None, None)
    assert estimate([3.5]) == Estimate(1, 3.5, None)
    assert estimate([2.0, 2.0]) == Estimate(2, 2.0, 0.0)


@given(VALUES)
def test_it_is_scipys_interval(values: list[float]) -> None:
    found, oracle = estimate(values), scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    scale = max(map(abs, values))
    assert found.mean is not None and found.half_width is not None
    assert found.mean - found.half_width == pytest.approx(oracle.low, rel=1e-9, abs=1e-9 * scale)
    assert found.mean + found.half_width == pytest.approx(oracle.high, rel=1e-9, abs=1e-9 * scale)


@given(VALUES, st.randoms(use_true_random=False))
def test_differences_are_paired_by_seed(values: list[float], random: object) -> None:
    baseline = [value * 0.5 + index for index, value in enumerate(values)]
    seeds = list(range(len(values)))
    shuffled = sorted(seeds, key=lambda _: random.random())  # type: ignore[attr-defined]
    found = paired_difference({seed: values[seed] for seed in seeds}, {seed: baseline[seed] for seed in shuffled})
    oracle = scipy.stats.ttest_rel(values, baseline).confidence_interval(0.95)
    scale = max(map(abs, values)) + len(values)
    assert found.mean is not None and found.half_width is not None
    assert found.mean - found.half_width == pytest.approx(oracle.low, rel=1e-9, abs=1e-9 * scale)
    assert found.mean + found.half_width == pytest.approx(oracle.high, rel=1e-9, abs=1e-9 * scale)


def test_a_seed_that_one_of_the_two_lacks_is_left_out() -> None:
    """Over seeds 1 and 2 the differences are 1 and 3: mean 2, s = sqrt(2), 12.7062 * sqrt(2) / sqrt(2) = 12.7062."""
    found = paired_difference({0: 100.0, 1: 2.0, 2: 5.0}, {1: 1.0, 2: 2.0, 3: -100.0})
    assert found.num_values == 2 and found.mean == 2.0
    assert found.half_width == pytest.approx(12.7062, rel=1e-5)
    assert paired_difference({0: 1.0}, {1: 1.0}) == Estimate(0, None, None)
