"""How slow clients are drawn: the stated distributions, anew each round, cut where they are told to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from elsa_ray.config.faults import FixedSlowdown, LognormalSlowdown, ParetoSlowdown
from elsa_ray.world.disturbances import slowdowns

MANY = 20_000


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LognormalSlowdown(kind="lognormal", sigma=0.7, max_factor=1e9), stats.lognorm(0.7)),
        (ParetoSlowdown(kind="pareto", shape=1.2, max_factor=1e9), stats.pareto(1.2)),
    ],
    ids=["lognormal", "pareto"],
)
def test_factors_follow_their_distribution(config: LognormalSlowdown | ParetoSlowdown, expected: object) -> None:
    factors = slowdowns(config, MANY, seed=5, round_index=2)
    assert stats.kstest(factors, expected.cdf).pvalue > 1e-3  # type: ignore[attr-defined]


def test_a_heavy_tail_is_cut_where_it_is_told_to_be() -> None:
    whole, cut = (
        slowdowns(ParetoSlowdown(kind="pareto", shape=1.0, max_factor=most), MANY, 0, 0) for most in (1e9, 8.0)
    )
    assert whole.max() > 1000 and np.array_equal(cut, np.minimum(whole, 8.0))
    # An eighth of all are at least eight times as slow.
    assert abs((cut == 8.0).mean() - 1 / 8) < 4 * math.sqrt(1 / 8 * 7 / 8 / MANY)


def test_a_share_is_slower_by_one_factor_and_another_one_each_round() -> None:
    config = FixedSlowdown(kind="fixed", share=0.2, factor=3.0)
    first, second = (slowdowns(config, MANY, 0, round_index) == 3.0 for round_index in (0, 1))
    assert set(slowdowns(config, MANY, 0, 0).tolist()) == {1.0, 3.0}
    for slow in (first, second):
        assert abs(slow.mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / MANY)
    assert abs((first & second).mean() - 0.04) < 4 * math.sqrt(0.04 / MANY)


def test_draws_are_those_of_seed_and_round() -> None:
    config = LognormalSlowdown(kind="lognormal", sigma=1.0)
    drawn = slowdowns(config, 50, seed=1, round_index=4)
    assert np.array_equal(drawn, slowdowns(config, 90, seed=1, round_index=4)[:50])
    assert not (drawn == slowdowns(config, 50, seed=2, round_index=4)).any()
    assert not (drawn == slowdowns(config, 50, seed=1, round_index=5)).any()
