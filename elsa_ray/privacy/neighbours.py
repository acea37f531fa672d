"""Inversion by nearest neighbours: each vector that was seen is taken for the token whose known vector is most alike.

Attack (a) of methods.md 1.15 (I). Shapes: T tokens, V candidate tokens, D hidden width, R directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from elsa_ray.privacy.rows import TokenRows
from elsa_ray.privacy.success import Success, success

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
    known_VD = F.normalize(_centred(dictionary.states_VD.double()), dim=1)
    seen_TD = F.normalize(_centred(seen_TD.double()), dim=1)
    nearest_T = torch.cat([(rows @ known_VD.T).argmax(dim=1) for rows in seen_TD.split(_ROWS_AT_ONCE)])
    return success(dictionary.ids_V[nearest_T], true_ids_T)


def without_directions(rows_TD: Tensor, basis_DR: Tensor) -> Tensor:
    """Return what is left of the rows outside of a subspace.

    A rotation inside of the subspace cannot change that: done to both sides of ``nearest_neighbour_inversion``, this is
    the attack that adapts itself to SS-OP (methods.md 1.10), whose key it need not know. The subspace is estimated by
    ``codecs.subspaces.leading_directions`` of public states, since private ones span nearly the same.
    """
    rows_TD = rows_TD.double()
    return rows_TD - (rows_TD @ basis_DR) @ basis_DR.T


def _centred(rows_TD: Tensor) -> Tensor:
    return rows_TD - rows_TD.mean(dim=0)
