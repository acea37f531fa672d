"""Texts as token ids, kept ragged, and batches of them padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.dataset import Examples, TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Shapes: N texts, F tokens of all texts together, B texts of a batch, S tokens a text is padded to.


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of N texts, one after the other; text i is ``token_ids[offsets[i]:offsets[i + 1]]``."""

    token_ids: np.ndarray
    """int32 [F]."""
    offsets: np.ndarray
    """int64 [N + 1], from 0 to F."""
    labels: np.ndarray | None
    """int64 [N]; None for causal_lm."""

    def __len__(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: tokens of each text, special tokens included."""
        return np.diff(self.offsets)

    def ids(self, index: int) -> np.ndarray:
        """Return the token ids of one text, int32 (a view)."""
        return self.token_ids[self.offsets[index] : self.offsets[index + 1]]


def tokenize(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, kind: TaskKind) -> TokenizedTexts:
    """Tokenise texts with the tokenizer's own special tokens, each cut to ``max_length`` tokens.

    For ``causal_lm``, the tokenizer's end-of-text token is added where there is room for it, that is unless the text
    was cut; a text needs at least two tokens then, since one alone predicts nothing.

    Raises:
        InputError: ``max_length`` leaves no room for text, or a text has too few tokens (the message names its row).
    """
    least = 2 if kind == "causal_lm" else 1
    room = max_length - tokenizer.num_special_tokens_to_add()
    if room < 1 or max_length < least:
        needed = max(max_length - room + 1, least)
        raise InputError("task.max_length", max_length, f"at least {needed} with this tokenizer")
    if not examples.texts:
        return ragged([], examples.labels)
    encoded: list[list[int]] = tokenizer(
        examples.texts,
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    if kind == "causal_lm" and tokenizer.eos_token_id is not None:
        encoded = [_ended(ids, tokenizer.eos_token_id, max_length) for ids in encoded]
    for index, ids in enumerate(encoded):
        if len(ids) < least:
            raise InputError(examples.where(index), f"a text of {len(ids)} tokens", f"at least {least} for {kind}")
    return ragged(encoded, examples.labels)


def pad_batch(tokens: TokenizedTexts, indices_B: np.ndarray, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch padded at the right to ``length`` tokens.

    Args:
        tokens: the texts.
        indices_B: int64 [B], positions of texts; -1 makes a row of padding alone.
        length: S.
        pad_id: the token id of padding.

    Returns:
        ids_BS: int64 [B, S], and mask_BS: bool [B, S], true at real tokens.

    Raises:
        ValueError: a text is longer than ``length``.
    """
    present_B = indices_B >= 0
    safe_B = np.where(present_B, indices_B, 0)
    lengths_B = np.where(present_B, tokens.lengths[safe_B], 0)
    if np.any(lengths_B > length):
        raise ValueError(f"a text of {lengths_B.max()} tokens does not fit into {length}")
    position_S = np.arange(length, dtype=np.int64)
    mask_BS = position_S < lengths_B[:, None]
    source_BS = np.where(mask_BS, tokens.offsets[safe_B][:, None] + position_S, 0)
    ids_BS = np.where(mask_BS, tokens.token_ids[source_BS].astype(np.int64), np.int64(pad_id))
    return ids_BS, mask_BS


def _ended(ids: list[int], eos_id: int, max_length: int) -> list[int]:
    has_end = len(ids) > 0 and ids[-1] == eos_id
    return ids if has_end or len(ids) >= max_length else [*ids, eos_id]


def ragged(encoded: list[list[int]], labels: np.ndarray | None) -> TokenizedTexts:
    """Put lists of token ids one after the other."""
    lengths_N = np.array([len(ids) for ids in encoded], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths_N, dtype=np.int64)])
    flat_F = np.fromiter((token for ids in encoded for token in ids), dtype=np.int32, count=int(offsets[-1]))
    return TokenizedTexts(flat_F, offsets, labels)
