"""How far each client's answers to the probes agree with those of the other members of its cluster (methods.md 1.6).

The formulas are the card's reconstruction. Three things are ours, because up to 40% of a cluster may be bad:

- A client that has seen few classes shifts all its answers towards them, honestly. ``centred`` takes the mean
  log-probability of each class over the probes out of each client's answers, and compares what is left: how the client
  tells the probes apart.
- Centred, all broken models that answer everything alike look the same. So a client is heard the less, the less it
  tells the probes apart.
- The consensus is made twice: first as the median of all, then as the weighted mean of the half that is nearest to it.
  A mean of all would follow whoever answers alike, bad clients too.

Agreements are 1 for equal answers, 0 for answers that are not finite, and 1 where there is nobody to compare with.

Shapes: N clients, Q probes, C classes, D hidden width, G = Q * Q entries of a Gram matrix.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEAST_PROBABILITY = 1e-6
"""Below it, how improbable a model finds a class is not compared."""
LEAST_VOTERS = 3
"""Fewer clients have no majority: their consensus is the mean of all others."""


def agreement_of_answers(answers_NQC: npt.NDArray[np.floating], weights_N: Floats, *, centred: bool = True) -> Floats:
    """Return 1 - mean JS(client || others) / ln 2 for each client, in [0, 1].

    Args:
        answers_NQC: probabilities of the classes.
        weights_N: trust of each client, >= 0; one of weight 0 is compared but not heard, unless all are.
        centred: compare how clients tell probes apart, whatever classes they favour (see the module).
    """
    answers_NQC = answers_NQC.astype(np.float64)
    is_number_NQC = np.isfinite(answers_NQC) & (answers_NQC >= 0)
    valid_N = is_number_NQC.all(axis=(1, 2)) & ((answers_NQC > 0).sum(axis=2) > 0).all(axis=1)
    agreement_N = np.zeros(len(answers_NQC))
    if not valid_N.any():
        return agreement_N
    given_NQC, weights_N = answers_NQC[valid_N], votes(weights_N[valid_N])
    log_NQC = np.log(np.maximum(given_NQC / given_NQC.sum(axis=2, keepdims=True), LEAST_PROBABILITY))
    if centred:
        log_NQC -= log_NQC.mean(axis=1, keepdims=True)
    log_NQC -= log_NQC.mean(axis=2, keepdims=True)  # stands for the same answers, and only so medians can be taken
    if centred:
        weights_N = weights_N * _voice(log_NQC, weights_N)
    answers_NQC = _softmax(log_NQC)
    if have_majority(weights_N):
        median_QC = _softmax(weighted_median(log_NQC, weights_N))
        weights_N = nearer_half(_agreement(answers_NQC, median_QC[None]), weights_N)
    others_NQC, has_others_N = _mean_of_others(answers_NQC, weights_N)
    agreement_N[valid_N] = np.where(has_others_N, _agreement(answers_NQC, others_NQC), 1.0)
    return agreement_N


def agreement_of_states(states_NQD: npt.NDArray[np.floating], weights_N: Floats) -> Floats:
    """Return the linear CKA of each client's states with the others' consensus, in [0, 1]; for tasks without classes.

    What is compared is the Gram matrix of the centred states: which probes are alike, in whatever basis. Each client's
    is scaled to length one, so that none counts for its size; the consensus is the others' weighted mean.

    Args:
        states_NQD: one state a probe.
        weights_N: as in ``agreement_of_answers``.
    """
    num_clients, num_probes, _ = states_NQD.shape
    states_NQD = states_NQD.astype(np.float64)
    valid_N = np.isfinite(states_NQD).all(axis=(1, 2))
    agreement_N = np.zeros(num_clients)
    if not valid_N.any():
        return agreement_N
    given_NQD, weights_N = states_NQD[valid_N], votes(weights_N[valid_N])
    centred_NQD = given_NQD - given_NQD.mean(axis=1, keepdims=True)
    gram_NG = (centred_NQD @ centred_NQD.transpose(0, 2, 1)).reshape(len(given_NQD), num_probes**2)
    length_N = np.sqrt((gram_NG**2).sum(axis=1))
    gram_NG /= np.where(length_N > 0, length_N, 1.0)[:, None]
    if have_majority(weights_N):
        median_G = weighted_median(gram_NG, weights_N)
        weights_N = nearer_half(_cosine(gram_NG, median_G[None]), weights_N)
    others_NG, has_others_N = _mean_of_others(gram_NG, weights_N)
    agreement_N[valid_N] = np.where(has_others_N, _cosine(gram_NG, others_NG), 1.0)
    return agreement_N


def votes(weights_N: Floats) -> Floats:
    """Return the weights; where nobody has any, all are heard alike."""
    return weights_N if weights_N.any() else np.ones_like(weights_N)


def _voice(log_NQC: Floats, weights_N: Floats) -> Floats:
    """Return how far each client is heard, in [0, 1]: in full if it tells the probes apart as the median does."""
    spread_N = np.sqrt((log_NQC**2).mean(axis=(1, 2)))
    usual = np.median(spread_N[weights_N > 0])
    return np.minimum(spread_N / usual, 1.0) if usual > 0 else np.ones_like(spread_N)


def have_majority(weights_N: Floats) -> bool:
    """Tell whether so many are heard that a median of them means anything."""
    return int((weights_N > 0).sum()) >= LEAST_VOTERS


def nearer_half(nearness_N: Floats, weights_N: Floats) -> Floats:
    """Return the weights with 0 for the half of the voters that is farther from the first consensus."""
    return np.where(nearness_N >= np.median(nearness_N[weights_N > 0]), weights_N, 0.0)


def _mean_of_others(values: Floats, weights_N: Floats) -> tuple[Floats, Bools]:
    """Return for each client the weighted mean of all others' values [N, ...], and whether there are any others."""
    votes_N = weights_N > 0
    has_others_N = votes_N.sum() - votes_N > 0
    per_client = (-1, *[1] * (values.ndim - 1))
    own = weights_N.reshape(per_client) * values
    others_weight_N = np.where(has_others_N, weights_N.sum() - weights_N, 1.0)
    return (own.sum(axis=0) - own) / others_weight_N.reshape(per_client), has_others_N


def weighted_median(values: Floats, weights_N: Floats) -> Floats:
    """Return the weighted (lower) median over the first axis, number by number."""
    order = np.argsort(values, axis=0, kind="stable")
    reached = np.cumsum(weights_N[order], axis=0) >= weights_N.sum() / 2
    position = np.argmax(reached, axis=0)[None]
    return np.take_along_axis(values, np.take_along_axis(order, position, axis=0), axis=0)[0]


def _softmax(log: Floats) -> Floats:
    exponential = np.exp(log - log.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


def _agreement(answers_NQC: Floats, consensus_NQC: Floats) -> Floats:
    """Return 1 - mean over the probes of the Jensen-Shannon divergence, in units of its largest value."""
    middle = (answers_NQC + consensus_NQC) / 2
    divergence_NQ = (_relative_entropy(answers_NQC, middle) + _relative_entropy(consensus_NQC, middle)) / 2
    return np.clip(1.0 - divergence_NQ.mean(axis=1) / math.log(2), 0.0, 1.0)


def _relative_entropy(first: Floats, second: Floats) -> Floats:
    ratio = np.divide(first, second, out=np.ones(np.broadcast_shapes(first.shape, second.shape)), where=first > 0)
    return (first * np.log(ratio)).sum(axis=-1)


def _cosine(vectors_NG: Floats, others_NG: Floats) -> Floats:
    """Return the cosine of each pair, in [0, 1]; 0 where one has no length."""
    lengths_N = np.sqrt((vectors_NG**2).sum(axis=1) * (others_NG**2).sum(axis=1))
    return np.clip((vectors_NG * others_NG).sum(axis=1) / np.where(lengths_N > 0, lengths_N, np.inf), 0.0, 1.0)
