"""The two ends of a chain: built from its spec, calibrated on some rows, and one message from end to end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain, Memory, build_chain
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.config.protocol import CodecSpec

CONTEXT = CodecContext(seed=3, round_index=1, edge_round=2, step=4, client=5, role="activation_up")
MAKERS = frozenset(Maker)
"""All of them: as at the first cut, whose sender is the client."""


def build(*specs: dict[str, Any], wire_dtype: str = "fp32") -> CodecChain:
    for_adapters = any(spec["kind"] == "residual" for spec in specs)
    return build_chain([CodecSpec(**spec) for spec in specs], wire_dtype, "codec", for_adapters=for_adapters)


def rows(seed: int, num_rows: int = 6, width: int = 24) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def calibrated(of: CodecChain, x_TD: Tensor, context: CodecContext = CONTEXT) -> Memory:
    return of.calibrate(x_TD, context, (), MAKERS)


def round_trip(of: CodecChain, x_TD: Tensor, context: CodecContext = CONTEXT, memory: Memory = ()) -> Tensor:
    num_rows, width = x_TD.shape
    return of.decode(of.encode(x_TD, context, memory), num_rows, width, context, memory)


class ThroughChain(torch.autograd.Function):
    """A chain as a layer: forward over the wire, backward by ``CodecChain.backward``."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, of: CodecChain, context: CodecContext, memory: Memory) -> Tensor:
        ctx.of, ctx.context, ctx.memory = of, context, memory
        ctx.save_for_backward(x_TD)
        return round_trip(of, x_TD, context, memory)

    @staticmethod
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None, None, None]:
        (x_TD,) = ctx.saved_tensors
        return ctx.of.backward(x_TD, gradient_TD, ctx.context, ctx.memory), None, None, None
