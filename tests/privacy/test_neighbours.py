"""Nearest neighbours find what is there, nothing where nothing is, and a rotated subspace does not hide the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.codecs.subspaces import leading_directions
from elsa_ray.privacy.neighbours import (
    Dictionary,
    adapted_inversion,
    chosen_directions,
    dictionary_of,
    nearest_entries,
    nearest_neighbour_inversion,
    without_directions,
)
from elsa_ray.privacy.rows import TokenRows

from .synthetic import key, normal, orthogonal, rotation_in_subspace, token_rows

WIDTH, VOCABULARY = 32, 40
PUBLIC, PRIVATE = token_rows(800, VOCABULARY, WIDTH), token_rows(300, VOCABULARY, WIDTH, seed=1)


def test_the_dictionary_is_the_mean_state_of_each_token() -> None:
    ids_T = torch.tensor([9, 4, 9, 4, 4, 7])
    rows = TokenRows(normal(6, 3), ids_T, torch.zeros(6, dtype=torch.int64))
    dictionary = dictionary_of(rows)
    assert dictionary.ids_V.tolist() == [4, 7, 9]
    for row, token in enumerate([4, 7, 9]):
        assert torch.allclose(dictionary.states_VD[row], rows.rows_TD[ids_T == token].mean(dim=0))


def test_plain_states_are_inverted_and_noise_is_not() -> None:
    dictionary = dictionary_of(PUBLIC)
    plain = nearest_neighbour_inversion(PRIVATE.rows_TD, dictionary, PRIVATE.ids_T)
    assert plain.rate > 0.99 and plain.count == 300
    assert plain.guess_rate == PRIVATE.ids_T.bincount().max() / 300
    nothing = nearest_neighbour_inversion(normal(300, WIDTH), dictionary, PRIVATE.ids_T)
    assert nothing.rate < 0.1  # 1/40 expected: 8 standard deviations


def test_tokens_that_no_public_text_has_are_missed() -> None:
    kept = PUBLIC.without(range(5, 25))
    outcome = nearest_neighbour_inversion(PRIVATE.rows_TD, dictionary_of(kept), PRIVATE.ids_T)
    known = float((PRIVATE.ids_T >= 25).double().mean())
    assert outcome.rate <= known and outcome.rate > known - 0.1


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 9))
def test_scale_common_shift_and_order_do_not_matter(scale: float, shift: float, seed: int) -> None:
    dictionary = dictionary_of(PUBLIC)
    expected = nearest_neighbour_inversion(PRIVATE.rows_TD[:40], dictionary, PRIVATE.ids_T[:40])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    moved_TD = (scale * PRIVATE.rows_TD[:40] + shift)[order]
    assert nearest_neighbour_inversion(moved_TD, dictionary, PRIVATE.ids_T[:40][order]) == expected


def test_of_equals_the_lowest_id_is_taken() -> None:
    dictionary = Dictionary(torch.tensor([3, 8, 9]), torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 0.0]]))
    seen_TD = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    assert nearest_neighbour_inversion(seen_TD, dictionary, torch.tensor([3, 9])).rate == 1.0
    assert nearest_neighbour_inversion(seen_TD, dictionary, torch.tensor([8, 9])).rate == 0.5


def test_a_whole_rotation_hides_the_tokens() -> None:
    seen_TD = PRIVATE.rows_TD @ orthogonal(WIDTH, seed=4)
    assert nearest_neighbour_inversion(seen_TD, dictionary_of(PUBLIC), PRIVATE.ids_T).rate < 0.15


def test_outside_of_its_subspace_a_rotation_changes_nothing() -> None:
    matrix_DD, basis_DR = rotation_in_subspace(WIDTH, 10, seed=2)
    plain_TD = without_directions(PRIVATE.rows_TD, basis_DR)
    assert torch.allclose(without_directions(PRIVATE.rows_TD @ matrix_DD.T, basis_DR), plain_TD, atol=1e-12)
    assert torch.allclose(plain_TD @ basis_DR, torch.zeros(300, 10, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_adaptive_attack_needs_no_key(seed: int) -> None:
    """Energy in few directions, as hidden states have it: SS-OP rotates those, and the rest tells the token."""
    _, basis_DR = rotation_in_subspace(WIDTH, 8, seed=seed, basis_seed=99)

    def loud(rows: TokenRows) -> TokenRows:
        return TokenRows(rows.rows_TD + 9 * rows.rows_TD @ basis_DR @ basis_DR.T, rows.ids_T, rows.text_T)

    public, private = loud(PUBLIC), loud(PRIVATE)
    seen_TD, dictionary = key(WIDTH, 8, seed=seed)(private.rows_TD), dictionary_of(public)
    blind = nearest_neighbour_inversion(seen_TD, dictionary, private.ids_T)
    estimate_DR, _ = leading_directions(public.rows_TD, 8)
    rest = Dictionary(dictionary.ids_V, without_directions(dictionary.states_VD, estimate_DR))
    adapted = nearest_neighbour_inversion(without_directions(seen_TD, estimate_DR), rest, private.ids_T)
    assert blind.rate < 0.3
    assert adapted.rate > 0.95


def test_what_to_leave_out_is_chosen_by_the_tokens_that_it_tells() -> None:
    """Of plain states nothing need go; of rotated ones the rotated subspace, or a little more."""
    _, basis_DR = rotation_in_subspace(WIDTH, 8, seed=0)

    def loud(rows: TokenRows) -> TokenRows:
        return TokenRows(rows.rows_TD + 9 * rows.rows_TD @ basis_DR @ basis_DR.T, rows.ids_T, rows.text_T)

    assert chosen_directions(dictionary_of(PUBLIC), PRIVATE, PUBLIC.rows_TD).shape == (WIDTH, 0)
    known, tried = loud(PUBLIC), loud(PRIVATE)
    turned = TokenRows(key(WIDTH, 8, seed=1)(tried.rows_TD), tried.ids_T, tried.text_T)
    chosen_DR = chosen_directions(dictionary_of(known), turned, known.rows_TD)
    assert chosen_DR.shape[1] in (8, 16)
    assert adapted_inversion(turned.rows_TD, dictionary_of(known), chosen_DR, turned.ids_T).rate > 0.95


def test_with_nothing_left_out_it_is_the_plain_attack() -> None:
    dictionary, nothing_DR = dictionary_of(PUBLIC), torch.zeros(WIDTH, 0, dtype=torch.float64)
    plain = nearest_neighbour_inversion(PRIVATE.rows_TD, dictionary, PRIVATE.ids_T)
    assert adapted_inversion(PRIVATE.rows_TD, dictionary, nothing_DR, PRIVATE.ids_T) == plain


def test_the_nearest_entry_comes_with_its_cosine() -> None:
    states_VD = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    place_T, cosine_T = nearest_entries(torch.tensor([[3.0, 3.0], [-3.0, -3.0]]), states_VD)
    assert place_T.tolist() == [0, 1]
    assert cosine_T.tolist() == pytest.approx([2**-0.5] * 2)
