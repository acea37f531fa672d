"""How far each client has moved its model the way the others have moved theirs (ours; methods.md 1.6 leaves it open).

Compared is not what a model answers to the probes but how its training has changed the answers. An update of the wrong
sign, or noise, leaves a model that still answers almost as all others do; the change it makes points elsewhere.

Shapes: N clients, Q probes, C classes, F features of a model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.agreement import LEAST_VOTERS, weighted_median

Floats = npt.NDArray[np.float64]

LEAST_PROBABILITY = 1e-4
"""Below it, how improbable a model finds a class is not compared."""
USUAL_TIMES = 3.0
"""A change so many times larger than the median one counts as less alike, in proportion."""


def features_of_answers(answers_NQC: npt.NDArray[np.floating]) -> Floats:
    """Return how each model tells the probes apart [N, Q C]: its log-probabilities without each class's mean.

    What a client that has seen few classes shifts in all its answers alike is left out so.
    """
    with np.errstate(invalid="ignore"):
        log_NQC = np.log(np.maximum(answers_NQC.astype(np.float64), LEAST_PROBABILITY))
    log_NQC -= log_NQC.mean(axis=2, keepdims=True)
    return (log_NQC - log_NQC.mean(axis=1, keepdims=True)).reshape(len(answers_NQC), -1)


def agreement_of_changes(before_NF: Floats, after_NF: Floats, weights_N: Floats) -> Floats:
    """Return (1 + cosine(own change, the others')) / 2, in [0, 1], less for changes that are far too large.

    The others' change is the weighted mean direction of the half that is nearest to the median direction: a mean of all
    would follow whoever moves far, bad clients too. A model that is not finite agrees with nobody; one that has not
    changed is neither for nor against (1/2); with nobody to compare with, agreement is 1.

    Args:
        before_NF: features of the models that the clients started from.
        after_NF: of the models that they sent.
        weights_N: trust of each client, >= 0; one of weight 0 is compared but not heard, unless all are.
    """
    change_NF = after_NF - before_NF
    finite_N = np.isfinite(change_NF).all(axis=1)
    agreement_N = np.zeros(len(change_NF))
    if not finite_N.any():
        return agreement_N
    change_NF, weights_N = change_NF[finite_N], weights_N[finite_N]
    weights_N = weights_N if (weights_N > 0).any() else np.ones_like(weights_N)
    length_N = np.linalg.norm(change_NF, axis=1)
    unit_NF = change_NF / np.where(length_N > 0, length_N, 1.0)[:, None]
    heard_N = np.where(length_N > 0, weights_N, 0.0)
    if (heard_N > 0).sum() >= LEAST_VOTERS:
        nearness_N = _cosine(unit_NF, weighted_median(unit_NF, heard_N)[None])
        heard_N = np.where(nearness_N >= np.median(nearness_N[heard_N > 0]), heard_N, 0.0)
    others_NF = heard_N @ unit_NF - heard_N[:, None] * unit_NF
    has_others_N = (heard_N > 0).sum() > (heard_N > 0).astype(int)
    cosine_N = np.where(has_others_N, _cosine(unit_NF, others_NF), 1.0)
    agreement_N[finite_N] = (1 + cosine_N) / 2 * _moderation(length_N)
    return agreement_N


def _moderation(length_N: Floats) -> Floats:
    """Return 1 for changes of usual size, and less for those that are far larger than the median one."""
    moved_N = length_N > 0
    most = USUAL_TIMES * float(np.median(length_N[moved_N])) if moved_N.any() else 0.0
    return np.where(moved_N, np.minimum(1.0, most / np.where(moved_N, length_N, 1.0)), 1.0)


def _cosine(vectors_NF: Floats, others_NF: Floats) -> Floats:
    """Return the cosine of each pair; 0 where one has no length."""
    lengths_N = np.linalg.norm(vectors_NF, axis=1) * np.linalg.norm(others_NF, axis=1)
    return np.clip((vectors_NF * others_NF).sum(axis=1) / np.where(lengths_N > 0, lengths_N, np.inf), -1.0, 1.0)
