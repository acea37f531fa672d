"""Laws of the weighted mean of adapter sets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.aggregation.weighted import is_finite, weighted_mean
from elsa_ray.model.adapters import Adapters

SHAPES = {"lora_A": (3, 5), "lora_B": (5, 3), "bias": (4,)}


def random_sets(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Adapters]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def difference(first: Adapters, second: Adapters) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_it_is_the_mean_by_weight() -> None:
    sets, weights = random_sets(3), [5, 1, 2]
    expected = {name: sum(w * s[name] for s, w in zip(sets, weights, strict=True)) / 8 for name in SHAPES}
    assert difference(weighted_mean(sets, weights), expected) < 1e-15


def test_the_order_does_not_matter() -> None:
    sets, weights = random_sets(4), [3, 1, 0, 7]
    reference = weighted_mean(sets, weights)
    for order in itertools.permutations(range(4)):
        permuted = weighted_mean([sets[i] for i in order], [weights[i] for i in order])
        assert difference(permuted, reference) < 1e-12


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_of_equal_sets_is_that_set(dtype: torch.dtype, weights: list[int]) -> None:
    (one,) = random_sets(1, dtype)
    assert difference(weighted_mean([one] * len(weights), weights), one) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_set_of_weight_zero_has_no_influence_not_even_by_a_nan(bad: float) -> None:
    sets, weights = random_sets(3), [2, 0, 3]
    without = weighted_mean([sets[0], sets[2]], [2, 3])
    sets[1] = {name: torch.full_like(tensor, bad) for name, tensor in sets[1].items()}
    assert difference(weighted_mean(sets, weights), without) == 0.0
    assert is_finite(weighted_mean(sets, weights))


def test_the_same_input_gives_the_same_bits() -> None:
    sets, weights = random_sets(7, torch.float32), [3, 1, 4, 1, 5, 9, 2]
    first = weighted_mean(sets, weights)
    second = weighted_mean([{name: tensor.clone() for name, tensor in one.items()} for one in sets], list(weights))
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)


def test_the_inputs_are_left_as_they_were_and_the_type_is_kept() -> None:
    sets = random_sets(2, torch.float32)
    before = [{name: tensor.clone() for name, tensor in one.items()} for one in sets]
    mean = weighted_mean(sets, [1, 2])
    assert all(torch.equal(one[name], old[name]) for one, old in zip(sets, before, strict=True) for name in SHAPES)
    assert {tensor.dtype for tensor in mean.values()} == {torch.float32}


def test_weights_scale_out() -> None:
    sets = random_sets(3)
    assert difference(weighted_mean(sets, [1, 2, 3]), weighted_mean(sets, [1000, 2000, 3000])) < 1e-14


def test_means_of_groups_by_their_weight_are_the_mean_of_all() -> None:
    sets, weights = random_sets(5), [4, 0, 2, 7, 1]
    groups = [weighted_mean(sets[:2], weights[:2]), weighted_mean(sets[2:], weights[2:])]
    assert difference(weighted_mean(groups, [4, 10]), weighted_mean(sets, weights)) < 1e-14


@pytest.mark.parametrize("weights", [[], [0], [0, 0]])
def test_a_mean_of_nothing_is_an_error(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="positive weight"):
        weighted_mean(random_sets(len(weights)), weights)


def test_sets_and_weights_of_different_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        weighted_mean(random_sets(2), [1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_not_finite_is_seen(bad: float) -> None:
    (one,) = random_sets(1)
    assert is_finite(one)
    one["lora_B"][2, 1] = bad
    assert not is_finite(one)


def test_a_sum_that_overflows_or_cancels_decides_nothing() -> None:
    largest = torch.finfo(torch.float32).max
    assert is_finite({"a": torch.tensor([largest, largest]), "b": torch.tensor([1.0])})
    assert not is_finite({"a": torch.tensor([torch.inf]), "b": torch.tensor([-torch.inf])})
