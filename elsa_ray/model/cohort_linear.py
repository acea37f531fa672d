"""Linear layers for cohorts: one frozen weight, and for each client its own factors in batched products.

Shapes: C clients, N = C·B texts (a client's texts are neighbours), S tokens, T = B·S, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """``x W + b + scaling · (x A_c) B_c`` with the factors of the client that a text belongs to.

    Args:
        base: the frozen layer, ``nn.Linear`` or GPT-2's ``Conv1D``.
        scaling: alpha / rank.
    """

    def __init__(self, base: nn.Module, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        self.bound: dict[str, Tensor] = {}

    def forward(self, x_NSI: Tensor) -> Tensor:
        """Map [N, S, I] to [N, S, O]; bound are ``lora_A.weight`` [C, R, I] and ``lora_B.weight`` [C, O, R]."""
        a_CRI = self.bound["lora_A.weight"].to(x_NSI.dtype)
        b_COR = self.bound["lora_B.weight"].to(x_NSI.dtype)
        x_CTI = x_NSI.reshape(a_CRI.shape[0], -1, x_NSI.shape[-1])
        low_rank_CTR = torch.bmm(x_CTI, a_CRI.transpose(1, 2))
        out_NSO: Tensor = self.base(x_NSI)
        out_CTO = out_NSO.reshape(a_CRI.shape[0], -1, out_NSO.shape[-1])
        # Product, scaling and sum in one pass over the output.
        return torch.baddbmm(out_CTO, low_rank_CTR, b_COR.transpose(1, 2), alpha=self.scaling).reshape(out_NSO.shape)


class FullLinear(nn.Module):
    """``x W_c + b_c`` with a weight of its own for each client: the trained head.

    Args:
        base: the layer as the backbone has it; kept because it is part of the weights that a node gets.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.bound: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, I] or [N, S, I] to the same with O last; bound are ``weight`` [C, O, I] and maybe ``bias`` [C, O]."""
        weight_COI = self.bound["weight"].to(x.dtype)
        x_CTI = x.reshape(weight_COI.shape[0], -1, x.shape[-1])
        out_CTO = torch.bmm(x_CTI, weight_COI.transpose(1, 2))
        if "bias" in self.bound:
            out_CTO = out_CTO + self.bound["bias"].to(x.dtype)[:, None, :]
        return out_CTO.reshape(*x.shape[:-1], -1)


CohortLinear = LoraLinear | FullLinear


@contextmanager
def bound(layers: Mapping[str, CohortLinear], adapters: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the layers, by path, their clients' tensors for the calls inside; afterwards they hold none."""
    touched = []
    for name, tensor in adapters.items():
        path, tensor_name = split_adapter_name(name)
        layers[path].bound[tensor_name] = tensor
        touched.append(layers[path])
    try:
        yield
    finally:
        for layer in touched:
            layer.bound.clear()


def split_adapter_name(name: str) -> tuple[str, str]:
    """Cut an adapter tensor's name into the layer's path and the tensor's name in it."""
    for tensor_name in ("lora_A.weight", "lora_B.weight", "weight", "bias"):
        if name.endswith(f".{tensor_name}"):
            return name.removesuffix(f".{tensor_name}"), tensor_name
    raise ValueError(f"{name} names no adapter tensor")
