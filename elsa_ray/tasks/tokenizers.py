"""A WordPiece tokenizer trained on the task's own text, the same one in every process and on every machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_SIZE = 4096
"""Most entries of a vocabulary, special tokens included."""
_PREFIX = "##"


def train_wordpiece(
    texts: Sequence[str], vocab_size: int = VOCAB_SIZE, *, causal: bool = False
) -> PreTrainedTokenizerFast:
    """Train a lower-case WordPiece vocabulary and wrap it for transformers; ``[PAD]`` is token 0.

    The trainer of the ``tokenizers`` library numbers the single characters in the order of a hash table that differs
    from process to process, and breaks ties between merges by these numbers. So the characters are counted and numbered
    here first; all that is left to the trainer then has one outcome.

    Args:
        texts: the training texts.
        vocab_size: most entries, special tokens included; characters take at most half of them, the most frequent ones.
        causal: no ``[CLS]`` and ``[SEP]`` around a text, and ``[SEP]`` as the end-of-text token; otherwise each text
            becomes ``[CLS] text [SEP]``.
    """
    words = _count_words(texts)
    characters = _frequent_characters(words, at_most=max((vocab_size - len(SPECIAL_TOKENS)) // 4, 1))
    pieces = [piece for character in characters for piece in (character, _PREFIX + character)]
    trained = Tokenizer(WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = WhitespaceSplit()
    # Named as special tokens, the pieces get their numbers before the trainer sees a word.
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *pieces],
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    known = set(characters)
    spelled = {word: count for word, count in words.items() if known.issuperset(word)}
    trained.train_from_iterator(_lines(spelled), trainer)
    return _wrap(trained.get_vocab(), causal=causal)


def _count_words(texts: Sequence[str]) -> dict[str, int]:
    normalizer, splitter = _normalizer(), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    return dict(sorted(counts.items()))


def _frequent_characters(words: dict[str, int], at_most: int) -> list[str]:
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:at_most])


def _lines(words: dict[str, int], words_per_line: int = 64) -> Iterator[str]:
    for word, count in words.items():
        for start in range(0, count, words_per_line):
            yield " ".join([word] * min(words_per_line, count - start))


def _normalizer() -> BertNormalizer:
    return BertNormalizer(lowercase=True)


def _wrap(vocabulary: dict[str, int], *, causal: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder(prefix=_PREFIX)
    if causal:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
        )
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
