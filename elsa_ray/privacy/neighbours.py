"""Inversion by nearest neighbours: each vector that was seen is taken for the token whose known vector is most alike.

Attack (a) of methods.md 1.15 (I). Shapes: T tokens, V candidate tokens, D hidden width, R directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from elsa_ray.codecs.subspaces import leading_directions
from elsa_ray.privacy.rows import TokenRows
from elsa_ray.privacy.success import Success, success

NUM_DIRECTIONS = (0, 1, 2, 4, 8, 16, 32, 64, 96, 128)
"""How many leading directions an attacker tries to leave out."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Dictionary:
    """What the attacker expects to see of each token: ``states_VD`` of the tokens ``ids_V``, which ascend."""

    ids_V: Tensor
    states_VD: Tensor


def dictionary_of(public: TokenRows) -> Dictionary:
    """Return the mean state of each token over its places in public text.

    Only the tokens of the public text are candidates; any other token of the private text is missed.
    """
    ids_V, place_T = public.ids_T.unique(return_inverse=True)
    sums_VD = torch.zeros(len(ids_V), public.rows_TD.shape[1], dtype=torch.float64)
    sums_VD.index_add_(0, place_T, public.rows_TD.double())
    return Dictionary(ids_V, sums_VD / place_T.bincount()[:, None])


def nearest_neighbour_inversion(seen_TD: Tensor, dictionary: Dictionary, true_ids_T: Tensor) -> Success:
    """Guess each token by the greatest cosine; both sides are centred by their own mean.

    The attacker needs no more than what it sees to centre it, and centring takes away the direction that all states
    share, by which any two of them look alike. Of equals the lowest id is taken.

    Args:
        seen_TD: what the attacker sees of the private tokens.
        dictionary: what it compares them with.
        true_ids_T: the private tokens.
    """
    nearest_T, _ = nearest_entries(seen_TD, dictionary.states_VD)
    return success(dictionary.ids_V[nearest_T], true_ids_T)


def nearest_entries(seen_TD: Tensor, states_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the index [T] of the known state most alike, and the cosine [T]; see above."""
    known_VD = F.normalize(_centred(states_VD.double()), dim=1)
    seen_TD = F.normalize(_centred(seen_TD.double()), dim=1)
    pieces = [(rows @ known_VD.T).max(dim=1) for rows in seen_TD.split(_ROWS_AT_ONCE)]
    return torch.cat([piece.indices for piece in pieces]), torch.cat([piece.values for piece in pieces])


def without_directions(rows_TD: Tensor, basis_DR: Tensor) -> Tensor:
    """Return what is left of the rows outside of a subspace.

    A rotation inside of the subspace cannot change that: done to both sides of ``nearest_neighbour_inversion``, this is
    the attack that adapts itself to SS-OP (methods.md 1.10), whose key it need not know. The subspace is estimated by
    ``codecs.subspaces.leading_directions`` of public states, since private ones span nearly the same.
    """
    rows_TD = rows_TD.double()
    return rows_TD - (rows_TD @ basis_DR) @ basis_DR.T


def adapted_inversion(seen_TD: Tensor, dictionary: Dictionary, basis_DR: Tensor, true_ids_T: Tensor) -> Success:
    """Leave a subspace out on both sides, then guess each token by its nearest neighbour.

    Args:
        seen_TD: what the attacker sees of the private tokens.
        dictionary: what it compares them with.
        basis_DR: the subspace; see ``chosen_directions``.
        true_ids_T: the private tokens.
    """
    rest = Dictionary(dictionary.ids_V, without_directions(dictionary.states_VD, basis_DR))
    return nearest_neighbour_inversion(without_directions(seen_TD, basis_DR), rest, true_ids_T)


def chosen_directions(known: Dictionary, tried: TokenRows, plain_TD: Tensor) -> Tensor:
    """Return the leading directions [D, R] of public states that it is best to leave out, as tried on public text.

    Args:
        known: of one half of the attacker's public text.
        tried: the other half as it would be seen, under a key that the attacker pretends not to know.
        plain_TD: public states.

    Returns:
        As many as one of ``NUM_DIRECTIONS``; of equals the fewest.
    """
    most = max(number for number in NUM_DIRECTIONS if number < plain_TD.shape[1])
    directions_DR, _ = leading_directions(plain_TD.double(), most)
    bases = [directions_DR[:, :number] for number in NUM_DIRECTIONS if number <= directions_DR.shape[1]]
    rates = [adapted_inversion(tried.rows_TD, known, basis_DR, tried.ids_T).rate for basis_DR in bases]
    return bases[rates.index(max(rates))]


def _centred(rows_TD: Tensor) -> Tensor:
    return rows_TD - rows_TD.mean(dim=0)
