"""K-medoids: the clients that stand for the clusters (methods.md 1.7, step 1), by PAM's build and swap phases.

Every swap is the best of all, and ties go to the lowest index: no random draw, and the order of the clients matters
only among equals.

Shapes: N clients, K medoids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FARTHEST = 10.0
"""Divergences count up to so many medians, lest a few clients that are like nobody take a medoid each."""
LEAST_GAIN = 1e-12
"""Share of the total cost below which a swap is rounding, not progress."""


def typical(divergence: Floats) -> float:
    """Return the median of the positive, finite divergences: the unit in which they are compared; 1 without any."""
    positive = divergence[np.isfinite(divergence) & (divergence > 0)]
    return float(np.median(positive)) if len(positive) else 1.0


def k_medoids(divergence_NN: Floats, num_medoids: int, trust_N: Floats | None = None) -> Ints:
    """Return the medoids [K], sorted, that leave the least sum of divergences between clients and nearest medoids.

    A local optimum: no exchange of one medoid betters it. A candidate of trust T counts as (1 - T) medians further
    from everybody, and no divergence counts as more than ten medians (both ours, methods.md 1.7 leaves them open).

    Args:
        divergence_NN: from each client (row) to each candidate.
        num_medoids: at most N are returned.
        trust_N: in [0, 1]; full trust in all unless given.
    """
    num_medoids = min(num_medoids, len(divergence_NN))
    unit = typical(divergence_NN)
    cost_NN = np.minimum(divergence_NN, FARTHEST * unit)
    if trust_N is not None:
        cost_NN += (1.0 - trust_N) * unit
    return np.sort(_swap(cost_NN, _build(cost_NN, num_medoids)))


def nearest_medoid(divergence_NK: Floats) -> Ints:
    """Return the column of each client's nearest medoid, of equal ones the first."""
    return np.argmin(divergence_NK, axis=1)


def _build(cost_NN: Floats, num_medoids: int) -> Ints:
    """Choose medoids one by one, each the one that lowers the sum the most."""
    chosen: list[int] = []
    nearest_N = np.full(len(cost_NN), np.inf)
    for _ in range(num_medoids):
        total_N = np.minimum(cost_NN, nearest_N[:, None]).sum(axis=0)
        total_N[chosen] = np.inf
        best = int(np.argmin(total_N))
        chosen.append(best)
        nearest_N = np.minimum(nearest_N, cost_NN[:, best])
    return np.array(chosen, np.int64)


def _swap(cost_NN: Floats, medoids_K: Ints) -> Ints:
    """Exchange a medoid for another client as long as that lowers the sum, the best exchange first."""
    medoids_K = medoids_K.copy()
    if len(medoids_K) in (0, len(cost_NN)):
        return medoids_K
    while True:
        change_KN, total = _changes(cost_NN, medoids_K)
        change_KN[:, medoids_K] = np.inf
        position, candidate = np.unravel_index(np.argmin(change_KN), change_KN.shape)
        if not change_KN[position, candidate] < -LEAST_GAIN * total:
            return medoids_K
        medoids_K[position] = candidate


def _changes(cost_NN: Floats, medoids_K: Ints) -> tuple[Floats, float]:
    """Return how the sum changes [K, N] if a medoid (row) is exchanged for a client (column), and the sum.

    A client of another medoid comes over only if the candidate is nearer; a client of the removed one goes to the
    candidate or to its second-nearest medoid.
    """
    rows = np.arange(len(cost_NN))
    to_medoids_NK = cost_NN[:, medoids_K]
    owner_N = np.argmin(to_medoids_NK, axis=1)
    nearest_N = to_medoids_NK[rows, owner_N]
    to_medoids_NK[rows, owner_N] = np.inf
    second_N = to_medoids_NK.min(axis=1)
    difference_NN = cost_NN - nearest_N[:, None]
    comes_over_NN = np.minimum(difference_NN, 0.0)
    change_KN = np.repeat(comes_over_NN.sum(axis=0)[None, :], len(medoids_K), axis=0)
    # What a client of the removed medoid pays on top of that.
    np.minimum(difference_NN, (second_N - nearest_N)[:, None], out=difference_NN)
    difference_NN -= comes_over_NN
    owned_KN = np.zeros((len(medoids_K), len(cost_NN)))
    owned_KN[owner_N, rows] = 1.0
    change_KN += owned_KN @ difference_NN
    return change_KN, float(nearest_N.sum())
