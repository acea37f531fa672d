"""The symmetric divergence against the textbook formula, pair by pair, and its laws (methods.md 1.16, 1 to 3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.clustering.divergence import nearest_neighbours, symmetric_kl, to_medoids
from elsa_ray.clustering.fingerprints import shrink

from .groups import random_gaussians


def kl(mean_n: np.ndarray, covariance_n: np.ndarray, mean_m: np.ndarray, covariance_m: np.ndarray) -> float:
    """The textbook formula, logarithms of the determinants included."""
    shift = mean_n - mean_m
    return 0.5 * (
        np.trace(np.linalg.solve(covariance_m, covariance_n))
        + shift @ np.linalg.solve(covariance_m, shift)
        - len(shift)
        + np.linalg.slogdet(covariance_m)[1]
        - np.linalg.slogdet(covariance_n)[1]
    )


def pairwise(mean_Nd: np.ndarray, covariance_Ndd: np.ndarray) -> np.ndarray:
    gaussians = list(zip(mean_Nd, covariance_Ndd, strict=True))
    return np.array([[(kl(*n, *m) + kl(*m, *n)) / 2 for m in gaussians] for n in gaussians])


def one_dimensional(*gaussians: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return means [N, 1] and variances [N, 1, 1]."""
    return np.array([[mean] for mean, _ in gaussians]), np.array([[[variance]] for _, variance in gaussians])


def test_two_values_by_hand() -> None:
    divergence_NN = symmetric_kl(*one_dimensional((0, 1), (1, 1), (0, 4)))
    assert divergence_NN[0, 1] == pytest.approx(0.5, abs=1e-15)
    assert divergence_NN[0, 2] == pytest.approx(0.25 * (4 + 1 / 4 - 2), abs=1e-15) == 0.5625


@pytest.mark.parametrize("block_rows", [1, 3, 7, 11, 1000])
@pytest.mark.parametrize("d", [1, 2, 9])
def test_blocks_give_what_the_pairwise_formula_gives(d: int, block_rows: int) -> None:
    mean_Nd, covariance_Ndd = random_gaussians(11, d)
    expected_NN = pairwise(mean_Nd, covariance_Ndd)
    found_NN = symmetric_kl(mean_Nd, covariance_Ndd, block_rows=block_rows)
    np.testing.assert_allclose(found_NN, expected_NN, rtol=1e-10, atol=1e-10)
    medoids_K = np.array([4, 0, 10])
    found_NK = to_medoids(mean_Nd, covariance_Ndd, medoids_K, block_rows=block_rows)
    np.testing.assert_allclose(found_NK, expected_NN[:, medoids_K], rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_clients=st.integers(1, 9), d=st.integers(1, 6), block_rows=st.integers(1, 9))
def test_it_is_zero_of_itself_symmetric_and_positive(seed: int, num_clients: int, d: int, block_rows: int) -> None:
    divergence_NN = symmetric_kl(*random_gaussians(num_clients, d, seed), block_rows=block_rows)
    assert (np.diag(divergence_NN) == 0).all()
    assert (divergence_NN == divergence_NN.T).all()
    assert (divergence_NN[~np.eye(num_clients, dtype=bool)] > 0).all()


def test_it_is_symmetric_to_the_last_bit_where_the_products_are_not() -> None:
    divergence_NN = symmetric_kl(*random_gaussians(700, 17))
    assert (divergence_NN == divergence_NN.T).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_clients_and_a_common_rotation_do_not_matter(seed: int) -> None:
    mean_Nd, covariance_Ndd = random_gaussians(8, 5, seed)
    generator = np.random.default_rng(seed)
    order, rotation_dd = generator.permutation(8), np.linalg.qr(generator.normal(size=(5, 5)))[0]
    reference_NN = symmetric_kl(mean_Nd, covariance_Ndd)
    permuted_NN = symmetric_kl(mean_Nd[order], covariance_Ndd[order])
    np.testing.assert_allclose(permuted_NN, reference_NN[np.ix_(order, order)], rtol=1e-9)
    rotated_NN = symmetric_kl(mean_Nd @ rotation_dd, rotation_dd.T @ covariance_Ndd @ rotation_dd)
    np.testing.assert_allclose(rotated_NN, reference_NN, rtol=1e-9)


def test_a_common_shift_of_all_means_does_not_matter_however_far() -> None:
    mean_Nd, covariance_Ndd = random_gaussians(6, 4)
    far_NN = symmetric_kl(mean_Nd + 1e6, covariance_Ndd)
    np.testing.assert_allclose(far_NN, symmetric_kl(mean_Nd, covariance_Ndd), rtol=1e-7)


def test_fewer_probes_than_dimensions_give_finite_divergences_that_grow_with_the_shift() -> None:
    generator = np.random.default_rng(0)
    states_QD = generator.normal(size=(5, 20))
    centred_QD = states_QD - states_QD.mean(axis=0)
    covariance_dd = centred_QD.T @ centred_QD / 5
    assert np.linalg.matrix_rank(covariance_dd) == 4
    direction_d = generator.normal(size=20)
    mean_Nd = np.stack([shift * direction_d for shift in (0.0, 0.1, 0.5, 1.0, 3.0, 10.0)])
    from_first_N = symmetric_kl(mean_Nd, np.repeat(shrink(covariance_dd, 0.1)[None], 6, axis=0))[0]
    assert np.isfinite(from_first_N).all()
    assert (np.diff(from_first_N) > 0).all()


@pytest.mark.parametrize("block_rows", [2, 1000])
def test_neighbours_are_the_least_of_each_row(block_rows: int) -> None:
    mean_Nd, covariance_Ndd = random_gaussians(15, 3)
    dense_NN = symmetric_kl(mean_Nd, covariance_Ndd)
    np.fill_diagonal(dense_NN, np.inf)
    neighbours, divergences = nearest_neighbours(mean_Nd, covariance_Ndd, 4, block_rows=block_rows)
    assert neighbours.tolist() == np.argsort(dense_NN, axis=1)[:, :4].tolist()
    np.testing.assert_allclose(divergences, np.sort(dense_NN, axis=1)[:, :4], rtol=1e-12)
    assert nearest_neighbours(mean_Nd, covariance_Ndd, 50)[0].shape == (15, 14)


def test_medoids_are_at_zero_from_themselves_and_shrinking_can_be_left_to_the_blocks() -> None:
    mean_Nd, covariance_Ndd = random_gaussians(9, 4)
    medoids_K = np.array([2, 7])
    shrunk_NK = to_medoids(mean_Nd, shrink(covariance_Ndd, 0.3), medoids_K)
    assert (shrunk_NK[medoids_K, [0, 1]] == 0).all()
    in_blocks_NK = to_medoids(mean_Nd, covariance_Ndd, medoids_K, shrinkage=0.3, block_rows=4)
    np.testing.assert_allclose(in_blocks_NK, shrunk_NK, rtol=1e-12)
