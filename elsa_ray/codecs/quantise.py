"""Send each number as a small integer, scaled by the largest magnitude of its row or of its group in the row.

Shapes: T rows, D width, G groups a row, N numbers a group, E width on the wire.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.config.section import Section
from elsa_ray.tasks.seeds import numpy_generator

SCALE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class QuantiseConfig(Section):
    """How numbers are rounded, and what shares a scale."""

    rounding: Literal["nearest", "stochastic"] = "nearest"
    """``stochastic`` rounds up with the probability of the fraction: unbiased, by fresh numbers for each message."""
    group: int | None = Field(default=None, ge=1)
    """Numbers a scale, within a row; the row's last group may have fewer. Null is the whole row."""
    scale_dtype: Literal["fp32", "fp16"] = "fp32"
    """How a scale is sent. fp16 rounds it up, to 6e-8 at least, and clamps it at 65504."""


class Quantiser(Codec):
    """Symmetric absolute-maximum quantisation: q = x / scale, rounded, with scale = max|x| / L for levels -L..L.

    The error is at most scale / 2 (nearest), or below scale (stochastic). A group with a number that is not finite
    decodes to NaN throughout, so that the receiver sees the failure.
    """

    levels: ClassVar[int]

    def __init__(self, config: QuantiseConfig) -> None:
        super().__init__(config)
        self.unbiased = config.rounding == "stochastic"

    def side_layout(self, width: int) -> tuple[tuple[torch.dtype, int], ...]:
        """One scale a group."""
        return ((SCALE_DTYPES[self.config.scale_dtype], -(-width // self._group(width))),)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return integers and scales."""
        num_rows, width = x_TD.shape
        x_TGN = self._in_groups(x_TD)
        scale_TG = self._scales(x_TGN)
        used_TG1 = scale_TG.to(torch.float32)[:, :, None]
        scaled_TGN = x_TGN / torch.where(used_TG1 > 0, used_TG1, torch.ones_like(used_TG1))
        if self.config.rounding == "stochastic":
            generator = numpy_generator("stochastic-rounding", *context.moment)
            uniform_TD = torch.from_numpy(generator.random((num_rows, width), dtype="float32"))
            rounded_TGN = (scaled_TGN + self._in_groups(uniform_TD).to(scaled_TGN)).floor()
        else:
            rounded_TGN = scaled_TGN.round()
        levels_TGN = torch.nan_to_num(rounded_TGN.clamp(-self.levels, self.levels))
        return Rows(self._pack(levels_TGN.flatten(1)[:, :width].to(torch.int8)), (scale_TG,))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Multiply the integers by their group's scale."""
        (scale_TG,) = rows.side
        scale_TG = scale_TG.to(torch.float32)
        finite_TG = torch.where(scale_TG.isfinite(), scale_TG, torch.full_like(scale_TG, torch.nan))
        x_TGN = self._in_groups(self._unpack(rows.values, width).to(torch.float32)) * finite_TG[:, :, None]
        return x_TGN.flatten(1)[:, :width]

    def _pack(self, levels_TD: Tensor) -> Tensor:
        """Return the integers [T, E] to send."""
        return levels_TD

    def _unpack(self, packed_TE: Tensor, width: int) -> Tensor:
        """Return the integers [T, D]."""
        return packed_TE

    def _group(self, width: int) -> int:
        return min(self.config.group or width, width)

    def _in_groups(self, x_TD: Tensor) -> Tensor:
        """Return the rows as [T, G, N], zeros behind the last number."""
        num_rows, width = x_TD.shape
        size = self._group(width)
        padded = torch.nn.functional.pad(x_TD, (0, -width % size))
        return padded.reshape(num_rows, -(-width // size), size)

    def _scales(self, x_TGN: Tensor) -> Tensor:
        scale_TG = x_TGN.abs().amax(dim=2).to(torch.float32) / self.levels
        if self.config.scale_dtype == "fp32":
            return scale_TG
        # Rounded up: with a smaller scale the largest number would not fit.
        largest = torch.finfo(torch.float16).max
        half_TG = torch.where(scale_TG.isfinite(), scale_TG.clamp(max=largest), scale_TG).to(torch.float16)
        too_small_TG = half_TG.to(torch.float32) < scale_TG.clamp(max=largest)
        return (half_TG.view(torch.int16) + too_small_TG.to(torch.int16)).view(torch.float16)


class Int8(Quantiser):
    """A signed byte a number, -127..127."""

    class Config(QuantiseConfig):
        """Rounding, groups, scales."""

        kind: Literal["int8"] = "int8"

    number_format = torch.int8
    levels = 127


class Int4(Quantiser):
    """Half a byte a number, -7..7; two share a byte, the first in its low half. An odd width gets a zero behind it."""

    class Config(QuantiseConfig):
        """Rounding, groups, scales."""

        kind: Literal["int4"] = "int4"

    number_format = torch.uint8
    levels = 7

    def width_out(self, width: int) -> int:
        """Bytes a row."""
        return -(-width // 2)

    def _pack(self, levels_TD: Tensor) -> Tensor:
        halves_TE2 = torch.nn.functional.pad(levels_TD & 15, (0, levels_TD.shape[1] % 2)).unflatten(1, (-1, 2))
        return (halves_TE2[..., 0] | halves_TE2[..., 1] << 4).view(torch.uint8)

    def _unpack(self, packed_TE: Tensor, width: int) -> Tensor:
        signed_TE = packed_TE.view(torch.int8)
        # Shifting to the left and back copies a half's sign bit.
        return torch.stack([signed_TE << 4 >> 4, signed_TE >> 4], dim=2).flatten(1)[:, :width]
