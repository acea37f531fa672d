"""How far each client has moved its model the way the others have moved theirs (ours; methods.md 1.6 leaves it open).

A model that has been sent with the wrong sign, or with noise, still answers almost as all others do, for most of it was
received and not made. What training has changed points elsewhere, and says so at once; what the models answer tells
late who has learned something else. Both count, the direction of the update most.

Shapes: N clients, V views of an update, F numbers of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.agreement import have_majority, nearer_half, votes, weighted_median

Floats = npt.NDArray[np.float64]

ANSWERS_SHARE = 0.2
"""Part of the answers in the agreement; the rest is the direction of the update."""
BLOCK_COLUMNS = 1 << 16
"""Numbers of each client's change that are looked at together."""


def agreement_of_updates(cosines_VN: Sequence[Floats], answers_N: Floats) -> Floats:
    """Return the agreement of each client, in [0, 1].

    Args:
        cosines_VN: of ``cosines_with_others``, in each view; their mean is the direction.
        answers_N: agreement of what the models answer.
    """
    direction_N = (1 + np.mean(cosines_VN, axis=0)) / 2
    return (1 - ANSWERS_SHARE) * direction_N + ANSWERS_SHARE * answers_N


def cosines_with_others(changes_NF: npt.NDArray[np.floating], weights_N: Floats) -> Floats:
    """Return the cosine between each client's change and the others', in [-1, 1].

    The others' change is the weighted mean direction of the half that is nearest to the median direction: a mean of all
    would follow whoever moves far, bad clients too. A change that is not finite is against everybody (-1), and nobody
    hears it; one of no length is neither for nor against (0); with nobody to compare with, all is well (1).

    Args:
        changes_NF: what the clients have changed.
        weights_N: trust of each client, >= 0; one of weight 0 is compared but not heard, unless all are.
    """
    finite_N = np.isfinite(changes_NF).all(axis=1)
    cosine_N = np.full(len(changes_NF), -1.0)
    if not finite_N.any():
        return cosine_N
    changes_NF, weights_N = changes_NF[finite_N], votes(weights_N[finite_N])
    length_N = np.sqrt(sum((block_NF**2).sum(axis=1) for block_NF in _blocks(changes_NF)))
    heard_N = np.where(length_N > 0, weights_N, 0.0)
    scale_N = 1 / np.where(length_N > 0, length_N, 1.0)
    gram_NN = np.zeros((len(changes_NF), len(changes_NF)))
    to_median_N = np.zeros(len(changes_NF))
    for block_NF in _blocks(changes_NF):
        unit_NF = block_NF * scale_N[:, None]
        gram_NN += unit_NF @ unit_NF.T
        if (heard_N > 0).any():
            # Summed by numpy itself: the bits of a matrix-vector product depend on the number of threads.
            to_median_N += (unit_NF * weighted_median(unit_NF, heard_N)).sum(axis=1)
    if have_majority(heard_N):  # The median's own length is the same for all, and only the order counts.
        heard_N = nearer_half(to_median_N, heard_N)
    with_all_N, own_N = gram_NN @ heard_N, np.diag(gram_NN) * heard_N
    others_N = np.sqrt(np.maximum(heard_N @ with_all_N - 2 * heard_N * with_all_N + heard_N * own_N, 0.0))
    has_others_N = (heard_N > 0).sum() > (heard_N > 0).astype(int)
    to_others_N = np.clip((with_all_N - own_N) / np.where(others_N > 0, others_N, np.inf), -1.0, 1.0)
    cosine_N[finite_N] = np.where(has_others_N, to_others_N, 1.0)
    return cosine_N


def _blocks(changes_NF: npt.NDArray[np.floating]) -> Iterator[Floats]:
    """Yield the columns, so many at a time that updates of a large model need no second copy in fp64."""
    for begin in range(0, changes_NF.shape[1], BLOCK_COLUMNS):
        yield changes_NF[:, begin : begin + BLOCK_COLUMNS].astype(np.float64)
