"""The weighted mean of adapter sets (methods.md 1.13, ``separate``: the factors A and B are averaged by themselves)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from elsa_ray.codecs.flat import cut, joined
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
    first = counted[0][0]
    # As one row of numbers a set: a few large sums instead of many small ones, each number added in the same order.
    summed_N = torch.zeros(sum(tensor.numel() for tensor in first.values()), dtype=torch.float64)
    for adapters, weight in counted:
        own_N = joined(adapters[name] for name in first).double()
        summed_N += own_N.mul_(weight)
    pieces = cut(summed_N / total, tuple(tuple(tensor.shape) for tensor in first.values()))
    return {
        name: piece.to(tensor.dtype, copy=True) for (name, tensor), piece in zip(first.items(), pieces, strict=True)
    }


def is_finite(adapters: Adapters) -> bool:
    """Tell whether all numbers are finite."""
    numbers_N = joined(adapters.values())
    # What is not finite stays so in a sum, which is ten times as fast; only a sum may overflow where no number does.
    return math.isfinite(numbers_N.sum().item()) or bool(numbers_N.isfinite().all())
