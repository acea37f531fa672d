"""A chain of codecs: applied in order by the sender, in reverse by the receiver.

Shapes: T rows, D width of the input, E width on the wire.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elsa_ray.codecs.cast import Cast
from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.codecs.identity import Identity
from elsa_ray.codecs.int8 import Int8
from elsa_ray.codecs.sketch import Sketch
from elsa_ray.config.errors import InputError
from elsa_ray.config.plugins import find_class
from elsa_ray.config.protocol import CodecSpec
from elsa_ray.config.validate import validate

BUILT_IN: dict[str, type[Codec]] = {"identity": Identity, "cast": Cast, "int8": Int8, "sketch": Sketch}
WIRE_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CodecChain:
    """The codecs of one kind of payload and the format of its numbers.

    Args:
        stages: the codecs in the sender's order.
        wire_dtype: how floats are written when the last codec yields floats: fp64, fp32, bf16, fp16.
        spec: the config that made the chain; both ends must have the same.
    """

    def __init__(self, stages: Sequence[Codec], wire_dtype: str, spec: Sequence[dict[str, Any]] = ()) -> None:
        self.stages = tuple(stages)
        self.wire_dtype = wire_dtype
        canonical = json.dumps([list(spec), wire_dtype], sort_keys=True, default=str)
        self.chain_id = zlib.crc32(canonical.encode())
        # Codecs compute in fp32 whatever the precision of the training, so that a payload's meaning does not depend
        # on it; only a run whose wire is fp64 computes them in fp64.
        self._compute_dtype = torch.float64 if wire_dtype == "fp64" else torch.float32

    @property
    def number_format(self) -> torch.dtype:
        """Type of the numbers on the wire."""
        last = self.stages[-1].number_format if self.stages else None
        return last if last is not None else WIRE_DTYPES[self.wire_dtype]

    @property
    def size_is_exact(self) -> bool:
        """Whether ``body_bytes`` is exact, not an upper bound."""
        return all(stage.size_is_exact for stage in self.stages)

    @property
    def is_straight_through(self) -> bool:
        """Whether a gradient passes the chain unchanged."""
        return all(stage.straight_through or isinstance(stage, Identity) for stage in self.stages)

    def body_bytes(self, num_rows: Any, width: int) -> Any:
        """Return the encoded length of ``num_rows`` rows (a number or an array of them) of the given width."""
        bytes_per_row = 0
        for stage in self.stages:
            bytes_per_row += sum(dtype.itemsize * count for dtype, count in stage.side_layout(width))
            width = stage.width_out(width)
        return np.asarray(num_rows, np.int64) * (bytes_per_row + width * self.number_format.itemsize)

    def encode(self, x_TD: Tensor, context: CodecContext) -> bytes:
        """Return the body: the last stage's values row by row, then each stage's side numbers."""
        values = x_TD.detach().to(self._compute_dtype)
        side: list[Tensor] = []
        for stage in self.stages:
            rows = stage.encode(values, context)
            values, side = rows.values, side + list(rows.side)
        if self.number_format == torch.float16 and values.dtype != torch.float16:
            limit = torch.finfo(torch.float16).max
            values = values.clamp(-limit, limit)
        return b"".join(_tensor_bytes(tensor) for tensor in [values.to(self.number_format), *side])

    def decode(self, body: bytes | memoryview, num_rows: int, width: int, context: CodecContext) -> Tensor:
        """Return the rows [T, D] that the receiver sees, in fp32 (fp64 if that is the wire's format)."""
        widths = [width]
        for stage in self.stages:
            widths.append(stage.width_out(widths[-1]))
        reader = _Reader(body)
        values = reader.take(self.number_format, num_rows, widths[-1])
        sides = [
            tuple(reader.take(dtype, num_rows, count) for dtype, count in stage.side_layout(stage_width))
            for stage, stage_width in zip(self.stages, widths, strict=False)
        ]
        if not self.stages or self.stages[-1].number_format is None:
            values = values.to(self._compute_dtype)
        for stage, stage_width, side in reversed(list(zip(self.stages, widths, sides, strict=False))):
            values = stage.decode(Rows(values, side), stage_width, context)
        return values.to(self._compute_dtype)

    def backward(self, x_TD: Tensor, gradient_TD: Tensor, context: CodecContext) -> Tensor:
        """Return the gradient at the sender's input from the one at the receiver's reconstruction.

        Straight-through stages pass it unchanged; the others take the adjoint of their encode and decode at ``x_TD``.
        """
        if self.is_straight_through:
            return gradient_TD
        with torch.enable_grad():
            x = x_TD.detach().to(self._compute_dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(self._differentiable(x, 0, context), x, gradient_TD.to(x.dtype))
        return gradient

    def _differentiable(self, x_TD: Tensor, position: int, context: CodecContext) -> Tensor:
        """Encode and decode by the stages from ``position`` on, as autograd shall see it."""
        if position == len(self.stages):
            return x_TD
        stage = self.stages[position]
        if stage.straight_through:
            # To autograd it is the identity; where it changes the width, so is everything behind it.
            same_width = stage.width_out(x_TD.shape[1]) == x_TD.shape[1]
            return self._differentiable(x_TD, position + 1, context) if same_width else x_TD
        rows = stage.encode(x_TD, context)
        inner = self._differentiable(rows.values, position + 1, context)
        return stage.decode(Rows(inner, rows.side), x_TD.shape[1], context)


def build_chain(specs: Sequence[CodecSpec], wire_dtype: str, where: str) -> CodecChain:
    """Build the chain that a config section describes.

    Args:
        specs: the codecs in the sender's order.
        wire_dtype: format of the numbers where the codecs leave floats.
        where: the config field, for errors.

    Raises:
        InputError: a codec is unknown, its parameters are wrong, or one stands behind a codec that must be last.
    """
    stages: list[Codec] = []
    for position, spec in enumerate(specs):
        field = f"{where}.{position}"
        if stages and stages[-1].number_format is not None:
            last = specs[position - 1].kind
            raise InputError(field, f"{spec.kind} behind {last}", f"nothing behind {last}: its output is final")
        codec = find_class(f"{field}.kind", "elsa_ray.codecs", spec.kind, BUILT_IN)
        stages.append(codec(validate(codec.Config, spec.model_dump(), field)))
    return CodecChain(stages, wire_dtype, [spec.model_dump() for spec in specs])


def _tensor_bytes(tensor: Tensor) -> bytes:
    tensor = tensor.contiguous().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().tobytes()


class _Reader:
    """Cuts tensors from the front of a body."""

    def __init__(self, body: bytes | memoryview) -> None:
        self._body = memoryview(body)

    def take(self, dtype: torch.dtype, num_rows: int, width: int) -> Tensor:
        length = dtype.itemsize * math.prod((num_rows, width))
        piece, self._body = self._body[:length], self._body[length:]
        # A copy: the payload is read-only memory, and the tensor may be written to.
        return (
            torch.frombuffer(bytearray(piece), dtype=dtype).reshape(num_rows, width)
            if length
            else torch.empty(num_rows, width, dtype=dtype)
        )
