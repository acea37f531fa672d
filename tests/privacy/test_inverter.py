"""A learned inverter learns what there is to learn, from the attacker's own pairs only, and is reproducible."""

from __future__ import annotations

import torch
from torch import Tensor

from elsa_ray.privacy.inverter import InverterBudget, learned_inversion, own_pairs, trained_inverter
from elsa_ray.privacy.rows import TokenRows

from .synthetic import key, normal, orthogonal, token_rows

WIDTH, VOCABULARY, RANK = 32, 20, 8
BUDGET = InverterBudget(hidden_units=32, steps=150, batch_size=64, learning_rate=1e-2)
PUBLIC, PRIVATE = token_rows(600, VOCABULARY, WIDTH), token_rows(300, VOCABULARY, WIDTH, seed=1)


def own_key(rows_TD: Tensor, number: int) -> Tensor:
    return key(WIDTH, RANK, seed=100 + number)(rows_TD)


def test_it_learns_a_channel_that_it_can_use_itself() -> None:
    """A linear map that mixes all coordinates, and scales and offsets far from 1 and 0."""
    mixing = torch.diag(torch.logspace(-3, 3, WIDTH, dtype=torch.float64)) @ orthogonal(WIDTH)
    pairs = own_pairs(PUBLIC, lambda rows_TD, number: rows_TD @ mixing + 50, 1)
    outcome = learned_inversion(trained_inverter(pairs, 0, BUDGET), PRIVATE.rows_TD @ mixing + 50, PRIVATE.ids_T)
    assert outcome.rate > 0.95


def test_from_noise_it_learns_nothing() -> None:
    pairs = TokenRows(normal(600, WIDTH), PUBLIC.ids_T, PUBLIC.text_T)
    outcome = learned_inversion(trained_inverter(pairs, 0, BUDGET), PRIVATE.rows_TD, PRIVATE.ids_T)
    assert outcome.rate < 0.2  # 1/20 expected


def test_many_keys_of_its_own_teach_what_no_key_hides() -> None:
    seen_TD = own_key(PRIVATE.rows_TD, -1)
    pairs = own_pairs(PUBLIC, own_key, 12)
    assert len(pairs) == 12 * len(PUBLIC)
    assert torch.equal(pairs.rows_TD[600:1200], own_key(PUBLIC.rows_TD, 1))
    outcome = learned_inversion(trained_inverter(pairs, 0, BUDGET), seen_TD, PRIVATE.ids_T)
    assert outcome.rate > 0.9


def test_tokens_that_no_public_text_has_are_missed() -> None:
    inverter = trained_inverter(PUBLIC.without(range(5, 15)), 0, BUDGET)
    assert inverter.ids_V.tolist() == list(range(15, 25))
    assert learned_inversion(inverter, PRIVATE.rows_TD, PRIVATE.ids_T).rate <= float(
        (PRIVATE.ids_T >= 15).double().mean()
    )


def test_the_same_seed_gives_the_same_bits_and_global_streams_are_left_alone() -> None:
    budget, before = InverterBudget(hidden_units=8, steps=5), torch.get_rng_state()
    first, again, other = (trained_inverter(PUBLIC, seed, budget) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one, two) for one, two in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])
    assert not any(weight.requires_grad for weight in first.weights)


def test_a_constant_coordinate_is_no_division_by_zero() -> None:
    flat = TokenRows(PUBLIC.rows_TD.clone(), PUBLIC.ids_T, PUBLIC.text_T)
    flat.rows_TD[:, 0] = 3.0
    inverter = trained_inverter(flat, 0, InverterBudget(hidden_units=8, steps=5))
    assert all(bool(weight.isfinite().all()) for weight in inverter.weights)
