"""Agreement: the card's formula by hand, and what planted bad clients get (methods.md 1.6).

Shapes: N clients, Q probes, C classes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from elsa_ray.clustering.agreement import agreement_of_answers, agreement_of_states

from .groups import honest_answers, softmax


def by_the_formula(answers_NQC: np.ndarray, weights_N: np.ndarray) -> list[float]:
    """1 - (1/Q) sum JS(p || mean of the others) / ln 2; scipy's distance is the root of JS."""
    agreement = []
    for n in range(len(answers_NQC)):
        others = np.arange(len(answers_NQC)) != n
        mean_QC = np.average(answers_NQC[others], axis=0, weights=weights_N[others])
        agreement.append(1 - np.mean(jensenshannon(answers_NQC[n], mean_QC, base=2, axis=1) ** 2))
    return agreement


def random_answers(num_clients: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([1.0] * 4, (num_clients, 9))


def test_of_two_each_is_compared_with_the_other_by_the_formula() -> None:
    answers_NQC = random_answers(2)
    found_N = agreement_of_answers(answers_NQC, np.ones(2), centred=False)
    np.testing.assert_allclose(found_N, by_the_formula(answers_NQC, np.ones(2)), rtol=1e-9)


def test_of_many_each_is_compared_with_the_weighted_mean_of_the_others_in_the_half_nearest_to_the_median() -> None:
    """Five alike and four far away: the nearest half is the five, in which each is left out for itself."""
    alike_NQC = softmax(np.log(random_answers(1)) + 0.05 * np.random.default_rng(1).normal(size=(5, 9, 4)))
    answers_NQC = np.concatenate([alike_NQC, random_answers(4, seed=2)])
    weights_N = np.linspace(0.5, 1.0, 9)
    found_N = agreement_of_answers(answers_NQC, weights_N, centred=False)
    np.testing.assert_allclose(found_N[:5], by_the_formula(alike_NQC, weights_N[:5]), rtol=1e-9)
    for n in range(5, 9):
        with_n, weights = np.concatenate([alike_NQC, answers_NQC[[n]]]), [*weights_N[:5], 1.0]
        assert found_N[n] == pytest.approx(by_the_formula(with_n, np.array(weights))[-1], rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), num_clients=st.integers(1, 8))
@pytest.mark.parametrize("centred", [True, False])
def test_it_lies_between_0_and_1_and_the_order_of_clients_does_not_matter(
    centred: bool, seed: int, num_clients: int
) -> None:
    answers_NQC, generator = random_answers(num_clients, seed), np.random.default_rng(seed)
    weights_N = generator.uniform(0.1, 1, num_clients)
    found_N = agreement_of_answers(answers_NQC, weights_N, centred=centred)
    assert ((found_N >= 0) & (found_N <= 1)).all()
    order = generator.permutation(num_clients)
    permuted_N = agreement_of_answers(answers_NQC[order], weights_N[order], centred=centred)
    np.testing.assert_allclose(permuted_N, found_N[order], rtol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_equal_answers_agree_fully_and_one_client_alone_does(centred: bool) -> None:
    same_NQC = np.repeat(random_answers(1), 5, axis=0)
    np.testing.assert_allclose(agreement_of_answers(same_NQC, np.ones(5), centred=centred), 1.0, atol=1e-12)
    assert agreement_of_answers(same_NQC[:1], np.ones(1), centred=centred).tolist() == [1.0]


def test_opposite_certainties_disagree_fully() -> None:
    answers_NQC = np.array([[[1.0, 0.0]] * 4, [[0.0, 1.0]] * 4])
    np.testing.assert_allclose(agreement_of_answers(answers_NQC, np.ones(2), centred=False), 0.0, atol=1e-4)


def test_what_is_no_distribution_agrees_with_nobody_and_disturbs_nobody() -> None:
    answers_NQC = random_answers(8)
    expected_N = agreement_of_answers(answers_NQC[:4], np.ones(4))
    answers_NQC[4, 3, 1], answers_NQC[5], answers_NQC[6, 0] = np.nan, np.inf, 0.0
    answers_NQC[7, 2] *= -1
    found_N = agreement_of_answers(answers_NQC, np.ones(8))
    assert (found_N[4:] == 0).all()
    assert found_N[:4].tolist() == expected_N.tolist()
    assert agreement_of_answers(np.full((2, 3, 2), np.nan), np.ones(2)).tolist() == [0.0, 0.0]


def test_who_has_no_weight_is_compared_but_not_heard() -> None:
    answers_NQC = random_answers(6)
    with_N = agreement_of_answers(answers_NQC, np.array([1.0, 1, 1, 1, 0, 0]))
    without_N = agreement_of_answers(answers_NQC[:4], np.ones(4))
    np.testing.assert_allclose(with_N[:4], without_N, rtol=1e-12)
    assert (with_N[4:] < 1).all()
    heard_N = agreement_of_answers(answers_NQC, np.ones(6))
    np.testing.assert_allclose(agreement_of_answers(answers_NQC, np.zeros(6)), heard_N, rtol=1e-12)


def sign_flippers(shared_QC: np.ndarray, bias_BC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return softmax(-shared_QC + bias_BC[:, None] + 0.5 * generator.normal(size=(len(bias_BC), *shared_QC.shape)))


def label_flippers(shared_QC: np.ndarray, bias_BC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return sign_flippers(-shared_QC[:, ::-1], bias_BC, generator)


def random_answerers(shared_QC: np.ndarray, bias_BC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.dirichlet([1.0] * shared_QC.shape[1], (len(bias_BC), len(shared_QC)))


def parrots(shared_QC: np.ndarray, bias_BC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Broken models: each gives the same answer to every probe, whatever that is."""
    favourite_B = generator.integers(0, shared_QC.shape[1], len(bias_BC))
    answers_BC = softmax(generator.uniform(2, 8, (len(bias_BC), 1)) * np.eye(shared_QC.shape[1])[favourite_B])
    return np.repeat(answers_BC[:, None], len(shared_QC), axis=1)


BadClients = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
BAD = [sign_flippers, label_flippers, random_answerers, parrots]


def cluster_of_20(bad: BadClients, num_bad: int, alpha: float, seed: int) -> np.ndarray:
    """Return answers of which the first ``num_bad`` are bad."""
    answers_NQC, shared_QC, bias_NC = honest_answers(20, alpha=alpha, seed=seed)
    answers_NQC[:num_bad] = bad(shared_QC, bias_NC[:num_bad], np.random.default_rng(1000 + seed))
    return answers_NQC


def separation(agreement_N: np.ndarray, num_bad: int) -> float:
    """Return the share of pairs of an honest and a bad client in which the honest one agrees more (ROC-AUC)."""
    return float((agreement_N[num_bad:, None] > agreement_N[None, :num_bad]).mean())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
@pytest.mark.parametrize("num_bad", [6, 8])
@pytest.mark.parametrize("bad", BAD)
def test_30_or_40_percent_bad_clients_agree_less_than_every_honest_one_however_skewed(
    bad: BadClients, num_bad: int, alpha: float
) -> None:
    for seed in range(5):
        agreement_N = agreement_of_answers(cluster_of_20(bad, num_bad, alpha, seed), np.ones(20))
        assert separation(agreement_N, num_bad) == 1.0
        assert agreement_N[num_bad:].min() > 0.9


@pytest.mark.parametrize("bad", [*BAD[:3]])
def test_uncentred_answers_of_skewed_clients_do_not_tell_the_bad_ones(bad: BadClients) -> None:
    """Why ``centred`` is the default: with few classes a client, the skew is larger than what the bad ones do."""
    found = [
        separation(agreement_of_answers(cluster_of_20(bad, 8, 0.1, seed), np.ones(20), centred=False), 8)
        for seed in range(5)
    ]
    assert np.mean(found) < 0.8


def test_noisy_honest_clients_are_not_outvoted_by_broken_models_that_all_look_alike() -> None:
    """Centred, 6 of 20 have no spread at all: they are not heard, so that honest noise costs no honest client much."""
    separations = []
    for seed in range(10):
        answers_NQC, shared_QC, bias_NC = honest_answers(20, alpha=0.5, seed=seed, noise=1.0)
        answers_NQC[:6] = parrots(shared_QC, bias_NC[:6], np.random.default_rng(seed))
        separations.append(separation(agreement_of_answers(answers_NQC, np.ones(20)), 6))
    assert np.mean(separations) > 0.6, "0.06 if all were heard alike"


def test_a_client_that_favours_a_class_everywhere_agrees_fully_when_centred() -> None:
    generator = np.random.default_rng(0)
    logits_QC = generator.normal(size=(16, 5))
    answers_NQC = softmax(logits_QC + generator.normal(size=(6, 1, 5)))
    np.testing.assert_allclose(agreement_of_answers(answers_NQC, np.ones(6)), 1.0, atol=1e-9)
    assert agreement_of_answers(answers_NQC, np.ones(6), centred=False).max() < 0.99


def linear_cka(first_QD: np.ndarray, second_QD: np.ndarray) -> float:
    """In the form with features: ||X^T Y||^2 / (||X^T X|| ||Y^T Y||), both centred."""
    first, second = first_QD - first_QD.mean(axis=0), second_QD - second_QD.mean(axis=0)
    lengths = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
    return float(np.linalg.norm(first.T @ second) ** 2 / lengths)


def test_states_of_two_agree_by_their_cka() -> None:
    first_QD, second_QD = np.random.default_rng(0).normal(size=(2, 10, 6))
    expected = linear_cka(first_QD, second_QD)
    assert 0.1 < expected < 0.9
    found_N = agreement_of_states(np.stack([first_QD, second_QD]), np.ones(2))
    np.testing.assert_allclose(found_N, expected, rtol=1e-10)


def test_states_may_be_turned_scaled_and_shifted() -> None:
    generator = np.random.default_rng(0)
    states_QD = generator.normal(size=(12, 5))
    turned = [
        (generator.uniform(0.1, 9) * states_QD + generator.normal(size=5))
        @ np.linalg.qr(generator.normal(size=(5, 5)))[0]
        for _ in range(4)
    ]
    np.testing.assert_allclose(agreement_of_states(np.stack(turned), np.ones(4)), 1.0, atol=1e-9)


def test_states_of_bad_clients_agree_less_than_every_honest_clients() -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        shared_QD = generator.normal(size=(32, 8))
        states_NQD = shared_QD + 0.5 * generator.normal(size=(15, 32, 8))
        states_NQD[:6] = generator.normal(size=(6, 32, 8))
        states_NQD[5] = 1.0  # nothing told apart
        agreement_N = agreement_of_states(states_NQD, np.ones(15))
        assert separation(agreement_N, 6) == 1.0
        assert agreement_N[5] == 0.0


def test_states_that_are_not_finite_agree_with_nobody_and_disturb_nobody() -> None:
    states_NQD = np.random.default_rng(0).normal(size=(5, 8, 3))
    expected_N = agreement_of_states(states_NQD[:4], np.ones(4))
    states_NQD[4, 0, 0] = np.nan
    assert agreement_of_states(states_NQD, np.ones(5)).tolist() == [*expected_N.tolist(), 0.0]
