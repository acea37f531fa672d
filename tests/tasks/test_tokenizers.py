from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from elsa_ray.tasks.tokenizers import SPECIAL_TOKENS, train_wordpiece

from .helpers import TEXTS, run_python

TRAIN = """
from elsa_ray.tasks.tokenizers import train_wordpiece
from tests.tasks.helpers import digest
words = [f"word{i * i % 97}x{i % 13}y{i * 7}" for i in range(400)]
texts = [" ".join(words[i : i + 9]) for i in range(0, 400, 3)] + ["q\\u00e4 \\u6f22 tie1 tie2 eit1 eit2"]
print(digest(sorted(train_wordpiece(texts, 600).get_vocab().items())))
"""


def test_vocabulary_is_the_same_in_every_process() -> None:
    first = run_python(TRAIN, PYTHONHASHSEED="1", RAYON_NUM_THREADS="1")
    second = run_python(TRAIN, PYTHONHASHSEED="2", RAYON_NUM_THREADS="4")
    assert first == second


def test_training_twice_gives_the_same_vocabulary() -> None:
    vocabularies = [train_wordpiece(TEXTS, 150).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)


def test_texts_are_wrapped_and_folded() -> None:
    tokenizer = train_wordpiece(TEXTS, 400)
    ids = tokenizer("The CAPITALS, ünïcode!")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "capitals", ",", "unicode", "!", "[SEP]"]
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id == 0
    assert tokenizer.eos_token_id is None
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_rare_characters_are_unknown_and_common_words_are_whole() -> None:
    tokenizer = train_wordpiece(TEXTS, 400)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("graphs 漢")["input_ids"])
    assert tokens == ["[CLS]", "graphs", "[UNK]", "[SEP]"]


def test_causal_texts_have_an_end_but_no_frame() -> None:
    tokenizer = train_wordpiece(TEXTS, 400, causal=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the dog")["input_ids"]) == ["the", "dog"]
    assert tokenizer.eos_token == "[SEP]"
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("texts", [[], [""], ["a"], ["日本語" * 30, "x y z"], TEXTS])
@pytest.mark.parametrize("vocab_size", [16, 40, 200])
def test_vocabulary_is_never_larger_than_asked(texts: list[str], vocab_size: int) -> None:
    vocabulary = train_wordpiece(texts, vocab_size).get_vocab()
    assert len(SPECIAL_TOKENS) <= len(vocabulary) <= vocab_size
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_saved_tokenizer_is_read_back(tmp_path: Path, causal: bool) -> None:
    tokenizer = train_wordpiece(TEXTS, 200, causal=causal)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
