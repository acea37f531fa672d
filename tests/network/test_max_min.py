"""What makes rates max-min fair, on random flows: nothing is overfull, and nobody could be faster at no one's cost."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.network.sharing import FluidSharing

from .progressive_filling import max_min_rates
from .slow_solver import fair_rates

CAPACITIES = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


@st.composite
def flows_over_capacities(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Draw capacities, and the capacities that each flow crosses; one may be crossed twice."""
    capacities = draw(CAPACITIES)
    crossed = st.lists(st.integers(0, len(capacities) - 1), min_size=1, max_size=4)
    return capacities, draw(st.lists(crossed, min_size=1, max_size=20))


def rates_of(capacities: list[int], flows: list[list[int]]) -> list[float]:
    sharing = FluidSharing(capacities)
    for number, crossed in enumerate(flows):
        sharing.start(number, 1.0, crossed, now=0.0)
    rates = sharing.rates()
    return [rates[number] for number in range(len(flows))]


@given(flows_over_capacities())
def test_no_capacity_is_exceeded_and_nobody_could_be_faster(drawn: tuple[list[int], list[list[int]]]) -> None:
    capacities, flows = drawn
    rates = rates_of(capacities, flows)
    load = [
        sum(rate * crossed.count(capacity) for rate, crossed in zip(rates, flows, strict=True))
        for capacity in range(len(capacities))
    ]
    for used, size in zip(load, capacities, strict=True):
        assert used <= size * (1 + 1e-12)
    for rate, crossed in zip(rates, flows, strict=True):
        assert any(
            load[capacity] >= capacities[capacity] * (1 - 1e-12)
            and all(other <= rate * (1 + 1e-12) for other, path in zip(rates, flows, strict=True) if capacity in path)
            for capacity in crossed
        )


@given(flows_over_capacities())
def test_rates_equal_the_exact_ones(drawn: tuple[list[int], list[list[int]]]) -> None:
    capacities, flows = drawn
    exact = fair_rates(flows, [Fraction(size) for size in capacities])
    assert rates_of(capacities, flows) == pytest.approx([float(rate) for rate in exact], rel=1e-12)


@given(flows_over_capacities(), st.randoms(use_true_random=False))
def test_rates_after_any_history_equal_those_of_a_fresh_start(
    drawn: tuple[list[int], list[list[int]]], rng: object
) -> None:
    capacities, flows = drawn
    sharing = FluidSharing(capacities)
    for number, crossed in enumerate(flows):
        sharing.start(number, 1e9, crossed, now=float(number))
        sharing.next_completion()
    gone = [number for number in range(len(flows)) if rng.random() < 0.5]  # type: ignore[attr-defined]
    for number in gone:
        sharing.stop(number, now=float(len(flows) + number))
        sharing.next_completion()
    stays = [number for number in range(len(flows)) if number not in gone]
    expected = rates_of(capacities, [flows[number] for number in stays])
    assert list(sharing.rates().values()) == pytest.approx(expected, rel=1e-12)


def test_a_bound_frees_capacity_for_the_others() -> None:
    assert max_min_rates([1.0, 100.0, 100.0], [[(0, 1.0)]] * 3, {0: 9.0}) == [1.0, 4.0, 4.0]


def test_a_coefficient_loads_a_capacity_more() -> None:
    # Equal rates r: 3 r + r = 8.
    assert max_min_rates([100.0, 100.0], [[(0, 3.0)], [(0, 1.0)]], {0: 8.0}) == [2.0, 2.0]


def test_without_capacities_the_bounds_are_the_rates() -> None:
    assert max_min_rates([3.0, 5.0], [[], []], {}) == [3.0, 5.0]
