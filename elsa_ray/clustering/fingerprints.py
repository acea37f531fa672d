"""Behavioural fingerprints: the moments of a model's states on the public probes (methods.md 1.4).

A client's states (one vector of width D for each of Q probes) are summed up as a Gaussian. Mean and covariance are the
paper's; the common basis, the scale and the shrinkage are the card's reconstruction.

Shapes: Q probes, D hidden width, d projected width, N clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from elsa_ray.config.errors import InputError

Floats = npt.NDArray[np.float64]

BYTES_PER_NUMBER = 4
FLOOR = 1e-4
"""Share of the identity that is added to each covariance, whatever the shrinkage."""
LEAST_VARIANCE = 1e-12
"""Variance, in units of the frame, of a client whose states are all alike: not zero, so that it can be inverted."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A client's Gaussian in the common basis: what it sends to the cloud."""

    mean_d: Floats
    covariance_dd: Floats


@dataclass(frozen=True, eq=False)
class FingerprintFrame:
    """What makes fingerprints comparable: the base model's principal axes on the probes, and its global scale."""

    basis_Dd: Floats
    scale: float


def make_frame(states_QD: Floats, dimensions: int) -> FingerprintFrame:
    """Return the frame of the base model's states: the top axes, scaled to a mean variance of one along them.

    Each axis points to where its largest component is positive, so that the frame is unique.

    Raises:
        InputError: the probes are too few or the model too narrow for so many dimensions, or the states are not
            finite, or all alike.
    """
    num_probes, width = states_QD.shape
    most = min(num_probes - 1, width)
    if not 0 < dimensions <= most:
        allowed = f"at most {most}: fewer than the {num_probes} probes, and no more than the model's width {width}"
        raise InputError("protocol.clustering.dimensions", dimensions, allowed)
    if not np.isfinite(states_QD).all():
        raise InputError("probes", "states of the base model that are not finite", "finite states")
    centred_QD = states_QD - states_QD.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centred_QD, full_matrices=False)
    scale = float(np.sqrt((singular[:dimensions] ** 2).sum() / (num_probes * dimensions)))
    if scale == 0:
        raise InputError("probes", "one and the same state of the base model for all", "probes that differ")
    basis_Dd = axes[:dimensions].T
    largest_d = basis_Dd[np.argmax(np.abs(basis_Dd), axis=0), np.arange(dimensions)]
    return FingerprintFrame(basis_Dd * np.where(largest_d < 0, -1.0, 1.0), scale)


def fingerprint(states_QD: Floats, frame: FingerprintFrame) -> Fingerprint:
    """Return the moments of a client's states in the frame; the divisor of the covariance is Q."""
    projected_Qd = states_QD @ frame.basis_Dd / frame.scale
    mean_d = projected_Qd.mean(axis=0)
    centred_Qd = projected_Qd - mean_d
    return Fingerprint(mean_d, centred_Qd.T @ centred_Qd / len(states_QD))


def num_bytes(dimensions: int) -> int:
    """Return the size of a fingerprint on the wire: the mean and one triangle of the covariance, in fp32."""
    return BYTES_PER_NUMBER * (dimensions + dimensions * (dimensions + 1) // 2)


def stack(fingerprints: Sequence[Fingerprint]) -> tuple[Floats, Floats]:
    """Return the fingerprints as the arrays ``mean_Nd`` and ``covariance_Ndd``."""
    return np.stack([each.mean_d for each in fingerprints]), np.stack([each.covariance_dd for each in fingerprints])


def shrink(covariance_Ndd: Floats, shrinkage: float) -> Floats:
    """Return the covariances moved towards a multiple of the identity, which makes singular ones invertible.

    (1 - shrinkage) S + (shrinkage + 1e-4) (tr S / d) I; methods.md 1.4 b, a reconstruction. Takes one matrix or any
    stack of them. Where S = 0, its variance is taken as 1e-12.
    """
    d = covariance_Ndd.shape[-1]
    variance_N = np.maximum(np.trace(covariance_Ndd, axis1=-2, axis2=-1) / d, LEAST_VARIANCE)
    return (1 - shrinkage) * covariance_Ndd + ((shrinkage + FLOOR) * variance_N)[..., None, None] * np.eye(d)


@dataclass(frozen=True, eq=False)
class LowRankGaussians:
    """The Gaussians of clients' whole states without a D x D matrix: variance * I + factor^T factor.

    Attributes:
        mean_ND: means of the states.
        factor_NQD: the centred states times sqrt((1 - shrinkage) / Q).
        variance_N: of the isotropic parts.
        whitened_NQD: what the inverses subtract: (I - whitened^T whitened) / variance.
        factor_length_N, whitened_length_N: sums of the squares of both.
    """

    mean_ND: Floats
    factor_NQD: Floats
    variance_N: Floats
    whitened_NQD: Floats
    factor_length_N: Floats
    whitened_length_N: Floats

    def of(self, clients: npt.NDArray[np.int64] | slice) -> LowRankGaussians:
        """Return those of some clients."""
        return LowRankGaussians(*(getattr(self, field.name)[clients] for field in fields(self)))


def low_rank_gaussians(states_NQD: Floats, shrinkage: float, dimensions: int | None = None) -> LowRankGaussians:
    """Return the shrunk Gaussians of clients' states (methods.md 1.4 d).

    Args:
        states_NQD: what the models answered to the probes.
        shrinkage: as in ``shrink``.
        dimensions: over how many the trace is spread, which is D unless given.
    """
    _, num_probes, width = states_NQD.shape
    mean_ND = states_NQD.mean(axis=1, dtype=np.float64)
    factor_NQD = states_NQD - mean_ND[:, None]
    trace_N = (factor_NQD**2).sum(axis=(1, 2)) / num_probes
    variance_N = (shrinkage + FLOOR) * np.maximum(trace_N / (dimensions or width), LEAST_VARIANCE)
    factor_NQD *= np.sqrt((1 - shrinkage) / num_probes)
    whitened_NQD = np.empty_like(factor_NQD)
    for n, factor_QD in enumerate(factor_NQD):
        inner_QQ = variance_N[n] * np.eye(num_probes) + factor_QD @ factor_QD.T
        whitened_NQD[n] = solve_triangular(np.linalg.cholesky(inner_QQ), factor_QD, lower=True)
    lengths = [(stacked**2).sum(axis=(1, 2)) for stacked in (factor_NQD, whitened_NQD)]
    return LowRankGaussians(mean_ND, factor_NQD, variance_N, whitened_NQD, *lengths)


def exact_symmetric_kl(
    states_n_QD: Floats, states_m_QD: Floats, *, shrinkage: float, dimensions: int | None = None
) -> float:
    """Return the symmetric divergence of two clients by their whole states, in nats; the projected form's reference.

    Args:
        states_n_QD, states_m_QD: the clients' states.
        shrinkage, dimensions: as in ``low_rank_gaussians``.
    """
    both = low_rank_gaussians(np.stack([states_n_QD, states_m_QD]), shrinkage, dimensions)
    return float(low_rank_symmetric_kl(both.of(slice(0, 1)), both.of(slice(1, 2)))[0])


def low_rank_symmetric_kl(one: LowRankGaussians, others: LowRankGaussians) -> Floats:
    """Return the divergence of one client (a stack of one) from each of N others, in nats, by Woodbury's identity.

    1/4 [tr(S2^-1 S1) + tr(S1^-1 S2) - 2D + dmu^T (S1^-1 + S2^-1) dmu].
    """
    num_clients, num_probes, width = others.factor_NQD.shape
    flat = num_clients * num_probes, width
    shift_ND = others.mean_ND - one.mean_ND
    of_one_NQQ = (others.whitened_NQD.reshape(flat) @ one.factor_NQD[0].T).reshape(num_clients, num_probes, num_probes)
    of_others_NQQ = (others.factor_NQD.reshape(flat) @ one.whitened_NQD[0].T).reshape(of_one_NQQ.shape)
    shift_by_others_NQ = np.einsum("nqd,nd->nq", others.whitened_NQD, shift_ND)
    return np.maximum(
        0.0,
        (
            _trace_of_quotient(one, others, of_one_NQQ)
            + _trace_of_quotient(others, one, of_others_NQQ)
            - 2 * width
            + _squared_length(shift_ND, shift_by_others_NQ) / others.variance_N
            + _squared_length(shift_ND, shift_ND @ one.whitened_NQD[0].T) / one.variance_N
        )
        / 4,
    )


def _trace_of_quotient(numerator: LowRankGaussians, denominator: LowRankGaussians, cross_NQQ: Floats) -> Floats:
    """Return tr(S_denominator^-1 S_numerator); ``cross`` is what one whitens of the other's factor."""
    width = numerator.mean_ND.shape[1]
    whole_N = width * numerator.variance_N + numerator.factor_length_N
    subtracted_N = numerator.variance_N * denominator.whitened_length_N + (cross_NQQ**2).sum(axis=(1, 2))
    return (whole_N - subtracted_N) / denominator.variance_N


def _squared_length(shift_ND: Floats, whitened_NQ: Floats) -> Floats:
    """Return shift^T (I - whitened^T whitened) shift."""
    return (shift_ND**2).sum(axis=1) - (whitened_NQ**2).sum(axis=1)
