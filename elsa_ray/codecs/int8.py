"""Send each number as a signed byte, scaled by its row's largest magnitude."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.config.section import Section


class Int8(Codec):
    """Symmetric absolute-maximum quantisation per row (token): q = round(127 x / max|x|), error at most max|x| / 254.

    A row with a number that is not finite decodes to NaN throughout, so that the receiver sees the failure.
    """

    class Config(Section):
        """No parameters."""

        kind: Literal["int8"] = "int8"

    number_format = torch.int8

    def side_layout(self, width: int) -> tuple[tuple[torch.dtype, int], ...]:
        """One fp32 scale a row."""
        return ((torch.float32, 1),)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return bytes and scales."""
        scale_T1 = x_TD.abs().amax(dim=1, keepdim=True).to(torch.float32) / 127
        divisor_T1 = torch.where(scale_T1 > 0, scale_T1, torch.ones_like(scale_T1))
        quantised_TD = torch.nan_to_num((x_TD / divisor_T1).round().clamp(-127, 127))
        return Rows(quantised_TD.to(torch.int8), (scale_T1,))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Multiply the bytes by their row's scale."""
        (scale_T1,) = rows.side
        finite_T1 = torch.where(scale_T1.isfinite(), scale_T1, torch.full_like(scale_T1, torch.nan))
        return rows.values.to(torch.float32) * finite_T1
