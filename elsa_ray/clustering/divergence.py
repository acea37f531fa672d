"""The symmetric Kullback-Leibler divergence between many Gaussians, as matrix products (methods.md 1.5).

Between clients n and m, with the precision P = S^-1 and the second moment A = S + mu mu^T,

    4 SKL(n, m) = <A_n, P_m> - 2 mu_n . P_m mu_m + mu_m . P_m mu_m   + the same with n and m exchanged   - 2d.

(The logarithms of the determinants cancel.) So a client is two vectors of F = d(d + 1)/2 + d + 1 features, what it is
and how it measures others, and the divergences are one product of the two. Covariances are shrunk by the caller.

Shapes: N clients, K medoids, R rows of a block, d projected width, F features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.fingerprints import shrink

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BLOCK_ROWS = 1024


def symmetric_kl(mean_Nd: Floats, covariance_Ndd: Floats, *, block_rows: int = BLOCK_ROWS) -> Floats:
    """Return the divergence between each two clients [N, N], in nats: symmetric, zero on the diagonal.

    Args:
        mean_Nd, covariance_Ndd: the Gaussians; the covariances are invertible.
        block_rows: clients of one product; it changes the memory, and the result only by rounding.
    """
    num_clients = len(mean_Nd)
    being_NF, measure_NF = _features(mean_Nd, covariance_Ndd, mean_Nd.mean(axis=0))
    divergence_NN = np.empty((num_clients, num_clients))
    for start in range(0, num_clients, block_rows):
        rows = slice(start, start + block_rows)
        onwards = slice(start, num_clients)
        block = _from_features(being_NF[rows], measure_NF[rows], being_NF[onwards], measure_NF[onwards], mean_Nd)
        square = block[:, : len(block)]
        square[:] = (square + square.T) / 2  # equal but for rounding
        divergence_NN[rows, onwards] = block
        divergence_NN[onwards, rows] = block.T
    np.fill_diagonal(divergence_NN, 0.0)
    return divergence_NN


def nearest_neighbours(
    mean_Nd: Floats, covariance_Ndd: Floats, num_neighbours: int = 50, *, block_rows: int = BLOCK_ROWS
) -> tuple[Ints, Floats]:
    """Return each client's nearest others [N, num_neighbours] and their divergences, nearest first.

    Memory grows with N times the block, never with N squared. Fewer than ``num_neighbours`` others are all returned.
    """
    num_clients = len(mean_Nd)
    num_neighbours = min(num_neighbours, num_clients - 1)
    being_NF, measure_NF = _features(mean_Nd, covariance_Ndd, mean_Nd.mean(axis=0))
    neighbours = np.empty((num_clients, num_neighbours), np.int64)
    divergences = np.empty((num_clients, num_neighbours))
    for start in range(0, num_clients, block_rows):
        rows = slice(start, start + block_rows)
        block_RN = _from_features(being_NF[rows], measure_NF[rows], being_NF, measure_NF, mean_Nd)
        block_RN[np.arange(len(block_RN)), np.arange(start, start + len(block_RN))] = np.inf
        nearest = np.argsort(block_RN, axis=1, kind="stable")[:, :num_neighbours]
        neighbours[rows] = nearest
        divergences[rows] = np.take_along_axis(block_RN, nearest, axis=1)
    return neighbours, divergences


def to_medoids(
    mean_Nd: Floats,
    covariance_Ndd: Floats,
    medoids_K: Ints,
    *,
    shrinkage: float | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Floats:
    """Return the divergence of each client from each medoid [N, K], in nats; exactly zero of a medoid from itself.

    Args:
        mean_Nd, covariance_Ndd: the Gaussians.
        medoids_K: positions among them.
        shrinkage: applied to the covariances first; None where they are invertible as they are. It is done here, block
            by block, so that no second copy of all of them is needed.
        block_rows: clients of one product.
    """
    origin_d = mean_Nd[medoids_K].mean(axis=0)

    def features(rows: slice | Ints) -> tuple[Floats, Floats]:
        covariance = covariance_Ndd[rows] if shrinkage is None else shrink(covariance_Ndd[rows], shrinkage)
        return _features(mean_Nd[rows], covariance, origin_d)

    being_KF, measure_KF = features(medoids_K)
    divergence_NK = np.empty((len(mean_Nd), len(medoids_K)))
    for start in range(0, len(mean_Nd), block_rows):
        rows = slice(start, start + block_rows)
        divergence_NK[rows] = _from_features(*features(rows), being_KF, measure_KF, mean_Nd)
    divergence_NK[medoids_K, np.arange(len(medoids_K))] = 0.0
    return divergence_NK


def _features(mean_Nd: Floats, covariance_Ndd: Floats, origin_d: Floats) -> tuple[Floats, Floats]:
    """Return what each client is, and how it measures others, as vectors [N, F] whose products are the sums above.

    Means are counted from ``origin_d``: no divergence depends on it, and small numbers are summed more exactly. Of each
    symmetric matrix one triangle is kept; what stands for two entries is doubled on one side.
    """
    d = mean_Nd.shape[1]
    shift_Nd = mean_Nd - origin_d
    precision_Ndd = np.linalg.inv(covariance_Ndd)
    moment_Ndd = covariance_Ndd + shift_Nd[:, :, None] * shift_Nd[:, None, :]
    rows, columns = np.triu_indices(d)
    twice = np.where(rows == columns, 1.0, 2.0)
    pull_Nd = np.einsum("nij,nj->ni", precision_Ndd, shift_Nd)
    length_N1 = np.einsum("ni,ni->n", pull_Nd, shift_Nd)[:, None]
    being_NF = np.concatenate([moment_Ndd[:, rows, columns], shift_Nd, np.ones_like(length_N1)], axis=1)
    measure_NF = np.concatenate([precision_Ndd[:, rows, columns] * twice, -2 * pull_Nd, length_N1], axis=1)
    return being_NF, measure_NF


def _from_features(
    being_RF: Floats, measure_RF: Floats, being_KF: Floats, measure_KF: Floats, mean_Nd: Floats
) -> Floats:
    """Return the divergences [R, K]; rounding never makes one negative."""
    both_RK = being_RF @ measure_KF.T
    both_RK += measure_RF @ being_KF.T
    both_RK -= 2 * mean_Nd.shape[1]
    both_RK /= 4
    return np.maximum(both_RK, 0.0, out=both_RK)
