"""Tokens with a known vector each, and keys that rotate a subspace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from elsa_ray.privacy.rows import TokenRows

Turn = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    q, r = torch.linalg.qr(normal(size, size, seed=seed))
    return q * torch.sign(torch.diag(r))


def rotation_in_subspace(width: int, rank: int, seed: int, basis_seed: int = 99) -> tuple[Tensor, Tensor]:
    """Return Q = U V Uᵀ + I - U Uᵀ, formed, and U; both from seeds."""
    basis_DR = orthogonal(width, basis_seed)[:, :rank]
    inside_DD = basis_DR @ basis_DR.T
    turned_DD = basis_DR @ orthogonal(rank, seed) @ basis_DR.T
    return turned_DD + torch.eye(width, dtype=torch.float64) - inside_DD, basis_DR


def key(width: int, rank: int, seed: int, basis_seed: int = 99) -> Turn:
    """Return what a secret rotation does to rows: h Qᵀ."""
    matrix_DD, _ = rotation_in_subspace(width, rank, seed, basis_seed)
    return lambda rows_TD: rows_TD.double() @ matrix_DD.T


def token_rows(
    num_tokens: int, vocabulary: int, width: int, *, noise: float = 0.3, seed: int = 0, first_id: int = 5
) -> TokenRows:
    """Draw tokens and add noise to the vector that each token has; the vectors depend on ``width`` alone."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ids_T = torch.randint(first_id, first_id + vocabulary, (num_tokens,), generator=generator)
    vectors_VD = normal(first_id + vocabulary, width, seed=7)
    rows_TD = vectors_VD[ids_T] + noise * torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
    return TokenRows(rows_TD, ids_T, torch.arange(num_tokens) // 8)
