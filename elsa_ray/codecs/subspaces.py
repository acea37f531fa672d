"""The subspace that holds most of some rows' energy.

Shapes: T rows, D width, R at most as many directions as asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_SHARE = 1e-9  # of the largest direction's energy; below it a direction is rounding error


def finite_rows(x_TD: Tensor) -> Tensor:
    """Return the rows whose numbers are all finite, in fp64: a failed row must not spoil a calibration."""
    return x_TD[x_TD.isfinite().all(dim=1)].to(torch.float64)


def leading_directions(x_TD: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors [D, R] of the largest energies, and all energies (squared singular values).

    By the Gram matrix of rows or columns, whichever is smaller. R is less than ``most`` where the rows have no more
    directions. The largest component of each vector is positive, so that the result is the same from either matrix.
    """
    num_rows, width = x_TD.shape
    if num_rows == 0:
        return x_TD.new_zeros(width, 0), x_TD.new_zeros(0)
    of_rows = num_rows < width
    gram = x_TD @ x_TD.T if of_rows else x_TD.T @ x_TD
    ascending, vectors = torch.linalg.eigh(gram)
    energies = ascending.flip(0).clamp(min=0)
    count = min(most, int((energies > _SMALLEST_SHARE * energies[0]).sum()))
    leading = vectors.flip(1)[:, :count]
    if of_rows:
        leading = x_TD.T @ leading / energies[:count].sqrt()
    largest = leading.gather(0, leading.abs().argmax(dim=0, keepdim=True)) if count else leading[:1]
    return leading * largest.sign(), energies


def with_columns(vectors_DR: Tensor, columns: int) -> Tensor:
    """Return the vectors with zero columns behind them, up to the given number."""
    return torch.nn.functional.pad(vectors_DR, (0, columns - vectors_DR.shape[1]))
