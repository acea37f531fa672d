from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.privacy.linear_probe import PENALTY, fitted_ridge, linear_probe

from .synthetic import normal


def classes(count: int, num_classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 1000), width=st.integers(1, 6))
def test_the_ridge_is_the_minimum_of_its_objective(seed: int, width: int) -> None:
    """Mean squared error against one-hot targets plus the penalty: its gradient, by autograd, is zero."""
    features_ND, class_N = 3 + 10 * normal(12, width, seed=seed), classes(12, 3, seed)
    ridge = fitted_ridge(features_ND, class_N)
    weights_DK = ridge.weights_DK.clone().requires_grad_()
    bias_K = ridge.bias_K.clone().requires_grad_()
    scores_NK = (features_ND - ridge.mean_D) / ridge.scale_D @ weights_DK + bias_K
    target_NK = torch.nn.functional.one_hot(class_N).double()
    ((scores_NK - target_NK).square().sum() / 12 + PENALTY * weights_DK.square().sum()).backward()
    assert weights_DK.grad.abs().max() < 1e-10 and bias_K.grad.abs().max() < 1e-10


def test_an_attribute_that_is_there_is_found_and_one_that_is_not_is_guessed() -> None:
    attribute_N = classes(400, 3)
    centres_KD = 3 * normal(3, 10)
    there = linear_probe(normal(400, 10, seed=1) + centres_KD[attribute_N], attribute_N, 0)
    assert there.rate > 0.95 and there.count == 200
    absent = linear_probe(normal(400, 10, seed=1), attribute_N, 0)
    assert abs(absent.rate - 1 / 3) < 0.12  # 3.6 standard deviations


def test_it_is_tested_on_texts_that_it_has_not_seen() -> None:
    """Features that name each text: by heart all would be right, on others none can be told."""
    attribute_N = classes(200, 4)
    outcome = linear_probe(torch.eye(200, dtype=torch.float64), attribute_N, 0)
    assert outcome.rate <= outcome.guess_rate


def test_the_division_is_a_function_of_the_seed() -> None:
    features_ND, attribute_N = normal(60, 5), classes(60, 2)
    assert linear_probe(features_ND, attribute_N, 3) == linear_probe(features_ND, attribute_N, 3)
    assert len({linear_probe(features_ND, attribute_N, seed) for seed in range(6)}) > 1
    assert linear_probe(features_ND, attribute_N, 0, train_share=0.99999).count == 1


def test_a_constant_feature_is_no_division_by_zero() -> None:
    assert linear_probe(torch.ones(20, 3), classes(20, 2), 0).count == 10
