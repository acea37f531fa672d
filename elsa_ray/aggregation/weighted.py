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
    first = counted[0][0]
    # As one row of numbers a set: a few large sums instead of many small ones, each number added in the same order.
    summed_N = torch.zeros(sum(tensor.numel() for tensor in first.values()), dtype=torch.float64)
    for adapters, weight in counted:
        own_N = torch.cat([adapters[name].reshape(-1) for name in first]).double()
        summed_N += own_N.mul_(weight)
    pieces = (summed_N / total).split([tensor.numel() for tensor in first.values()])
    return {
        name: piece.reshape(tensor.shape).to(tensor.dtype, copy=True)
        for (name, tensor), piece in zip(first.items(), pieces, strict=True)
    }


def is_finite(adapters: Adapters) -> bool:
    """Tell whether all numbers are finite."""
    return bool(torch.cat([tensor.reshape(-1) for tensor in adapters.values()]).isfinite().all())
