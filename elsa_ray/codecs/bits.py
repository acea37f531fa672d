"""Send each number of a row with as many bits as its dimension's variance is worth: transform coding's quantiser.

The project's own codec, none of the paper's; the allocation is the textbook's reverse water-filling in whole bits.
Shapes: T rows, D width, B bits, N bits used a row, E bytes a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Calibration, Codec, CodecContext, Maker, Rows, Tensors
from elsa_ray.codecs.subspaces import finite_rows
from elsa_ray.config.section import Section
from elsa_ray.world.roles import Role

STEPS = (0.0, 1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.05687, 0.03076)
"""Step of the uniform midrise quantiser of 0..8 bits that is best for a Gaussian number of variance 1."""
DISTORTIONS = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001040, 0.0003043, 0.00008769)
"""Its mean squared error."""


class Bits(Codec):
    """Send k = floor(x / s) of b bits, decoded as (k + 1/2) s with s = gain · deviation · step of b bits.

    Both ends hold each dimension's deviation and its bits b, made of some rows; a dimension of 0 bits decodes to 0.
    Each row sends its own gain: the root mean square of x / deviation where there are bits. So a row may be of another
    size than those of the calibration. A row with a number that is not finite decodes to NaN throughout.
    """

    class Config(Section):
        """Bits a row, how long their allocation serves."""

        kind: Literal["bits"] = "bits"
        bits_per_row: int = Field(default=352, ge=1)
        """Given out to the row's numbers; without those of the gain, which has 16."""
        max_bits: int = Field(default=8, ge=1, le=8)
        """Most that a number gets."""
        refresh_rounds: int = Field(default=1, ge=1)
        """Global rounds that deviations and bits serve."""

    number_format = torch.uint8

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.calibration = Calibration(Maker.SENDER, Role.BASIS, config.refresh_rounds)

    def width_out(self, width: int) -> int:
        """Bytes a row; bits that no dimension is worth are zero padding."""
        return -(-int(self.config.bits_per_row) // 8)

    def side_layout(self, width: int) -> tuple[tuple[torch.dtype, int], ...]:
        """The gain, in bf16: the range of fp32 for gradients of any size; encoder and decoder use the rounded one."""
        return ((torch.bfloat16, 1),)

    def calibration_layout(self, width: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Deviations [D] and bits [D]."""
        return (torch.float16, (width,)), (torch.uint8, (width,))

    def calibrate(self, x_TD: Tensor, context: CodecContext) -> Tensors:
        """Return each dimension's root mean square, as it travels, and the bits that it is worth."""
        rows_TD = finite_rows(x_TD)
        deviation_D = (rows_TD.square().sum(dim=0) / max(len(rows_TD), 1)).sqrt()
        rounded_D = deviation_D.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
        return rounded_D, allocate(rounded_D, self.config.bits_per_row, self.config.max_bits)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the packed levels and gains."""
        deviation_D, bits_D = self._held(x_TD, context)
        used_D = bits_D > 0
        ratio_TN = x_TD[:, used_D].to(torch.float64) / deviation_D[used_D].to(torch.float64)
        gain_T1 = (ratio_TN.square().sum(dim=1, keepdim=True) / max(ratio_TN.shape[1], 1)).sqrt()
        gain_T1 = gain_T1.clamp(max=torch.finfo(torch.bfloat16).max).to(torch.bfloat16)
        gain_T1 = torch.where(x_TD.isfinite().all(dim=1, keepdim=True), gain_T1, torch.nan)
        scale_TD = gain_T1.to(x_TD) * _units(deviation_D, bits_D)
        level_TD = (x_TD / torch.where(scale_TD > 0, scale_TD, 1)).floor() + _half(bits_D)
        clamped_TD = torch.nan_to_num(level_TD).clamp(torch.zeros_like(bits_D), 2**bits_D - 1)
        return Rows(pack(clamped_TD.to(torch.uint8), bits_D, self.width_out(x_TD.shape[1])), (gain_T1,))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return the middle of each number's interval."""
        (gain_T1,) = rows.side
        deviation_D, bits_D = self._held(gain_T1.to(torch.float32), context)
        middle_TD = unpack(rows.values, bits_D).to(torch.float32) - _half(bits_D) + 0.5
        # The unit of a dimension without bits is 0: it decodes to 0, and to NaN where the gain tells of a failure.
        return middle_TD * _units(deviation_D, bits_D) * gain_T1.to(torch.float32)

    def _held(self, like: Tensor, context: CodecContext) -> tuple[Tensor, Tensor]:
        if not context.memory:
            raise ValueError(f"no deviations for {context.role or 'a message'}: a bits codec needs them at both ends")
        deviation_D, bits_D = context.memory
        return deviation_D.to(like), bits_D.to(like.device, torch.int64)


def allocate(deviation_D: Tensor, bits_per_row: int, max_bits: int) -> Tensor:
    """Return the bits [D] of each dimension that give the least mean squared error of Gaussian rows.

    Bit by bit to the dimension whose error falls most by it, the lower index first among equals. The falls of one
    dimension decrease, so the largest falls of all are those that this takes. A dimension of deviation 0 gets none.
    """
    distortion_B = torch.tensor(DISTORTIONS[: max_bits + 1], dtype=torch.float64)
    fall_DB = deviation_D.to("cpu", torch.float64).square()[:, None] * (distortion_B[:-1] - distortion_B[1:])
    taken = fall_DB.flatten().sort(descending=True, stable=True).indices[:bits_per_row]
    is_given_DB = torch.zeros(fall_DB.numel(), dtype=torch.bool).index_fill(0, taken, True).reshape(fall_DB.shape)
    return (is_given_DB & (fall_DB > 0)).sum(dim=1).to(torch.uint8)


def pack(level_TD: Tensor, bits_D: Tensor, num_bytes: int) -> Tensor:
    """Return bytes [T, E] of each dimension's lowest bits, one dimension after another, the low bit first."""
    dimension_N, place_N = _bits_in_order(bits_D)
    bit_TN = level_TD[:, dimension_N] >> place_N & 1
    bit_TEB = torch.nn.functional.pad(bit_TN, (0, 8 * num_bytes - len(place_N))).unflatten(1, (num_bytes, 8))
    return (bit_TEB << _places(bits_D)).sum(dim=2, dtype=torch.uint8)


def unpack(packed_TE: Tensor, bits_D: Tensor) -> Tensor:
    """Return the levels [T, D] of what ``pack`` gave."""
    dimension_N, place_N = _bits_in_order(bits_D)
    bit_TN = (packed_TE[:, :, None] >> _places(bits_D) & 1).flatten(1)[:, : len(place_N)]
    level_TD = packed_TE.new_zeros(len(packed_TE), len(bits_D))
    return level_TD.index_add(1, dimension_N, bit_TN << place_N)


def _bits_in_order(bits_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each bit of a row whose it is and its place, counted from the lowest."""
    dimension_N, place_N = (_places(bits_D) < bits_D[:, None]).nonzero(as_tuple=True)
    return dimension_N, place_N.to(torch.uint8)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _units(deviation_D: Tensor, bits_D: Tensor) -> Tensor:
    """Return each dimension's step of a row of gain 1."""
    return deviation_D * torch.tensor(STEPS).to(deviation_D)[bits_D]


def _half(bits_D: Tensor) -> Tensor:
    """Return how many levels are below zero."""
    return 2**bits_D // 2
