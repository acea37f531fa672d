"""Send the largest rows of a message, and where they stand.

The project's own codec, none of the paper's.
Shapes: T rows, K rows kept, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.codecs.shares import count_of_share
from elsa_ray.config.section import Section

_HALF_INDEX = 2**16  # rows that 16 bits tell apart


class LargestRows(Codec):
    """Keep the K = ceil(share · T) rows of the largest norm, the lower index first among equals; the rest are 0.

    For gradients: a token whose row is left out gets none. For activations it makes no sense: each row is needed.

    The kept rows go on as floats, in the order of their indices, so that a further codec may shrink them. A row with a
    number that is not finite counts as the largest, so that the receiver sees the failure.
    """

    class Config(Section):
        """How much is kept."""

        kind: Literal["rows"] = "rows"
        share: float = Field(default=0.25, gt=0, le=1)
        """Of a message's rows, padding among them."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.linear = self.unbiased = self.lossless = config.share == 1

    def rows_out(self, num_rows: Any) -> Any:
        """K."""
        return count_of_share(self.config.share, num_rows)

    def side_layout_for(self, width: int, num_rows: Any) -> tuple[tuple[torch.dtype, Any], ...]:
        """A kept row's index, of 2 bytes up to 65,536 rows, else of 4: its lower half, then its upper one."""
        return ((torch.uint16, 1 + (num_rows > _HALF_INDEX)),)

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the kept rows and their indices, both by rising index."""
        num_rows, width = x_TD.shape
        norm_T = x_TD.detach().to(torch.float64).square().sum(dim=1)
        size_T = torch.where(norm_T.isfinite(), norm_T, torch.inf)
        order_T = size_T.sort(descending=True, stable=True).indices
        index_K = order_T[: self.rows_out(num_rows)].sort().values
        ((dtype, halves),) = self.side_layout_for(width, num_rows)
        half_K2 = torch.stack([index_K % _HALF_INDEX, index_K // _HALF_INDEX], dim=1)
        return Rows(x_TD[index_K], (half_K2[:, :halves].to(dtype),))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Put the kept rows back to their places among zeros."""
        (half_K2,) = rows.side
        place = _HALF_INDEX ** torch.arange(half_K2.shape[1])
        index_K = (half_K2.cpu().to(torch.int64) * place).sum(dim=1).to(rows.values.device)
        zeros_TD = rows.values.new_zeros(context.num_rows, width)
        return zeros_TD.index_copy(0, index_K, rows.values)
