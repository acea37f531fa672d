"""What work counts that arrives in a later round than the one that it was planned for."""

from __future__ import annotations

from elsa_ray.config.round_policy import ConstantStaleness, PolynomialStaleness, StalenessConfig


def staleness_discount(config: StalenessConfig | None, staleness: int) -> float:
    """Return the factor of a work item's weight, 1 for work that is in time.

    Args:
        config: the rule; None counts all fully.
        staleness: edge rounds (in fedavg: rounds) that have closed at its node since the one that it was planned for.

    Source: polynomial and constant weights as in asynchronous federated optimisation (Xie, Koyejo and Gupta, 2019).
    """
    if staleness <= 0:
        return 1.0
    match config:
        case None:
            return 1.0
        case ConstantStaleness():
            return config.factor
        case PolynomialStaleness():
            return float((1 + staleness) ** -config.exponent)
