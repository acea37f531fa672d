from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.dataset import Examples
from elsa_ray.tasks.tokenizers import train_wordpiece
from elsa_ray.tasks.tokens import TokenizedTexts, pad_batch, tokenize

from .helpers import TEXTS

CLASSIFIER = train_wordpiece(TEXTS, 300)
CAUSAL = train_wordpiece(TEXTS, 300, causal=True)


def examples(texts: list[str], labels: list[int] | None = None) -> Examples:
    label_ids = None if labels is None else np.array(labels, dtype=np.int64)
    rows = np.arange(len(texts)) + 10
    return Examples(texts, label_ids, ("a", "b") if labels is not None else (), {}, "train.jsonl", rows)


def test_texts_are_kept_one_after_the_other() -> None:
    tokens = tokenize(CLASSIFIER, examples(TEXTS, [0, 1] * 12), 64, "classification")
    assert len(tokens) == len(TEXTS)
    assert (tokens.token_ids.dtype, tokens.offsets.dtype, tokens.lengths.dtype) == (np.int32, np.int64, np.int64)
    assert tokens.lengths.sum() == len(tokens.token_ids)
    for index, text in enumerate(TEXTS):
        assert tokens.ids(index).tolist() == CLASSIFIER(text)["input_ids"]
    assert tokens.labels is not None
    assert tokens.labels.tolist() == [0, 1] * 12


@pytest.mark.parametrize("max_length", [3, 5, 8])
def test_long_texts_are_cut_inside_their_frame(max_length: int) -> None:
    tokens = tokenize(CLASSIFIER, examples(TEXTS, [0] * 24), max_length, "classification")
    assert tokens.lengths.max() == max_length
    for index in range(len(tokens)):
        ids = tokens.ids(index)
        assert (ids[0], ids[-1]) == (CLASSIFIER.cls_token_id, CLASSIFIER.sep_token_id)


def test_causal_texts_end_unless_cut() -> None:
    tokens = tokenize(CAUSAL, examples(["the dog", "the lazy dog jumps over"]), 4, "causal_lm")
    end = CAUSAL.eos_token_id
    assert tokens.ids(0).tolist() == [*CAUSAL("the dog")["input_ids"], end]
    assert tokens.ids(1).tolist() == CAUSAL("the lazy dog jumps over")["input_ids"][:4]
    assert tokens.labels is None


def test_no_texts_give_no_tokens() -> None:
    tokens = tokenize(CLASSIFIER, examples([], []), 8, "classification")
    assert (len(tokens), tokens.offsets.tolist(), len(tokens.token_ids)) == (0, [0], 0)


@pytest.mark.parametrize("text", ["", "   ", "\u200b"])
def test_a_text_without_anything_to_predict_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"train.jsonl row 11: found a text of 1 tokens; allowed: at least 2"):
        tokenize(CAUSAL, examples(["the dog", text]), 8, "causal_lm")


@pytest.mark.parametrize(
    ("tokenizer", "kind", "max_length", "least"),
    [(CLASSIFIER, "classification", 1, 3), (CLASSIFIER, "classification", 2, 3), (CAUSAL, "causal_lm", 1, 2)],
)
def test_max_length_leaves_room_for_text(tokenizer: Any, kind: Any, max_length: int, least: int) -> None:
    with pytest.raises(InputError, match=f"task.max_length: found {max_length}; allowed: at least {least} "):
        tokenize(tokenizer, examples(TEXTS, None), max_length, kind)
    tokenize(tokenizer, examples(["the dog"], None), least, kind)


ragged = st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=9), min_size=1, max_size=8)


@settings(deadline=None)
@given(ragged, st.data())
def test_batches_are_padded_at_the_right(texts: list[list[int]], data: st.DataObject) -> None:
    offsets = np.cumsum([0, *map(len, texts)])
    tokens = TokenizedTexts(np.concatenate(texts).astype(np.int32), offsets, None)
    indices_B = np.array(data.draw(st.lists(st.integers(-1, len(texts) - 1), min_size=1, max_size=6)))
    length = data.draw(st.integers(9, 12))
    ids_BS, mask_BS = pad_batch(tokens, indices_B, length, pad_id=-7)
    assert (ids_BS.dtype, mask_BS.dtype) == (np.int64, np.bool_)
    assert ids_BS.shape == mask_BS.shape == (len(indices_B), length)
    for row, index in enumerate(indices_B):
        text = [] if index < 0 else texts[index]
        assert ids_BS[row].tolist() == text + [-7] * (length - len(text))
        assert mask_BS[row].tolist() == [True] * len(text) + [False] * (length - len(text))


def test_a_text_that_does_not_fit_is_refused() -> None:
    tokens = TokenizedTexts(np.arange(5, dtype=np.int32), np.array([0, 5]), None)
    with pytest.raises(ValueError, match="5 tokens does not fit into 4"):
        pad_batch(tokens, np.array([0]), 4, 0)
