"""Send numbers as 16-bit floats."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.config.section import Section


class Cast(Codec):
    """Round each number to fp16 or bf16; overflow of fp16 is clamped to its largest finite number."""

    class Config(Section):
        """The 16-bit format."""

        kind: Literal["cast"] = "cast"
        dtype: Literal["fp16", "bf16"] = "fp16"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.number_format = {"fp16": torch.float16, "bf16": torch.bfloat16}[config.dtype]

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the rounded numbers."""
        assert self.number_format is not None
        limit = torch.finfo(self.number_format).max
        return Rows(x_TD.clamp(-limit, limit).to(self.number_format))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Widen the numbers."""
        return rows.values.to(torch.float32)
