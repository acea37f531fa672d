"""Holds a worker to its part of a GPU's memory: Ray's shares of a GPU are numbers only."""

from __future__ import annotations

import torch

from elsa_ray.runtime.failure import WorkerError


def tensor_share(limit_bytes: int, context_bytes: int, total_bytes: int) -> float:
    """Return the part of a GPU's memory that tensors may take, for a worker that may take so much in all.

    Args:
        limit_bytes: of the worker, its CUDA context included.
        context_bytes: of the context.
        total_bytes: of the GPU.
    """
    return min(1.0, max(0, limit_bytes - context_bytes) / total_bytes)


def hold_to(limit_bytes: int, context_bytes: int) -> None:
    """Let torch refuse this process more memory of its GPU than that; call it before the first tensor is there.

    Args:
        limit_bytes: for context and tensors.
        context_bytes: of the context.

    Raises:
        WorkerError: others hold so much of the GPU that the limit is not left.
    """
    free, total = torch.cuda.mem_get_info()  # makes the context, which is then no longer free
    if free + context_bytes < limit_bytes:
        raise WorkerError(
            f"gpu_memory: {limit_bytes / 1e9:.4g} GB are declared, and {free / 1e9:.4g} GB of the GPU's "
            f"{total / 1e9:.4g} GB are free"
        )
    torch.cuda.set_per_process_memory_fraction(tensor_share(limit_bytes, context_bytes, total))
