"""Key recovery: from plaintexts, known or guessed, and what was seen of them to the rotation that lies between.

Attack (c) of methods.md 1.15, and the honest limit of SS-OP in 1.10 (K/I). A rotation that is the identity outside of a
subspace moves its rows inside of that subspace only, so the differences of the pairs show the subspace, and orthogonal
Procrustes inside of it gives the rotation. Shapes: K known pairs, V known tokens, D hidden width, R directions, T rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elsa_ray.privacy.neighbours import nearest_entries, without_directions

_ALIGNMENTS = 10


@dataclass(frozen=True)
class RecoveredKey:
    """The attacker's estimate Q = U V Uᵀ + I - U Uᵀ, with U = ``basis_DR`` and V = ``rotation_RR``."""

    basis_DR: Tensor
    rotation_RR: Tensor

    def apply(self, rows_TD: Tensor) -> Tensor:
        """Return the rows under the estimated key: h Qᵀ."""
        return self._turned(rows_TD, self.rotation_RR.T)

    def undo(self, rows_TD: Tensor) -> Tensor:
        """Return the rows without it: h' Q."""
        return self._turned(rows_TD, self.rotation_RR)

    def _turned(self, rows_TD: Tensor, rotation_RR: Tensor) -> Tensor:
        rows_TD = rows_TD.to(self.basis_DR)
        inside_TR = rows_TD @ self.basis_DR
        return rows_TD + (inside_TR @ rotation_RR - inside_TR) @ self.basis_DR.T


def procrustes_key_recovery(plain_KD: Tensor, seen_KD: Tensor, rank: int) -> RecoveredKey:
    """Return the orthogonal map of the form of SS-OP that turns the plain rows best into the seen ones.

    Exact if the channel only rotates and the K pairs span the rotated subspace (K >= rank, generic rows).

    Args:
        plain_KD: known plaintexts.
        seen_KD: what the attacker saw of them.
        rank: dimension of the rotated subspace, which the config tells; K pairs show at most K directions.
    """
    plain_KD, seen_KD = plain_KD.double(), seen_KD.double()
    _, _, right = torch.linalg.svd(seen_KD - plain_KD, full_matrices=False)
    return _rotation_between(plain_KD, seen_KD, right[:rank].T)


def aligned_key(seen_TD: Tensor, states_VD: Tensor, basis_DR: Tensor) -> RecoveredKey:
    """Return the key that brings what was seen to the states of known tokens, without a single known plaintext.

    What is outside of the rotated subspace tells some tokens. Those are taken for known pairs, each with the square of
    its cosine as weight; the key that they give tells more tokens, and so on (iterated closest points).

    Args:
        seen_TD: rows under one key.
        states_VD: what the attacker expects of each token without the key.
        basis_DR: estimate of the rotated subspace, such as the leading directions of what was seen: a rotation inside
            of the subspace leaves it as it is.
    """
    seen_TD, states_VD = seen_TD.double(), states_VD.double()
    nearest_T, cosine_T = nearest_entries(
        without_directions(seen_TD, basis_DR), without_directions(states_VD, basis_DR)
    )
    for _ in range(_ALIGNMENTS):
        weight_T1 = cosine_T.clamp(min=0)[:, None].square()
        key = _rotation_between(weight_T1 * states_VD[nearest_T], weight_T1 * seen_TD, basis_DR)
        nearest_T, cosine_T = nearest_entries(key.undo(seen_TD), states_VD)
    return key


def _rotation_between(plain_KD: Tensor, seen_KD: Tensor, basis_DR: Tensor) -> RecoveredKey:
    """Return the rotation inside of a subspace that turns plain rows best into seen ones."""
    moment_RR = (plain_KD @ basis_DR).T @ (seen_KD @ basis_DR)
    # The identity where the pairs say nothing: of all solutions the one that turns least.
    slight = 1e-12 * moment_RR.norm() + torch.finfo(torch.float64).tiny
    left_RR, _, right_RR = torch.linalg.svd(moment_RR + slight * torch.eye(len(moment_RR), dtype=torch.float64))
    return RecoveredKey(basis_DR, (left_RR @ right_RR).T)


def key_error(key: RecoveredKey, perturb: Callable[[Tensor], Tensor], width: int) -> float:
    """Return ||Qhat - Q||_F / ||Q - I||_F: 0 for a key that is known, 1 for the guess that there is none.

    Args:
        key: the attacker's estimate.
        perturb: what the true key does to rows; it is only applied, to the unit vectors.
        width: D.
    """
    unit_DD = torch.eye(width, dtype=torch.float64)
    true_DD = perturb(unit_DD).double() - perturb(torch.zeros_like(unit_DD)).double()
    error, size = float((key.apply(unit_DD) - true_DD).norm()), float((true_DD - unit_DD).norm())
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size
