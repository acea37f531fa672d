"""K-medoids against brute force: no exchange betters what it returns, and small cases are solved outright.

Shapes: N clients, K medoids.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.clustering.medoids import FARTHEST, k_medoids, nearest_medoid, typical

from .groups import adjusted_rand_index


def total(divergence_NN: np.ndarray, medoids: tuple[int, ...] | list[int]) -> float:
    return float(divergence_NN[:, list(medoids)].min(axis=1).sum())


def random_divergences(num_clients: int, seed: int) -> np.ndarray:
    points_N2 = np.random.default_rng(seed).normal(size=(num_clients, 2))
    return ((points_N2[:, None] - points_N2[None]) ** 2).sum(axis=2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_clients=st.integers(2, 12), num_medoids=st.integers(1, 5))
def test_no_exchange_of_one_medoid_is_better(seed: int, num_clients: int, num_medoids: int) -> None:
    divergence_NN = random_divergences(num_clients, seed)
    divergence_NN = np.minimum(divergence_NN, FARTHEST * typical(divergence_NN))
    medoids = k_medoids(divergence_NN, num_medoids).tolist()
    assert medoids == sorted(set(medoids)) and len(medoids) == min(num_medoids, num_clients)
    for position, candidate in itertools.product(range(len(medoids)), set(range(num_clients)) - set(medoids)):
        exchanged = [*medoids[:position], candidate, *medoids[position + 1 :]]
        assert total(divergence_NN, exchanged) >= total(divergence_NN, medoids) * (1 - 1e-9)


def test_in_most_small_cases_nothing_at_all_is_better() -> None:
    """A local optimum need not be the best, but the build phase starts near it."""
    ratios = []
    for seed in range(60):
        divergence_NN = random_divergences(12, seed)
        best = min(total(divergence_NN, medoids) for medoids in itertools.combinations(range(12), 3))
        ratios.append(total(divergence_NN, k_medoids(divergence_NN, 3).tolist()) / best)
    assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.6
    assert np.mean(ratios) < 1.06


def test_planted_groups_are_found_in_any_order_of_the_clients() -> None:
    generator = np.random.default_rng(0)
    group_N = np.arange(60) % 4
    points_N2 = 10 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[group_N] + generator.normal(size=(60, 2))
    divergence_NN = ((points_N2[:, None] - points_N2[None]) ** 2).sum(axis=2)
    medoids = k_medoids(divergence_NN, 4)
    assert adjusted_rand_index(nearest_medoid(divergence_NN[:, medoids]), group_N) == 1.0
    order = generator.permutation(60)
    permuted = k_medoids(divergence_NN[np.ix_(order, order)], 4)
    assert sorted(order[permuted]) == medoids.tolist()


def test_equal_clients_are_no_reason_to_fail_and_the_first_ones_are_taken() -> None:
    assert k_medoids(np.zeros((5, 5)), 3).tolist() == [0, 1, 2]
    assert k_medoids(np.zeros((2, 2)), 3).tolist() == [0, 1]
    assert k_medoids(np.zeros((1, 1)), 1).tolist() == [0]


def test_a_few_clients_that_are_like_nobody_do_not_take_the_medoids() -> None:
    """Two groups of 20, and one client a million times as far from all as they are from each other."""
    group_N = np.array([0, 1] * 20 + [2])
    divergence_NN = np.where(group_N[:, None] == group_N[None], 0.1, 10.0)
    divergence_NN[-1], divergence_NN[:, -1] = 1e7, 1e7
    np.fill_diagonal(divergence_NN, 0.0)
    assert sorted(group_N[k_medoids(divergence_NN, 2)]) == [0, 1]
    assert total(divergence_NN, [0, 40]) < total(divergence_NN, [0, 1]), "by the plain sum it would take one"


def test_of_two_equal_candidates_the_trusted_one_stands_for_the_cluster() -> None:
    divergence_NN = random_divergences(6, 0)
    divergence_NN = np.repeat(np.repeat(divergence_NN, 2, axis=0), 2, axis=1)  # clients 2i and 2i + 1 are alike
    plain = k_medoids(divergence_NN, 2)
    assert (plain % 2 == 0).all()
    trust_N = np.where(np.arange(12) % 2 == 0, 0.4, 1.0)
    assert k_medoids(divergence_NN, 2, trust_N).tolist() == (plain + 1).tolist()


@pytest.mark.parametrize("divergence", [np.zeros((3, 3)), np.full((2, 2), np.nan), np.zeros((0, 4))])
def test_the_unit_of_no_divergence_is_one(divergence: np.ndarray) -> None:
    assert typical(divergence) == 1.0
