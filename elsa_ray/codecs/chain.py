"""A chain of codecs: applied in order by the sender, in reverse by the receiver.

Shapes: T rows, D width of the input, E width on the wire.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Maker, Rows, Tensors
from elsa_ray.codecs.residual import Residual
from elsa_ray.codecs.stages import SIMPLE, build_stages, decode_rows, encode_rows, rows_of, side_layouts, widths_of
from elsa_ray.codecs.subspaces import finite_rows
from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import CodecSpec

BUILT_IN: dict[str, type[Codec]] = {**SIMPLE, "residual": Residual}
WIRE_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Memory = tuple[Tensors, ...]
"""What one end holds for a chain at one cut: an entry a stage, () where it holds nothing; () altogether for nothing."""


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
    def is_plain(self) -> bool:
        """Whether numbers are written one by one as they are: no stage, so rows and tensors can be joined freely."""
        return not self.stages

    @property
    def size_is_exact(self) -> bool:
        """Whether ``body_bytes`` is exact, not an upper bound."""
        return all(stage.size_is_exact for stage in self.stages)

    @property
    def is_straight_through(self) -> bool:
        """Whether a gradient passes the chain unchanged."""
        return all(stage.straight_through or stage.lossless for stage in self.stages)

    @property
    def calibrated(self) -> tuple[int, ...]:
        """Positions of the stages that need a calibration."""
        return tuple(position for position, stage in enumerate(self.stages) if stage.calibration is not None)

    @property
    def is_calibrated(self) -> bool:
        """Whether any stage needs a calibration."""
        return bool(self.calibrated)

    def body_bytes(self, num_rows: Any, width: int) -> Any:
        """Return the encoded length of ``num_rows`` rows (a number or an array of them) of the given width."""
        _, *behind = counts = rows_of(self.stages, np.asarray(num_rows, np.int64))
        num_bytes = counts[-1] * (widths_of(self.stages, width)[-1] * self.number_format.itemsize)
        for own_rows, layout in zip(behind, side_layouts(self.stages, width, counts[0]), strict=True):
            for dtype, count in layout:
                num_bytes = num_bytes + own_rows * (dtype.itemsize * count)
        return num_bytes

    def encode(self, x_TD: Tensor, context: CodecContext, memory: Memory = ()) -> bytes:
        """Return the body: the last stage's values row by row, then each stage's side numbers."""
        contexts = self._contexts(context, memory, len(x_TD))
        rows = encode_rows(self.stages, x_TD.detach().to(self._compute_dtype), contexts)
        values = rows.values
        if self.number_format == torch.float16 and values.dtype != torch.float16:
            limit = torch.finfo(torch.float16).max
            values = values.clamp(-limit, limit)
        return b"".join(tensor_bytes(tensor) for tensor in [values.to(self.number_format), *rows.side])

    def decode(
        self, body: bytes | memoryview, num_rows: int, width: int, context: CodecContext, memory: Memory = ()
    ) -> Tensor:
        """Return the rows [T, D] that the receiver sees, in fp32 (fp64 if that is the wire's format)."""
        reader = Reader(body)
        _, *behind = counts = rows_of(self.stages, num_rows)
        values = reader.take(self.number_format, counts[-1], widths_of(self.stages, width)[-1])
        layouts = zip(behind, side_layouts(self.stages, width, num_rows), strict=True)
        side = tuple(reader.take(dtype, own_rows, count) for own_rows, layout in layouts for dtype, count in layout)
        if not self.stages or self.stages[-1].number_format is None:
            values = values.to(self._compute_dtype)
        contexts = self._contexts(context, memory, num_rows)
        received_TD = decode_rows(self.stages, Rows(values, side), width, contexts)
        return received_TD.to(self._compute_dtype)

    def backward(self, x_TD: Tensor, gradient_TD: Tensor, context: CodecContext, memory: Memory = ()) -> Tensor:
        """Return the gradient at the sender's input from the one at the receiver's reconstruction.

        Straight-through stages pass it unchanged; the others take the adjoint of their encode and decode at ``x_TD``,
        both with what this end holds. Where a key is held by one end only, the gradient chain has turned the gradient
        by it already, and what is left is this adjoint.
        """
        if self.is_straight_through:
            return gradient_TD
        with torch.enable_grad():
            x = x_TD.detach().to(self._compute_dtype).requires_grad_()
            through = self._differentiable(x, 0, self._contexts(context, memory, len(x)))
            (gradient,) = torch.autograd.grad(through, x, gradient_TD.to(x.dtype))
        return gradient

    def calibrate(self, x_TD: Tensor, context: CodecContext, held: Memory, makers: frozenset[Maker]) -> Memory:
        """Return what this end holds once the calibrations of some makers are made of some rows.

        Each stage sees the rows as the stages in front of it encode them, without those that are not finite. Its
        calibration is rounded as it will travel, so that both ends hold the same numbers.

        Args:
            x_TD: the rows.
            context: of the moment.
            held: what this end holds before; kept for all stages of other makers.
            makers: whose calibrations are made.
        """
        memory = list(self.memory_of_all(held))
        # Failed rows are left out first: else they would take the place of others in a stage that sends few rows.
        values = finite_rows(x_TD.detach().to(self._compute_dtype)).to(self._compute_dtype)
        for position in range(max(self.calibrated, default=-1) + 1):
            stage, here = self.stages[position], replace(context, memory=(), num_rows=len(values))
            if stage.calibration is not None and stage.calibration.maker in makers:
                layout = stage.calibration_layout(values.shape[1])
                made = stage.calibrate(values, here)
                memory[position] = tuple(t.to("cpu", dtype) for t, (dtype, _) in zip(made, layout, strict=True))
            values = stage.encode(values, replace(here, memory=memory[position])).values
        return tuple(memory)

    @property
    def remembers_error(self) -> bool:
        """Whether the sender adds to each message what the last one has lost; such a stage is the chain's only one."""
        return any(isinstance(stage, Residual) for stage in self.stages)

    def memory_after(self, x_TD: Tensor, context: CodecContext, memory: Memory = ()) -> Memory:
        """Return what the sender holds after it has encoded ``x_TD``: () if the chain remembers no error."""
        residual = next((stage for stage in self.stages if isinstance(stage, Residual)), None)
        if residual is None:
            return ()
        num_rows, width = x_TD.shape
        received_TD = self.decode(self.encode(x_TD, context, memory), num_rows, width, context)
        (own,) = self._contexts(context, memory, num_rows)
        return ((residual.error_after(x_TD.detach().to(received_TD), received_TD, own),),)

    def memory_of_all(self, held: Memory) -> Memory:
        """Return ``held`` with an entry for each stage, if it stands for nothing at all."""
        return held if held else ((),) * len(self.stages)

    def _contexts(self, context: CodecContext, memory: Memory, num_rows: int) -> list[CodecContext]:
        *in_front, _ = rows_of(self.stages, num_rows)
        in_order = zip(in_front, self.memory_of_all(memory), strict=True)
        return [replace(context, memory=own, num_rows=own_rows) for own_rows, own in in_order]

    def _differentiable(self, x_TD: Tensor, position: int, contexts: Sequence[CodecContext]) -> Tensor:
        """Encode and decode by the stages from ``position`` on, as autograd shall see it."""
        if position == len(self.stages):
            return x_TD
        stage, context = self.stages[position], contexts[position]
        if stage.straight_through:
            # To autograd it is the identity; where it changes the shape, so is everything behind it.
            num_rows, width = x_TD.shape
            same_shape = (stage.rows_out(num_rows), stage.width_out(width)) == (num_rows, width)
            return self._differentiable(x_TD, position + 1, contexts) if same_shape else x_TD
        rows = stage.encode(x_TD, context)
        inner = self._differentiable(rows.values, position + 1, contexts)
        return stage.decode(Rows(inner, rows.side), x_TD.shape[1], context)


def build_chain(specs: Sequence[CodecSpec], wire_dtype: str, where: str, *, for_adapters: bool = False) -> CodecChain:
    """Build the chain that a config section describes.

    Args:
        specs: the codecs in the sender's order.
        wire_dtype: format of the numbers where the codecs leave floats.
        where: the config field, for errors.
        for_adapters: whether it is for adapters, or for activations and gradients.

    Raises:
        InputError: a codec is unknown, its parameters are wrong, or it stands where it must not.
    """
    stages = build_stages(specs, where, BUILT_IN)
    chain = CodecChain(stages, wire_dtype, [spec.model_dump() for spec in specs])
    if chain.remembers_error and not for_adapters:
        raise InputError(where, "residual", "it for adapters only: no two activations are of the same tokens")
    if chain.remembers_error and len(stages) > 1:
        raise InputError(where, "residual beside other codecs", "these codecs inside of residual, as its codec")
    if for_adapters and chain.is_calibrated:
        position = chain.calibrated[0]
        raise InputError(f"{where}.{position}", specs[position].kind, "a codec without calibration: adapters have none")
    return chain


def check_matching(activation: CodecChain, gradient: CodecChain, where: str) -> None:
    """Check that gradients can use the calibrations of the activations' chain.

    A gradient chain either has no calibrated stage, or it starts like the activation chain: with the same codecs up to
    its own last calibrated one, so that its rows reach the j-th calibration as the activations' rows have reached it.
    And it must have those of the activations that never leave their maker: only it can turn such a gradient back.

    Args:
        activation: the chain whose calibrations are used.
        gradient: the chain to check.
        where: the config field of the gradient chain, for errors.

    Raises:
        InputError: they do not match.
    """
    own = gradient.stages[: max(gradient.calibrated, default=-1) + 1]
    for stage in [activation.stages[position] for position in activation.calibrated if position >= len(own)]:
        if stage.calibration is not None and stage.calibration.role is None:
            kind = _kind_of(stage)
            raise InputError(where, f"no {kind}", f"the activations' {kind}: its key stays at one end")
    first = activation.stages[: len(own)]
    if [(type(stage), stage.config) for stage in own] != [(type(stage), stage.config) for stage in first]:
        names = ", ".join(_kind_of(stage) for stage in activation.stages[: max(activation.calibrated, default=-1) + 1])
        allowed = (
            f"no calibrated codec, or the activations' own, with the same keys, in front: {names or 'they have none'}"
        )
        raise InputError(where, ", ".join(_kind_of(stage) for stage in own), allowed)


def matching_memory(activation: CodecChain, gradient: CodecChain, memory: Memory) -> Memory:
    """Return the gradient chain's memory at a cut: its j-th calibrated stage has that of the activations' j-th.

    Args:
        activation, gradient: chains that ``check_matching`` has accepted.
        memory: what this end holds for the activation chain at that cut.
    """
    if not (gradient.is_calibrated and memory):
        return ()
    source = dict(zip(gradient.calibrated, activation.calibrated, strict=False))
    return tuple(memory[source[i]] if i in source else () for i in range(len(gradient.stages)))


def _kind_of(stage: Codec) -> str:
    return str(getattr(stage.config, "kind", type(stage).__name__))


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's numbers as they are written."""
    tensor = tensor.contiguous().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().tobytes()


class Reader:
    """Cuts tensors from the front of a body."""

    def __init__(self, body: bytes | memoryview) -> None:
        self._body = memoryview(body)

    def take(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return the next tensor: a copy, for the payload is read-only memory and the tensor may be written to."""
        length = dtype.itemsize * math.prod(shape)
        piece, self._body = self._body[:length], self._body[length:]
        return (
            torch.frombuffer(bytearray(piece), dtype=dtype).reshape(shape)
            if length
            else torch.empty(shape, dtype=dtype)
        )
