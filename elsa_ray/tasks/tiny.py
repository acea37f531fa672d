"""The three small, randomly initialised models: a BERT, a Llama and a GPT-2."""

from __future__ import annotations

from collections.abc import Callable

from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig

LAYERS, WIDTH, HEADS, KEY_VALUE_HEADS, INNER_WIDTH, POSITIONS = 4, 64, 4, 2, 128, 512

INITIALIZER_RANGE = WIDTH**-0.5
"""Keeps the size of activations through a layer, so that a backbone that stays frozen still tells texts apart."""


def _bert(vocab_size: int) -> PreTrainedConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER_WIDTH,
        max_position_embeddings=POSITIONS,
        initializer_range=INITIALIZER_RANGE,
    )


def _llama(vocab_size: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        intermediate_size=INNER_WIDTH,
        max_position_embeddings=POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=False,
        bos_token_id=None,  # the family's own numbers lie outside of a small vocabulary
        eos_token_id=None,
    )


def _gpt2(vocab_size: int) -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=INNER_WIDTH,
        n_positions=POSITIONS,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=False,
        bos_token_id=None,  # the family's own numbers lie outside of a small vocabulary
        eos_token_id=None,
    )


TINY_MODELS: dict[str, Callable[[int], PreTrainedConfig]] = {"tiny": _bert, "tiny_llama": _llama, "tiny_gpt2": _gpt2}
"""Of each name, the config of that model for a vocabulary of a size."""
