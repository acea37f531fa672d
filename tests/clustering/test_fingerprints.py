"""Fingerprints: the frame, the moments, the shrinkage, and the exact form against dense matrices (methods.md 1.4)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.clustering.divergence import symmetric_kl
from elsa_ray.clustering.fingerprints import (
    FLOOR,
    exact_symmetric_kl,
    fingerprint,
    make_frame,
    num_bytes,
    shrink,
    stack,
)
from elsa_ray.config.errors import InputError


def random_states(num_clients: int, num_probes: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(num_clients, num_probes, width)) * generator.uniform(0.2, 3, width)


def dense_symmetric_kl(first_QD: np.ndarray, second_QD: np.ndarray, shrinkage: float) -> float:
    """The whole D x D matrices, shrunk, through the projected form's own formula."""
    mean_ND = np.stack([first_QD.mean(axis=0), second_QD.mean(axis=0)])
    covariance_NDD = np.stack([np.cov(states_QD, rowvar=False, bias=True) for states_QD in (first_QD, second_QD)])
    return float(symmetric_kl(mean_ND, shrink(covariance_NDD, shrinkage))[0, 1])


def test_the_frame_has_the_axes_of_most_variance_and_a_mean_variance_of_one() -> None:
    states_QD = random_states(1, 30, 10)[0]
    frame = make_frame(states_QD, 4)
    np.testing.assert_allclose(frame.basis_Dd.T @ frame.basis_Dd, np.eye(4), atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(np.cov(states_QD, rowvar=False, bias=True))[::-1]
    found = fingerprint(states_QD, frame)
    np.testing.assert_allclose(found.covariance_dd * frame.scale**2, np.diag(eigenvalues[:4]), atol=1e-10)
    assert np.trace(found.covariance_dd) == pytest.approx(4)
    for seed in range(5):
        basis_Dd = make_frame(random_states(1, 30, 10, seed)[0], 9).basis_Dd
        assert (basis_Dd.max(axis=0) == np.abs(basis_Dd).max(axis=0)).all(), "one of two directions, always the same"


def test_moments_are_those_of_the_projected_states_with_divisor_q() -> None:
    base_QD, states_QD = random_states(2, 12, 7)
    frame = make_frame(base_QD, 3)
    found = fingerprint(states_QD, frame)
    projected_Qd = states_QD @ frame.basis_Dd / frame.scale
    np.testing.assert_allclose(found.mean_d, projected_Qd.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance_dd, np.cov(projected_Qd, rowvar=False, bias=True), rtol=1e-12)
    mean_Nd, covariance_Ndd = stack([found, found])
    assert mean_Nd.shape == (2, 3) and covariance_Ndd.shape == (2, 3, 3)


def test_the_unit_of_the_states_does_not_matter() -> None:
    base_QD, *states = random_states(4, 20, 6)
    divergences = []
    for unit in (1.0, 1e4):
        frame = make_frame(base_QD * unit, 5)
        mean_Nd, covariance_Ndd = stack([fingerprint(states_QD * unit, frame) for states_QD in states])
        divergences.append(symmetric_kl(mean_Nd, shrink(covariance_Ndd, 0.1)))
    np.testing.assert_allclose(divergences[0], divergences[1], rtol=1e-9)


def test_a_fingerprint_of_32_dimensions_takes_2240_bytes() -> None:
    assert num_bytes(32) == 2240
    assert num_bytes(1) == 8


@pytest.mark.parametrize(("num_probes", "width", "dimensions"), [(10, 20, 10), (10, 20, 0), (30, 8, 9)])
def test_more_dimensions_than_the_probes_or_the_model_have_are_refused(
    num_probes: int, width: int, dimensions: int
) -> None:
    with pytest.raises(InputError, match=r"clustering\.dimensions"):
        make_frame(random_states(1, num_probes, width)[0], dimensions)


def test_probes_that_tell_nothing_apart_are_refused() -> None:
    with pytest.raises(InputError, match="one and the same state"):
        make_frame(np.ones((10, 4)), 2)
    with pytest.raises(InputError, match="not finite"):
        make_frame(np.full((10, 4), np.nan), 2)


def test_shrinking_keeps_the_trace_but_for_the_floor_and_makes_rank_one_invertible() -> None:
    direction = np.arange(1.0, 5.0)
    covariance_dd = np.outer(direction, direction)
    shrunk_dd = shrink(covariance_dd, 0.1)
    assert np.trace(shrunk_dd) == pytest.approx((1 + FLOOR) * np.trace(covariance_dd))
    least = np.linalg.eigvalsh(shrunk_dd).min()
    assert least == pytest.approx((0.1 + FLOOR) * np.trace(covariance_dd) / 4)
    np.testing.assert_array_equal(shrink(np.stack([covariance_dd] * 2), 0.1), np.stack([shrunk_dd] * 2))


def test_a_client_that_gives_every_probe_the_same_state_is_far_from_all_but_not_infinitely() -> None:
    base_QD, states_QD = random_states(2, 20, 6)
    frame = make_frame(base_QD, 4)
    mean_Nd, covariance_Ndd = stack([fingerprint(each, frame) for each in (states_QD, base_QD, np.ones((20, 6)))])
    divergence_NN = symmetric_kl(mean_Nd, shrink(covariance_Ndd, 0.1))
    assert np.isfinite(divergence_NN).all()
    assert divergence_NN[0, 2] > 1e6 * divergence_NN[0, 1] > 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_probes=st.integers(2, 15), width=st.integers(1, 12))
def test_the_exact_form_is_the_divergence_of_the_dense_matrices(seed: int, num_probes: int, width: int) -> None:
    first_QD, second_QD = random_states(2, num_probes, width, seed)
    found = exact_symmetric_kl(first_QD, second_QD, shrinkage=0.1)
    if width > 1:
        assert found == pytest.approx(dense_symmetric_kl(first_QD, second_QD, 0.1), rel=1e-8, abs=1e-10)
    assert exact_symmetric_kl(first_QD, first_QD, shrinkage=0.1) == pytest.approx(0.0, abs=1e-9)
    assert found == pytest.approx(exact_symmetric_kl(second_QD, first_QD, shrinkage=0.1), rel=1e-12)


def test_in_a_basis_of_all_dimensions_the_projected_form_is_the_exact_one() -> None:
    base_QD, first_QD, second_QD = random_states(3, 20, 8)
    frame = make_frame(base_QD, 8)
    mean_Nd, covariance_Ndd = stack([fingerprint(each, frame) for each in (first_QD, second_QD)])
    projected = symmetric_kl(mean_Nd, shrink(covariance_Ndd, 0.1))[0, 1]
    assert projected == pytest.approx(exact_symmetric_kl(first_QD, second_QD, shrinkage=0.1), rel=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_in_a_basis_that_spans_the_states_the_rest_of_the_space_adds_what_its_variances_tell(seed: int) -> None:
    """States in 5 of 30 dimensions: what the projection leaves out is isotropic, of variance v_n against v_m, and the
    divergence of that is (30 - 5) (v_n / v_m + v_m / v_n - 2) / 4."""
    generator = np.random.default_rng(seed)
    span_dD = np.linalg.qr(generator.normal(size=(30, 5)))[0].T
    low_NQd = random_states(3, 12, 5, seed)
    base_QD, first_QD, second_QD = low_NQd @ span_dD
    frame = make_frame(base_QD, 5)
    mean_Nd, covariance_Ndd = stack([fingerprint(each, frame) for each in (first_QD, second_QD)])
    projected = symmetric_kl(mean_Nd, shrink(covariance_Ndd, 0.1))[0, 1]
    ratio = np.trace(covariance_Ndd[0]) / np.trace(covariance_Ndd[1])
    left_out = (30 - 5) * (ratio + 1 / ratio - 2) / 4
    exact = exact_symmetric_kl(first_QD, second_QD, shrinkage=0.1, dimensions=5)
    assert exact == pytest.approx(projected + left_out, rel=1e-8)
