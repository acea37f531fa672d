"""Trust: whose work counts how much, by how far its work agrees with its cluster's (methods.md 1.6, reconstruction).

A client's score follows its agreement slowly. Whoever scores too low, or agrees far less than its cluster does, is
excluded for some global rounds, then counts less for some more. A known weakness: an honest client with rare data
looks inconsistent; that it is judged against its own cluster limits this.

Shapes: N clients of one cluster, those that are present.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.agreement import agreement_of_answers, agreement_of_states
from elsa_ray.config.clustering import TrustConfig

__all__ = [
    "Decision",
    "Judgement",
    "TrustEvent",
    "TrustState",
    "UpdateFigures",
    "agreement_of_answers",
    "agreement_of_states",
    "judge",
    "trust_weight",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""
LEAST_GAP = 0.05
"""An agreement this close to the median is never an outlier, even where most agree exactly (MAD 0); ours."""
LEAST_JURY = 3
"""In a cluster of fewer nobody is excluded: of two that differ, none can tell who is wrong."""


class Decision(StrEnum):
    """What happened to a client's standing."""

    EXCLUDED = "excluded"
    KEPT = "kept: cluster would empty"
    PROBATION = "probation"
    RESTORED = "restored"


class TrustEvent(NamedTuple):
    """A decision about a client, and the figures that led to it."""

    client: int
    decision: Decision
    reason: str


@dataclass(frozen=True)
class TrustState:
    """A client's standing: what is remembered from round to round.

    Attributes:
        score: smoothed agreement, in [0, 1].
        excluded_until_round: first round in which it counts again; 0 if it is not excluded.
        probation_until_round: first round in which it counts fully again; 0 if neither excluded nor on probation.
    """

    score: float = 1.0
    excluded_until_round: int = 0
    probation_until_round: int = 0

    def is_excluded(self, round_index: int) -> bool:
        """Tell whether nothing that it sends in this round counts."""
        return round_index < self.excluded_until_round

    def is_on_probation(self, round_index: int) -> bool:
        """Tell whether it counts, but less."""
        return not self.is_excluded(round_index) and round_index < self.probation_until_round


class UpdateFigures(NamedTuple):
    """What an edge that verifies has found of the updates themselves, whatever the models answer.

    Attributes:
        sizes_N: their norms; one that is not finite is not compared.
        cosines_VN: with the others' update, in each of V views (``updates.cosines_with_others``).
    """

    sizes_N: Floats
    cosines_VN: tuple[Floats, ...]


@dataclass(frozen=True, eq=False)
class Judgement:
    """The outcome of a round for one cluster, in the order of its clients.

    Attributes:
        weights_N: factors of the aggregation weights, in [0, 1]; 0 for the excluded.
        states: the new standings.
        events: what changed, in the order of the clients.
    """

    weights_N: Floats
    states: tuple[TrustState, ...]
    events: tuple[TrustEvent, ...]


def trust_weight(state: TrustState, round_index: int, config: TrustConfig) -> float:
    """Return the factor of a client's aggregation weight: 0 if excluded, else its score, reduced on probation."""
    if state.is_excluded(round_index):
        return 0.0
    return state.score * (config.weight_probation if state.is_on_probation(round_index) else 1.0)


def judge(
    agreement_N: Floats,
    clients_N: Sequence[int],
    states: Sequence[TrustState],
    round_index: int,
    config: TrustConfig,
    updates: UpdateFigures | None = None,
) -> Judgement:
    """Judge the members of one cluster that are present, by their agreement in this round.

    Of n present, at least ceil(n / 2) are left with a say: those of the highest scores, even if their exclusion from
    an earlier round has to be lifted. Exclusion begins in this very round.

    Args:
        agreement_N: of each client; one that is not finite counts as 0.
        clients_N: who they are, for the events.
        states: their standings so far, in the order of ``clients_N``.
        round_index: the global round.
        config: the ``trust`` section.
        updates: figures of each client's update; None where nobody has looked at it.
    """
    agreement_N = np.where(np.isfinite(agreement_N), agreement_N, 0.0)
    events: list[list[TrustEvent]] = [[] for _ in states]
    standing: list[TrustState] = []
    for n, state in enumerate(states):
        state, decision = _after_terms_served(state, round_index, config)
        if decision is not None:
            events[n].append(TrustEvent(int(clients_N[n]), decision, f"round {round_index}: its term ends"))
        score = config.smoothing * state.score + (1 - config.smoothing) * float(agreement_N[n])
        standing.append(replace(state, score=score))

    excluded_N = np.array([state.is_excluded(round_index) for state in standing], bool)
    of_size = {} if updates is None else _charges_of_size(updates.sizes_N, excluded_N, config)
    of_direction = {} if updates is None else _charges_of_direction(updates, excluded_N, config)
    charges = _charges(agreement_N, standing, excluded_N, config) | of_direction | of_size
    for n in _kept(standing, excluded_N, charges, of_size):
        reason = charges.pop(n, f"excluded until round {standing[n].excluded_until_round}")
        events[n].append(TrustEvent(int(clients_N[n]), Decision.KEPT, reason))
        standing[n] = replace(standing[n], excluded_until_round=0)
    for n, reason in charges.items():
        events[n].append(TrustEvent(int(clients_N[n]), Decision.EXCLUDED, reason))
        until = round_index + config.exclusion_rounds
        standing[n] = TrustState(standing[n].score, until, until + config.probation_rounds)
    return Judgement(
        weights_N=np.array([trust_weight(state, round_index, config) for state in standing], np.float64),
        states=tuple(standing),
        events=tuple(event for of_client in events for event in of_client),
    )


def _after_terms_served(state: TrustState, round_index: int, config: TrustConfig) -> tuple[TrustState, Decision | None]:
    """Return the standing with ended terms struck off; who comes back from exclusion is given the least score again."""
    comes_back = 0 < state.excluded_until_round <= round_index
    score = max(state.score, config.threshold) if comes_back else state.score
    if 0 < state.probation_until_round <= round_index:
        return TrustState(score), Decision.RESTORED
    if comes_back:
        return TrustState(score, 0, state.probation_until_round), Decision.PROBATION
    return state, None


def _charges(
    agreement_N: Floats, standing: Sequence[TrustState], excluded_N: Bools, config: TrustConfig
) -> dict[int, str]:
    """Return why which positions are to be excluded; only those that are not excluded already are compared."""
    jury = np.flatnonzero(~excluded_N)
    if len(jury) < LEAST_JURY:
        return {}
    median = float(np.median(agreement_N[jury]))
    mad = float(np.median(np.abs(agreement_N[jury] - median)))
    least = median - max(config.mad * SIGMA_OF_MAD * mad, LEAST_GAP)
    charges = {}
    for n in jury.tolist():
        if standing[n].score < config.threshold:
            charges[n] = f"score {standing[n].score:.3f} < {config.threshold:g}"
        elif agreement_N[n] < least and not config.compares_updates:
            charges[n] = f"agreement {agreement_N[n]:.3f} < {least:.3f} (median {median:.3f}, MAD {mad:.3f})"
    return charges


def _charges_of_direction(updates: UpdateFigures, excluded_N: Bools, config: TrustConfig) -> dict[int, str]:
    """Return why which positions are to be excluded for updates that point against the others', or nowhere."""
    jury = np.flatnonzero(~excluded_N)
    if len(jury) < LEAST_JURY or not updates.cosines_VN:
        return {}
    cosine_N = np.mean(updates.cosines_VN, axis=0)
    charges = {}
    for n in jury.tolist():
        if not np.isfinite(updates.sizes_N[n]):
            charges[n] = "update is not finite"
        elif cosine_N[n] < -config.opposed:
            charges[n] = f"update against the others': cosine {cosine_N[n]:.3f} < {-config.opposed:g}"
    return charges


def _charges_of_size(sizes_N: Floats, excluded_N: Bools, config: TrustConfig) -> dict[int, str]:
    """Return why which positions are to be excluded for the size of their updates, which says nothing of direction."""
    jury = np.flatnonzero(~excluded_N & np.isfinite(sizes_N))
    if len(jury) < LEAST_JURY:
        return {}
    median = float(np.median(sizes_N[jury]))
    most = config.max_size * median
    return {
        n: f"update {sizes_N[n]:.3g} > {most:.3g} ({config.max_size:g} times the median)"
        for n in jury.tolist()
        if sizes_N[n] > most > 0
    }


def _kept(
    standing: Sequence[TrustState], excluded_N: Bools, charges: Mapping[int, str], of_size: Mapping[int, str]
) -> list[int]:
    """Return the positions that must not be excluded, lest fewer than half of those present are left.

    Updates that are far too large come last: one of them in the mean is worse than the loss of an honest client.
    """
    out = [n for n in range(len(standing)) if excluded_N[n] or n in charges]
    left = len(standing) - len(out)
    missing = max(0, math.ceil(len(standing) / 2) - left)
    return sorted(out, key=lambda n: (n in of_size, -standing[n].score, n))[:missing]
