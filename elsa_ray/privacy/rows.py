"""Vectors of tokens, as a model computes them or a payload shows them, and their sums over texts.

Shapes: T real tokens, N texts, B texts of a batch, S tokens of its longest, D hidden width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRows:
    """One vector for each real token of some texts.

    Attributes:
        rows_TD: hidden states or gradients.
        ids_T: token ids.
        text_T: index of the text that each token stands in.
    """

    rows_TD: Tensor
    ids_T: Tensor
    text_T: Tensor

    def __len__(self) -> int:
        return len(self.ids_T)

    def without(self, ids: Collection[int]) -> TokenRows:
        """Leave out the tokens of some ids: special ones stand where anybody knows them to stand."""
        return self.where(~torch.isin(self.ids_T, torch.tensor(sorted(ids), dtype=torch.int64)))

    def where(self, kept_T: Tensor) -> TokenRows:
        """Keep the tokens that a mask says."""
        return TokenRows(self.rows_TD[kept_T], self.ids_T[kept_T], self.text_T[kept_T])


def real_rows(values_BSD: Tensor, ids_BS: Tensor, lengths_B: Tensor, text_B: Tensor) -> TokenRows:
    """Return the rows of a batch's real tokens, text by text; all on the CPU."""
    lengths_B = lengths_B.cpu()
    is_real_BS = torch.arange(values_BSD.shape[1]) < lengths_B[:, None]
    text_T = text_B.repeat_interleave(lengths_B)
    return TokenRows(values_BSD.detach().cpu()[is_real_BS], ids_BS.cpu()[is_real_BS].long(), text_T)


def joined(pieces: Sequence[TokenRows]) -> TokenRows:
    """Return the rows of several batches one after another."""
    return TokenRows(
        torch.cat([piece.rows_TD for piece in pieces]),
        torch.cat([piece.ids_T for piece in pieces]),
        torch.cat([piece.text_T for piece in pieces]),
    )


def summed_by_text(rows_TD: Tensor, text_T: Tensor, num_texts: int) -> Tensor:
    """Return the sum [N, D] of each text's rows."""
    return rows_TD.new_zeros(num_texts, rows_TD.shape[1]).index_add_(0, text_T, rows_TD)


def mean_by_text(rows_TD: Tensor, text_T: Tensor, num_texts: int) -> Tensor:
    """Return the mean [N, D] of each text's rows; zero for a text without any."""
    return summed_by_text(rows_TD, text_T, num_texts) / text_T.bincount(minlength=num_texts).clamp(min=1)[:, None]
