"""Keys are recovered exactly from enough pairs, not from too few, and a fresh key is not recovered at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from elsa_ray.codecs.subspaces import leading_directions
from elsa_ray.privacy.neighbours import dictionary_of, nearest_neighbour_inversion
from elsa_ray.privacy.procrustes import RecoveredKey, aligned_key, key_error, procrustes_key_recovery
from elsa_ray.privacy.rows import TokenRows

from .synthetic import key, normal, rotation_in_subspace, token_rows

WIDTH = 24


@given(rank=st.integers(1, 12), more=st.integers(0, 20), seed=st.integers(0, 1000))
def test_exact_from_as_many_pairs_as_directions(rank: int, more: int, seed: int) -> None:
    turn, plain_KD = key(WIDTH, rank, seed, basis_seed=seed + 1), normal(rank + more, WIDTH, seed=seed + 2)
    found = procrustes_key_recovery(plain_KD, turn(plain_KD), rank)
    assert key_error(found, turn, WIDTH) < 1e-6 or torch.allclose(turn(plain_KD), plain_KD)


@given(num_pairs=st.integers(1, 40), rank=st.integers(1, 24), seed=st.integers(0, 100))
def test_any_recovered_key_is_orthogonal_and_undoes_what_it_does(num_pairs: int, rank: int, seed: int) -> None:
    found = procrustes_key_recovery(normal(num_pairs, WIDTH, seed=seed), normal(num_pairs, WIDTH, seed=seed + 1), rank)
    unit_DD, rows_TD = torch.eye(WIDTH, dtype=torch.float64), normal(5, WIDTH, seed=3)
    matrix_DD = found.apply(unit_DD)
    assert torch.allclose(matrix_DD @ matrix_DD.T, unit_DD, atol=1e-9)
    assert torch.allclose(found.undo(found.apply(rows_TD)), rows_TD, atol=1e-9)


def test_a_recovered_key_is_its_matrix() -> None:
    matrix_DD, basis_DR = rotation_in_subspace(WIDTH, 5, seed=1)
    rotation_RR = basis_DR.T @ matrix_DD @ basis_DR
    found, rows_TD = RecoveredKey(basis_DR, rotation_RR), normal(7, WIDTH)
    assert torch.allclose(found.apply(rows_TD), rows_TD @ matrix_DD.T, atol=1e-12)
    assert torch.allclose(found.undo(rows_TD), rows_TD @ matrix_DD, atol=1e-12)


@given(seed=st.integers(0, 100))
def test_without_a_restriction_it_is_orthogonal_procrustes(seed: int) -> None:
    plain_KD, seen_KD = normal(60, WIDTH, seed=seed), normal(60, WIDTH, seed=seed + 1)
    found = procrustes_key_recovery(plain_KD, seen_KD, WIDTH)
    expected_DD, _ = orthogonal_procrustes(plain_KD.numpy(), seen_KD.numpy())
    assert torch.allclose(found.apply(torch.eye(WIDTH, dtype=torch.float64)), torch.from_numpy(expected_DD), atol=1e-6)


def test_the_error_is_the_norm_of_the_difference_of_the_matrices() -> None:
    true_DD, _ = rotation_in_subspace(WIDTH, 6, seed=1)
    guess_DD, basis_DR = rotation_in_subspace(WIDTH, 6, seed=2, basis_seed=5)
    guess = RecoveredKey(basis_DR, basis_DR.T @ guess_DD @ basis_DR)
    unit_DD = torch.eye(WIDTH, dtype=torch.float64)
    expected = float((guess_DD - true_DD).norm() / (true_DD - unit_DD).norm())
    assert key_error(guess, lambda rows_TD: rows_TD @ true_DD.T, WIDTH) == pytest.approx(expected)
    assert key_error(guess, lambda rows_TD: rows_TD @ true_DD.T + 4.0, WIDTH) == pytest.approx(expected)
    no_key = RecoveredKey(basis_DR, torch.eye(6, dtype=torch.float64))
    assert key_error(no_key, lambda rows_TD: rows_TD @ true_DD.T, WIDTH) == pytest.approx(1)
    assert key_error(no_key, lambda rows_TD: rows_TD, WIDTH) == pytest.approx(0, abs=1e-12)
    assert key_error(guess, lambda rows_TD: rows_TD, WIDTH) == float("inf")


def test_nothing_perturbed_is_nothing_recovered() -> None:
    plain_KD = normal(9, WIDTH)
    found = procrustes_key_recovery(plain_KD, plain_KD, 4)
    assert torch.allclose(found.apply(plain_KD), plain_KD, atol=1e-9)


@given(seed=st.integers(0, 200))
def test_where_pairs_leave_a_choice_it_is_the_map_that_turns_least(seed: int) -> None:
    """One pair twice: in the plane found, a rotation by the angle and a reflection both explain it."""
    turn, plain_KD = key(WIDTH, 6, seed), normal(1, WIDTH, seed=seed).repeat(2, 1)
    found = procrustes_key_recovery(plain_KD, turn(plain_KD), 2)
    inside, turned = plain_KD[0] @ found.basis_DR, turn(plain_KD)[0] @ found.basis_DR
    cosine = float(inside @ turned / (inside.norm() * turned.norm()))
    assert float(found.rotation_RR.trace()) == pytest.approx(max(2 * cosine, 0), abs=1e-6)


def test_the_error_falls_with_the_pairs_and_noise_only_blurs_it() -> None:
    turn, plain_KD = key(64, 16, seed=3), normal(512, 64)
    errors = [key_error(procrustes_key_recovery(plain_KD[:k], turn(plain_KD[:k]), 16), turn, 64) for k in (4, 8, 64)]
    assert errors[0] > errors[1] > 0.3 and errors[2] < 1e-9
    blurred = [
        key_error(
            procrustes_key_recovery(plain_KD[:k], turn(plain_KD[:k]) + 0.05 * normal(k, 64, seed=9), 16), turn, 64
        )
        for k in (64, 512)
    ]
    assert 0 < blurred[1] < blurred[0] < 0.2


def test_pairs_of_another_rounds_key_do_not_help() -> None:
    """Two Haar rotations of one subspace differ by 2r in expectation, as each does from the identity: error near 1."""
    public, private = token_rows(600, 30, 64), token_rows(300, 30, 64, seed=1)
    reused, fresh, known_KD = key(64, 48, seed=3), key(64, 48, seed=4), normal(64, 64)
    found = procrustes_key_recovery(known_KD, reused(known_KD), 48)
    assert key_error(found, reused, 64) < 1e-9
    assert key_error(found, fresh, 64) == pytest.approx(1, abs=0.1)

    def inverted(seen_TD: torch.Tensor) -> float:
        return nearest_neighbour_inversion(seen_TD, dictionary_of(public), private.ids_T).rate

    plain, hidden = inverted(private.rows_TD), inverted(reused(private.rows_TD))
    assert inverted(found.undo(reused(private.rows_TD))) == plain > 0.99
    assert inverted(found.undo(fresh(private.rows_TD))) < 0.6 and hidden < 0.6


def loud_tokens(num_tokens: int, seed: int, rank: int = 12) -> TokenRows:
    """Tokens most of whose energy is in the subspace of ``key(64, rank, ...)``, as that of hidden states is."""
    _, basis_DR = rotation_in_subspace(64, rank, seed=0)
    rows = token_rows(num_tokens, 30, 64, seed=seed)
    return TokenRows(rows.rows_TD + 9 * rows.rows_TD @ basis_DR @ basis_DR.T, rows.ids_T, rows.text_T)


@pytest.mark.parametrize("seed", range(4))
def test_a_key_is_found_by_alignment_with_nothing_known(seed: int) -> None:
    """Neither a plaintext nor the subspace is given: only states of other tokens, and how large the subspace is."""
    public, private, turn = loud_tokens(600, 0), loud_tokens(300, 1), key(64, 12, seed)
    seen_TD, dictionary = turn(private.rows_TD), dictionary_of(public)
    basis_DR, _ = leading_directions(seen_TD, 12)
    found = aligned_key(seen_TD, dictionary.states_VD, basis_DR)
    blind = nearest_neighbour_inversion(seen_TD, dictionary, private.ids_T)
    undone = nearest_neighbour_inversion(found.undo(seen_TD), dictionary, private.ids_T)
    assert blind.rate < 0.1 and undone.rate > 0.99
    assert key_error(found, turn, 64) < 0.25


def test_alignment_fails_where_nothing_is_outside_of_the_subspace() -> None:
    public, private, turn = token_rows(600, 30, 64), token_rows(300, 30, 64, seed=1), key(64, 64, seed=3)
    seen_TD, dictionary = turn(private.rows_TD), dictionary_of(public)
    found = aligned_key(seen_TD, dictionary.states_VD, torch.eye(64, dtype=torch.float64))
    assert key_error(found, turn, 64) > 0.5
    assert nearest_neighbour_inversion(found.undo(seen_TD), dictionary, private.ids_T).rate < 0.3


@given(seed=st.integers(0, 50))
def test_alignment_leaves_plain_rows_alone(seed: int) -> None:
    """Each row is its own nearest neighbour: there is nothing to turn."""
    states_VD = normal(20, WIDTH, seed=seed)
    basis_DR, _ = leading_directions(states_VD, 5)
    found = aligned_key(states_VD, states_VD, basis_DR)
    assert torch.allclose(found.rotation_RR, torch.eye(5, dtype=torch.float64), atol=1e-9)
