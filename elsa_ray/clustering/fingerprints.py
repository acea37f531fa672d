"""Behavioural fingerprints: the moments of a model's states on the public probes (methods.md 1.4).

A client's states (one vector of width D for each of Q probes) are summed up as a Gaussian. Mean and covariance are the
paper's; the common basis, the scale and the shrinkage are the card's reconstruction.

Shapes: Q probes, D hidden width, d projected width, N clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
class LowRankGaussian:
    """The Gaussian of a client's whole states without a D x D matrix: variance * I + factor factor^T.

    Attributes:
        mean_D: mean of the states.
        factor_DQ: the centred states times sqrt((1 - shrinkage) / Q).
        variance: of the isotropic part.
        whitened_QD: what the inverse subtracts: (I - whitened^T whitened) / variance.
    """

    mean_D: Floats
    factor_DQ: Floats
    variance: float
    whitened_QD: Floats


def low_rank_gaussian(states_QD: Floats, shrinkage: float, dimensions: int | None = None) -> LowRankGaussian:
    """Return the shrunk Gaussian of a client's states (methods.md 1.4 d).

    Args:
        states_QD: what the model answered to the probes.
        shrinkage: as in ``shrink``.
        dimensions: over how many the trace is spread, which is D unless given.
    """
    num_probes, width = states_QD.shape
    mean_D = states_QD.mean(axis=0, dtype=np.float64)
    centred_QD = states_QD - mean_D
    trace = float((centred_QD**2).sum()) / num_probes
    variance = (shrinkage + FLOOR) * max(trace / (dimensions or width), LEAST_VARIANCE)
    factor_DQ = centred_QD.T * np.sqrt((1 - shrinkage) / num_probes)
    inner_QQ = variance * np.eye(num_probes) + factor_DQ.T @ factor_DQ
    whitened_QD = solve_triangular(np.linalg.cholesky(inner_QQ), factor_DQ.T, lower=True)
    return LowRankGaussian(mean_D, factor_DQ, variance, whitened_QD)


def exact_symmetric_kl(
    states_n_QD: Floats, states_m_QD: Floats, *, shrinkage: float, dimensions: int | None = None
) -> float:
    """Return the symmetric divergence of two clients by their whole states, in nats; the projected form's reference.

    Args:
        states_n_QD, states_m_QD: the clients' states.
        shrinkage, dimensions: as in ``low_rank_gaussian``.
    """
    return low_rank_symmetric_kl(
        low_rank_gaussian(states_n_QD, shrinkage, dimensions), low_rank_gaussian(states_m_QD, shrinkage, dimensions)
    )


def low_rank_symmetric_kl(first: LowRankGaussian, second: LowRankGaussian) -> float:
    """Return 1/4 [tr(S2^-1 S1) + tr(S1^-1 S2) - 2D + dmu^T (S1^-1 + S2^-1) dmu], in nats, by Woodbury's identity."""
    shift_D = first.mean_D - second.mean_D
    both_ways = _trace_of_quotient(first, second) + _trace_of_quotient(second, first)
    shifts = _squared_length(shift_D, first) + _squared_length(shift_D, second)
    return max(0.0, (both_ways - 2 * len(shift_D) + shifts) / 4)


def _trace_of_quotient(numerator: LowRankGaussian, denominator: LowRankGaussian) -> float:
    """Return tr(S_denominator^-1 S_numerator)."""
    whole = len(numerator.mean_D) * numerator.variance + (numerator.factor_DQ**2).sum()
    subtracted = numerator.variance * (denominator.whitened_QD**2).sum()
    subtracted += ((denominator.whitened_QD @ numerator.factor_DQ) ** 2).sum()
    return float((whole - subtracted) / denominator.variance)


def _squared_length(shift_D: Floats, gaussian: LowRankGaussian) -> float:
    """Return shift^T S^-1 shift."""
    return float((shift_D @ shift_D - ((gaussian.whitened_QD @ shift_D) ** 2).sum()) / gaussian.variance)
