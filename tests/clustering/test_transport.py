"""The transportation problem against scipy's assignment and brute force (methods.md 1.16, 5).

Shapes: N clients, K edges.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from elsa_ray.clustering.transport import PARKED, least_cost, near_least_cost


def total(cost_NK: np.ndarray, edge_N: np.ndarray) -> float:
    seated = np.flatnonzero(edge_N != PARKED)
    return float(cost_NK[seated, edge_N[seated]].sum())


def fits(edge_N: np.ndarray, num_edges: int, capacity: int) -> bool:
    return bool(np.bincount(edge_N[edge_N != PARKED], minlength=num_edges).max() <= capacity)


def by_repeated_places(cost_NK: np.ndarray, capacity: int) -> float:
    """Each edge stands for as many columns as it has places."""
    clients, places = linear_sum_assignment(np.repeat(cost_NK, capacity, axis=1))
    return float(cost_NK[clients, places // capacity].sum())


def by_brute_force(cost_NK: np.ndarray, capacity: int) -> tuple[int, float]:
    """The fewest parked, then the least cost."""
    num_clients, num_edges = cost_NK.shape
    outcomes = []
    for edges in itertools.product([PARKED, *range(num_edges)], repeat=num_clients):
        edge_N = np.array(edges)
        if fits(edge_N, num_edges, capacity) and np.isfinite(total(cost_NK, edge_N)):
            outcomes.append((edges.count(PARKED), total(cost_NK, edge_N)))
    return min(outcomes)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), capacity=st.sampled_from([10, 11, 12, 20]))
def test_on_60_clients_and_6_edges_exact_is_optimal_and_the_heuristic_within_a_tenth(seed: int, capacity: int) -> None:
    cost_NK = np.random.default_rng(seed).random((60, 6))
    exact_N, near_N = least_cost(cost_NK, capacity), near_least_cost(cost_NK, capacity)
    for edge_N in (exact_N, near_N):
        assert fits(edge_N, 6, capacity)
        assert ((edge_N >= 0) & (edge_N < 6)).all(), "every client has an edge"
    assert total(cost_NK, exact_N) == pytest.approx(by_repeated_places(cost_NK, capacity), rel=1e-11)
    assert total(cost_NK, exact_N) <= total(cost_NK, near_N) * (1 + 1e-11) <= 1.1 * total(cost_NK, exact_N)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_clients=st.integers(1, 6),
    num_edges=st.integers(1, 3),
    capacity=st.integers(1, 3),
    impossible=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_what_cannot_be_served_is_parked_and_nobody_else(
    seed: int, num_clients: int, num_edges: int, capacity: int, impossible: float
) -> None:
    generator = np.random.default_rng(seed)
    cost_NK = generator.exponential(10.0 ** generator.integers(-4, 5), (num_clients, num_edges))
    cost_NK[generator.random(cost_NK.shape) < impossible] = np.inf
    parked, least = by_brute_force(cost_NK, capacity)
    exact_N, near_N = least_cost(cost_NK, capacity), near_least_cost(cost_NK, capacity)
    for edge_N in (exact_N, near_N):
        assert fits(edge_N, num_edges, capacity)
        assert (edge_N == PARKED).sum() == parked
        assert np.isfinite(total(cost_NK, edge_N))
    assert total(cost_NK, exact_N) == pytest.approx(least, rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_cost_that_is_the_same_at_every_edge_changes_nothing_where_there_is_room(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cost_NK, own_N = generator.random((20, 4)), generator.random(20)
    assert least_cost(cost_NK + own_N[:, None], 6).tolist() == least_cost(cost_NK, 6).tolist()


def test_where_places_are_scarce_the_dearest_clients_are_parked() -> None:
    cost_NK = np.zeros((5, 1)) + np.array([[0.3], [0.1], [0.2], [0.0], [0.4]])
    assert least_cost(cost_NK, 2).tolist() == [PARKED, 0, PARKED, 0, PARKED]
    assert near_least_cost(cost_NK, 2).tolist() == [PARKED, 0, PARKED, 0, PARKED]


def test_equal_costs_go_to_the_first_edge_and_the_same_input_to_the_same_output() -> None:
    edge_N = least_cost(np.ones((4, 3)), 4)
    assert edge_N.tolist() == [0, 0, 0, 0]
    cost_NK = np.random.default_rng(0).integers(0, 3, (30, 4)).astype(float)
    assert least_cost(cost_NK, 8).tolist() == least_cost(cost_NK.copy(), 8).tolist()
    assert near_least_cost(cost_NK, 8).tolist() == near_least_cost(cost_NK.copy(), 8).tolist()


def test_a_chain_of_moves_seats_the_last_client() -> None:
    """Each of three can be served by its own edge and the next one; the fourth by the first edge only."""
    inf = np.inf
    cost_NK = np.array([[0.0, 5.0, inf, inf], [inf, 0.0, 5.0, inf], [inf, inf, 0.0, 5.0], [9.0, inf, inf, inf]])
    assert least_cost(cost_NK, 1).tolist() == [1, 2, 3, 0]
    assert near_least_cost(cost_NK, 1).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("solve", [least_cost, near_least_cost])
def test_of_equal_clients_the_handicapped_one_gives_way_else_the_later_one(solve: Callable[..., np.ndarray]) -> None:
    cost_NK = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert solve(cost_NK, 1).tolist() == [0, 1]
    assert solve(cost_NK, 1, np.array([0.05, 0.0])).tolist() == [1, 0]
    assert solve(cost_NK[:, :1], 1, np.array([0.05, 0.0])).tolist() == [PARKED, 0]
    assert solve(np.array([[0.0, 1.1], [0.0, 1.0]]), 1, np.array([0.05, 0.0])).tolist() == [0, 1], "never at a cost"


def test_few_would_rather_be_at_an_edge_with_free_places() -> None:
    """Exchanges leave some who could then move alone; they are moved (half of the instances have such, if not)."""
    left_over = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        cost_NK = generator.random((120, 8)) + 2 * generator.random(8)
        edge_N = near_least_cost(cost_NK, 18)
        has_free_K = np.bincount(edge_N, minlength=8) < 18
        own_N1 = cost_NK[np.arange(120), edge_N][:, None]
        left_over.append(((cost_NK < own_N1) & has_free_K).any())
    assert np.mean(left_over) < 0.35


@pytest.mark.parametrize("tight", [False, True])
def test_at_600_clients_and_12_edges_of_unequal_appeal_both_stay_near_scipy(tight: bool) -> None:
    generator = np.random.default_rng(0)
    cost_NK = generator.random((600, 12)) + 2 * generator.random(12)
    capacity = 50 if tight else 60
    expected = by_repeated_places(cost_NK, capacity)
    assert total(cost_NK, least_cost(cost_NK, capacity)) == pytest.approx(expected, rel=1e-11)
    assert total(cost_NK, near_least_cost(cost_NK, capacity)) <= 1.02 * expected
