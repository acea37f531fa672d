"""Send the largest numbers of each row, and where they stand.

Shapes: T rows, D width, K numbers kept a row.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.codecs.shares import count_of_share
from elsa_ray.config.section import Section


class TopK(Codec):
    """Keep the K = ceil(share · D) largest magnitudes of each row, the lower index first among equals; the rest is 0.

    The kept numbers go on as floats, in the order of their indices, so that a further codec may quantise them. A number
    that is not one counts as the largest, so that the receiver sees the failure.
    """

    class Config(Section):
        """How much is kept."""

        kind: Literal["topk"] = "topk"
        share: float = Field(default=0.1, gt=0, le=1)
        """Of each row's numbers."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.linear = self.unbiased = self.lossless = config.share == 1

    def width_out(self, width: int) -> int:
        """K; the share is read as the decimal number that was written, so that 0.1 of 30 is 3."""
        return int(count_of_share(self.config.share, width))

    def side_layout(self, width: int) -> tuple[tuple[torch.dtype, int], ...]:
        """An index for each kept number, of 2 bytes up to a width of 65,536."""
        return ((torch.uint16 if width <= 2**16 else torch.int32, self.width_out(width)),)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the kept numbers and their indices, both by rising index."""
        width = x_TD.shape[1]
        order_TD = x_TD.detach().abs().sort(dim=1, descending=True, stable=True).indices
        index_TK = order_TD[:, : self.width_out(width)].sort(dim=1).values
        ((dtype, _),) = self.side_layout(width)
        return Rows(x_TD.gather(1, index_TK), (index_TK.to(dtype),))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Put the kept numbers back to their places among zeros."""
        (index_TK,) = rows.side
        zeros_TD = rows.values.new_zeros(len(rows.values), width)
        return zeros_TD.scatter(1, index_TK.to(rows.values.device, torch.int64), rows.values)
