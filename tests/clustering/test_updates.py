"""Cosines of updates with the others': what planted bad updates get among honest ones (methods.md 1.6 is silent)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.clustering import updates
from elsa_ray.clustering.updates import agreement_of_updates, cosines_with_others

NUM_PROBES, NUM_CLASSES = 32, 5


def honest_changes(num_clients: int, generator: np.random.Generator, noise: float = 1.0) -> np.ndarray:
    """A direction that all share, and as much again of each client's own."""
    common = generator.normal(size=NUM_PROBES * NUM_CLASSES)
    return common + noise * generator.normal(size=(num_clients, NUM_PROBES * NUM_CLASSES))


def agreement(change_NF: np.ndarray, weights_N: np.ndarray | None = None) -> np.ndarray:
    """Of a whole update alone, between 0 and 1."""
    weights_N = np.ones(len(change_NF)) if weights_N is None else weights_N
    return (1 + cosines_with_others(change_NF, weights_N)) / 2


def test_of_two_each_is_compared_with_the_other() -> None:
    first, second = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    np.testing.assert_allclose(agreement(np.stack([first, second])), (1 + np.sqrt(0.5)) / 2)
    np.testing.assert_allclose(agreement(np.stack([first, -first])), 0.0, atol=1e-12)


@pytest.mark.parametrize("bad_share", [0.1, 0.3, 0.4])
@pytest.mark.parametrize("seed", range(5))
def test_wrong_signs_and_noise_agree_less_than_every_honest_client(bad_share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_bad = int(20 * bad_share)
    change_NF = honest_changes(20, generator)
    flipped_NF, noisy_NF = change_NF.copy(), change_NF.copy()
    flipped_NF[:num_bad] *= -1
    noisy_NF[:num_bad] = generator.normal(size=(num_bad, change_NF.shape[1])) * np.sqrt(2)
    for attacked_NF in (flipped_NF, noisy_NF):
        found_N = agreement(attacked_NF)
        assert found_N[:num_bad].max() < found_N[num_bad:].min()


def test_size_says_nothing() -> None:
    change_NF = honest_changes(8, np.random.default_rng(3))
    larger_NF = change_NF * np.array([10.0, *[1.0] * 7])[:, None]
    np.testing.assert_allclose(agreement(larger_NF), agreement(change_NF), atol=1e-12)


def test_each_is_compared_with_the_mean_direction_of_the_others_in_the_half_nearest_to_the_median() -> None:
    """Five alike and two far away, one of them heard more: the half is of the five, each left out for itself."""
    generator = np.random.default_rng(4)
    near_NF = np.ones(30) + 0.1 * generator.normal(size=(5, 30))
    change_NF = np.concatenate([near_NF, generator.normal(size=(2, 30))])
    weights_N = np.array([1.0, 0.5, 0.7, 0.9, 0.6, 0.4, 1.0])
    unit_NF = change_NF / np.linalg.norm(change_NF, axis=1, keepdims=True)
    order = np.argsort(unit_NF, axis=0)
    reached = np.cumsum(weights_N[order], axis=0) >= weights_N.sum() / 2
    median_F = np.take_along_axis(unit_NF, np.take_along_axis(order, reached.argmax(0)[None], 0), 0)[0]
    heard = np.flatnonzero(unit_NF @ median_F >= np.median(unit_NF @ median_F))
    assert set(heard) < set(range(5))
    for n in range(7):
        others_F = sum(weights_N[m] * unit_NF[m] for m in heard if m != n)
        expected = unit_NF[n] @ others_F / np.linalg.norm(others_F)
        assert cosines_with_others(change_NF, weights_N)[n] == pytest.approx(expected, rel=1e-9)


def test_looked_at_in_blocks_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    change_NF = honest_changes(7, np.random.default_rng(5)).astype(np.float32)
    at_once_N = agreement(change_NF)
    monkeypatch.setattr(updates, "BLOCK_COLUMNS", 7)
    np.testing.assert_allclose(agreement(change_NF), at_once_N, rtol=1e-12)


def test_direction_counts_four_times_as_much_as_answers_and_views_alike() -> None:
    cosines_VN = (np.array([1.0, -1.0, 0.5]), np.array([1.0, -1.0, -0.5]))
    found_N = agreement_of_updates(cosines_VN, np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(found_N, [1.0, 0.2, 0.4])


def test_a_broken_model_agrees_with_nobody_and_disturbs_nobody() -> None:
    change_NF = honest_changes(6, np.random.default_rng(1))
    with_broken_NF = np.concatenate([change_NF, np.full((1, change_NF.shape[1]), np.nan)])
    found_N = agreement(with_broken_NF)
    assert found_N[6] == 0
    np.testing.assert_array_equal(found_N[:6], agreement(change_NF))


def test_who_has_not_changed_is_neither_for_nor_against_and_one_alone_agrees() -> None:
    change_NF = honest_changes(5, np.random.default_rng(2))
    change_NF[0] = 0
    assert agreement(change_NF)[0] == 0.5
    assert agreement(change_NF[1:2]).tolist() == [1.0]
    assert agreement(np.zeros((3, 4))).tolist() == [1.0, 1.0, 1.0], "nobody has moved: there is nothing to compare with"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_clients=st.integers(1, 9), scale=st.floats(0.01, 100))
def test_bounds_order_and_scale(seed: int, num_clients: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    change_NF, weights_N = honest_changes(num_clients, generator), generator.uniform(0.1, 1, num_clients)
    found_N = agreement(change_NF, weights_N)
    assert ((found_N >= 0) & (found_N <= 1)).all()
    order = generator.permutation(num_clients)
    np.testing.assert_allclose(agreement(change_NF[order], weights_N[order]), found_N[order], atol=1e-12)
    np.testing.assert_allclose(agreement(change_NF * scale, weights_N), found_N, atol=1e-12)


def test_a_client_of_weight_zero_is_not_heard() -> None:
    """Two of four push the other way; without a weight they are compared and move nobody."""
    change_NF = np.array([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [-1.0, 0.0, 0.0], [-1.0, 0.0, 0.1]])
    found_N = agreement(change_NF, np.array([1.0, 1.0, 0.0, 0.0]))
    assert found_N[:2].min() > 0.99
    assert found_N[2:].max() < 0.01
