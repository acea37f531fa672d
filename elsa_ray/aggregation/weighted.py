"""The weighted mean of adapter sets (methods.md 1.13, ``separate``: the factors A and B are averaged by themselves)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elsa_ray.model.adapters import Adapters


def weighted_mean(adapter_sets: Sequence[Adapters], weights: Sequence[float]) -> Adapters:
    """Return the mean of each tensor, summed in the given order in fp64, in the tensors' own type.

    Sets of weight 0 have no influence, not even by a NaN.

    Raises:
        ValueError: there is no set of positive weight.
    """
    counted = [(adapters, weight) for adapters, weight in zip(adapter_sets, weights, strict=True) if weight > 0]
    if not counted:
        raise ValueError("a mean needs at least one set of positive weight")
    total = sum(weight for _, weight in counted)
    mean = {}
    for name, first in counted[0][0].items():
        summed = torch.zeros_like(first, dtype=torch.float64)
        for adapters, weight in counted:
            summed += adapters[name].double() * weight
        mean[name] = (summed / total).to(first.dtype)
    return mean


def is_finite(adapters: Adapters) -> bool:
    """Tell whether all numbers are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in adapters.values())
