"""The codec that changes nothing."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.config.section import Section


class Identity(Codec):
    """Send the numbers as they are."""

    class Config(Section):
        """No parameters."""

        kind: Literal["identity"] = "identity"

    linear = True
    unbiased = True
    lossless = True
    straight_through = False

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the input."""
        return Rows(x_TD)

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return the input."""
        return rows.values
