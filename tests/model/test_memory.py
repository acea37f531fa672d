"""The memory of a step: the weights are the real parameters, what waits for backward is what torch saves.

Shapes: B texts, S tokens; A attention width, D hidden width, F inner width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import AdapterLayout, Adapters, AdapterTensor, make_layout
from elsa_ray.model.families import family_of
from elsa_ray.model.memory import (
    OptimizerKind,
    client_memory_bytes,
    edge_frozen_bytes,
    edge_member_bytes,
    edge_memory_bytes,
)
from elsa_ray.model.shape import BlockShape, HeadLayer, LinearShape, ModelShape
from elsa_ray.model.split import Part, Split, whole
from elsa_ray.training.batches import CohortBatch
from elsa_ray.training.client import stack_adapters
from elsa_ray.training.loss import client_losses

from ..helpers import (
    ALL_SPLITS,
    HEADS,
    INNER,
    LABELS,
    LAYERS,
    PAD,
    VOCABULARY,
    WIDTH,
    Lab,
    make_lab,
    model_name,
    small_config,
    split_name,
)

TINY = ModelShape(
    family="by hand",
    num_layers=3,
    hidden_size=2,
    block=BlockShape(
        linears=(
            LinearShape("q", 2, 4, True),  # 12 numbers
            LinearShape("k", 2, 4, False),  # 8
            LinearShape("v", 2, 4, False),  # 8
            LinearShape("o", 4, 2, False),  # 8
            LinearShape("in", 2, 5, False),  # 10
            LinearShape("out", 5, 2, False),  # 10
        ),
        query="q",
        key="k",
        value="v",
        attention_out="o",
        mlp_in=("in",),
        mlp_out="out",
        attention_width=4,
        other_parameters=4,
    ),  # 60 numbers
    block_path="blocks",
    embedding_parameters=100,
    tail_parameters=4,
    head=(HeadLayer(LinearShape("head", 2, 3, True), False, "head"),),  # 9 numbers
    tied_head=False,
    max_positions=16,
)


def tiny_layout() -> AdapterLayout:
    """Rank 1 on q and o: 6 + 6 numbers a block; the head is trained: 9 numbers."""
    tensors = []
    for layer in range(TINY.num_layers):
        for name, inputs, outputs in (("q", 2, 4), ("o", 4, 2)):
            tensors.append(AdapterTensor(f"{layer}.{name}.lora_A", (1, inputs), layer))
            tensors.append(AdapterTensor(f"{layer}.{name}.lora_B", (outputs, 1), layer))
    tensors += [AdapterTensor("head.weight", (3, 2), None), AdapterTensor("head.bias", (3,), None)]
    return AdapterLayout(tuple(tensors), ("q", "o"), ("head",), rank=1, scaling=1.0)


def test_a_tiny_client_counted_by_hand() -> None:
    step: dict[str, Any] = {"batch": 3, "length": 5, "num_heads": 2}
    split = Split(1, 1, 1)
    frozen = 100 + 2 * 60 + 4 + 9
    trained = 2 * 12 + 9
    # A token of a block: two norms 2·2, q, k, v 3·4, MLP 5, inputs of q 2 and o 4, two products with A; 2 heads · 5.
    block = 3 * 5 * (4 + 12 + 5 + 6 + 2 + 2 * 5)
    # A text: the final norm's and the head's input, 3 logits. A token at two cuts: state and gradient.
    saved = 2 * block + 3 * (2 + 2 + 3) + 3 * 5 * (4 * 2)
    assert client_memory_bytes(TINY, tiny_layout(), split, optimizer_kind="adamw", **step) == 4 * (
        frozen + 4 * trained + saved
    )
    assert client_memory_bytes(TINY, tiny_layout(), split, optimizer_kind="sgd", number_bytes=2, **step) == 2 * (
        frozen + 2 * trained + saved
    )


def test_a_tiny_edge_counted_by_hand() -> None:
    layout, splits = tiny_layout(), [Split(1, 1, 1), Split(1, 2, 0), Split(2, 1, 0)]
    block = 3 * 5 * (4 + 12 + 5 + 6 + 2 + 2 * 5)
    cuts = 3 * 5 * (4 * 2)
    members = [4 * (q * (4 * 12 + block) + cuts) for q in (1, 2, 1)]
    common: dict[str, Any] = {"num_heads": 2, "optimizer_kind": "adamw"}
    for split, expected in zip(splits, members, strict=True):
        assert edge_member_bytes(TINY, layout, split, batch=3, length=5, **common) == expected
    # Blocks 1; 1 and 2; 2: two different ones.
    assert edge_frozen_bytes(TINY, splits) == 4 * 2 * 60
    assert edge_frozen_bytes(TINY, splits[::2]) == 4 * 2 * 60
    assert edge_frozen_bytes(TINY, splits[2:], number_bytes=2) == 2 * 60
    assert edge_frozen_bytes(TINY, []) == 0
    total = edge_memory_bytes(TINY, layout, splits, batch_M=np.full(3, 3), length_M=np.full(3, 5), **common)
    assert total == 4 * 2 * 60 + sum(members)


KINDS = st.sampled_from(["adamw", "sgd"])
SPLITS = st.sampled_from(ALL_SPLITS)
SIZES = st.integers(1, 50)


@cache
def lab_of(family: str, causal_lm: bool, targets: str | tuple[str, ...] = "auto") -> Lab:
    lora = LoraConfig(
        rank=3, alpha=6.0, targets=targets if targets == "auto" else list(targets), train_head=not causal_lm
    )
    return make_lab(family, causal_lm=causal_lm, dtype=torch.float32, attention="eager", lora=lora)


@given(SPLITS, SPLITS, SIZES, SIZES, SIZES, SIZES, KINDS)
def test_memory_grows_with_blocks_batch_and_length(
    first: Split, second: Split, batch: int, more_texts: int, length: int, more_tokens: int, kind: OptimizerKind
) -> None:
    lab = lab_of("bert", False)

    def on_client(split: Split, batch: int, length: int) -> int:
        return int(
            client_memory_bytes(
                lab.shape, lab.layout, split, batch=batch, length=length, num_heads=HEADS, optimizer_kind=kind
            )
        )

    def on_edge(split: Split, batch: int, length: int) -> int:
        return int(
            edge_member_bytes(
                lab.shape, lab.layout, split, batch=batch, length=length, num_heads=HEADS, optimizer_kind=kind
            )
        )

    held = [split.front + split.back for split in (first, second)]
    by_client = [on_client(split, batch, length) for split in (first, second)]
    by_edge = [on_edge(split, batch, length) for split in (first, second)]
    assert (by_client[0] < by_client[1]) == (held[0] < held[1])
    assert (by_edge[0] < by_edge[1]) == (held[0] > held[1])
    for bytes_of in (on_client, on_edge):
        assert bytes_of(first, batch, length) < bytes_of(first, batch + more_texts, length)
        assert bytes_of(first, batch, length) < bytes_of(first, batch, length + more_tokens)


@given(SPLITS, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=5))
def test_arrays_give_what_their_entries_give(split: Split, sizes: list[tuple[int, int]]) -> None:
    lab = lab_of("llama", True)
    batch_N, length_N = np.array(sizes).T
    common: dict[str, Any] = {"num_heads": HEADS, "optimizer_kind": "adamw"}
    for bytes_of in (client_memory_bytes, edge_member_bytes):
        bytes_N = bytes_of(lab.shape, lab.layout, split, batch=batch_N, length=length_N, **common)
        assert bytes_N.dtype == np.int64
        assert bytes_N.tolist() == [
            bytes_of(lab.shape, lab.layout, split, batch=batch, length=length, **common) for batch, length in sizes
        ]


@pytest.mark.parametrize("split", [*ALL_SPLITS, whole(LAYERS)], ids=split_name)
@pytest.mark.parametrize("model", [("bert", False), ("gpt2", False), ("gpt2", True)], ids=model_name)
def test_the_weights_are_those_of_an_empty_model(model: tuple[str, bool], split: Split) -> None:
    """Without texts there are no activations; then a client holds weights, and adapters with gradients."""
    family_name, causal_lm = model
    config = small_config(family_name)
    auto = AutoModelForCausalLM if causal_lm else AutoModelForSequenceClassification
    with init_empty_weights():
        empty = auto.from_config(config)
    family = family_of(config)
    shape = family.shape(config, causal_lm=causal_lm)
    layout = make_layout(shape, family, LoraConfig(rank=3), causal_lm=causal_lm)
    middle = tuple(f"{shape.block_path}.{layer}." for layer in split.layers(Part.MIDDLE))
    numbers = {True: 0, False: 0}
    for name, parameter in empty.named_parameters():
        numbers[bool(middle) and name.startswith(middle)] += parameter.numel()
    common: dict[str, Any] = {"batch": 0, "length": 0, "num_heads": HEADS, "optimizer_kind": "sgd"}
    on_client, on_edge = (
        2 * sum(tensor.num_elements for tensor in layout.part(split, *parts))
        for parts in ((Part.FRONT, Part.BACK), (Part.MIDDLE,))
    )
    assert client_memory_bytes(shape, layout, split, **common) == 4 * (numbers[False] + on_client)
    assert edge_frozen_bytes(shape, [split]) == 4 * numbers[True]
    assert edge_member_bytes(shape, layout, split, **common) == 4 * on_edge


def saved_numbers(own: set[int], compute: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Return how many numbers autograd saves beside the parameters, each storage once, and the result."""
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own and tensor.is_floating_point():
            saved[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = compute()
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in saved.values()), result


def saved_by_parts(lab: Lab, split: Split, batch: int, length: int) -> dict[Part, int]:
    generator = torch.Generator().manual_seed(1)
    ids_NS = torch.randint(PAD + 1, VOCABULARY, (batch, length), generator=generator)
    labels_CB = None if lab.causal_lm else torch.randint(0, LABELS, (1, batch), generator=generator)
    mask_NS = torch.ones(batch, length, dtype=torch.bool)
    texts = CohortBatch(ids_NS, mask_NS, labels_CB, torch.full((1, batch), length), ((batch, length),))
    trained = stack_adapters([lab.adapters(0)], torch.device("cpu"))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*lab.model.model.parameters(), *trained.values())}

    def held(part: Part) -> Adapters:
        return {tensor.name: trained[tensor.name] for tensor in lab.layout.part(split, part)}

    model, saved = lab.model, {}
    saved[Part.FRONT], h1_NSD = saved_numbers(own, lambda: model.front(ids_NS, mask_NS, held(Part.FRONT), split))
    h1_NSD = h1_NSD.detach().requires_grad_()
    saved[Part.MIDDLE], h2_NSD = saved_numbers(own, lambda: model.middle(h1_NSD, mask_NS, held(Part.MIDDLE), split))
    h2_NSD = h2_NSD.detach().requires_grad_()
    saved[Part.BACK], _ = saved_numbers(
        own, lambda: client_losses(model.back(h2_NSD, mask_NS, held(Part.BACK), split), texts).sum()
    )
    return saved


def without_cuts(numbers: int, batch: int, length: int) -> int:
    return numbers - 4 * WIDTH * batch * length


def activation_numbers(lab: Lab, split: Split, batch: int, length: int) -> tuple[int, int]:
    """Return the formula's activations of client and edge, states at the cuts left out."""
    common: dict[str, Any] = {"num_heads": HEADS, "optimizer_kind": "sgd", "number_bytes": 1}
    return tuple(  # type: ignore[return-value]
        without_cuts(
            int(bytes_of(lab.shape, lab.layout, split, batch=batch, length=length, **common))
            - int(bytes_of(lab.shape, lab.layout, split, batch=0, length=0, **common)),
            batch,
            length,
        )
        for bytes_of in (client_memory_bytes, edge_member_bytes)
    )


NOT_COUNTED = {
    # mean and scale of two norms; of a root-mean-square norm the scale alone; composed GELU: 3 F
    "bert": 4,
    "roberta": 4,
    "gpt2": 4 + 3 * INNER,
    "llama": 2,
    "qwen2": 2,
}
"""What eager torch saves per token and block that the formula leaves out on purpose."""

TARGETS: list[tuple[str, bool, str | tuple[str, ...]]] = [
    ("bert", False, "auto"),
    ("bert", False, ("query", "key", "value", "dense")),
    ("roberta", False, ("value", "intermediate.dense")),
    ("gpt2", False, "auto"),
    ("gpt2", True, ("c_attn", "c_proj", "c_fc")),
    ("llama", True, "auto"),
    ("llama", True, ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    ("qwen2", False, ("v_proj", "down_proj")),
]


@pytest.mark.parametrize(("batch", "length"), [(3, 7), (2, 11)])
@pytest.mark.parametrize(("family", "causal_lm", "targets"), TARGETS, ids=str)
def test_activations_are_what_torch_saves(
    family: str, causal_lm: bool, targets: str | tuple[str, ...], batch: int, length: int
) -> None:
    lab, split, tokens = lab_of(family, causal_lm, targets), Split(1, 2, 1), batch * length
    saved = saved_by_parts(lab, split, batch, length)
    on_client, on_edge = activation_numbers(lab, split, batch, length)
    left_out = NOT_COUNTED[family] * tokens
    rotary = 2 * length * (WIDTH // HEADS) if family in ("llama", "qwen2") else 0
    assert saved[Part.MIDDLE] == on_edge + 2 * left_out + rotary
    a_block = on_edge // 2
    by_head = saved[Part.BACK] - rotary - left_out - a_block
    if causal_lm:
        # The formula counts the logits of the last token too, which predicts nothing; not the statistics of the norm.
        assert by_head == pytest.approx(on_client - 2 * a_block - batch * VOCABULARY, abs=2 * tokens + 1)
    else:
        # RoBERTa's head keeps a view of the first tokens' states, and with it the states of all tokens.
        by_view = WIDTH * batch * (length - 1) if family == "roberta" else 0
        assert by_head == pytest.approx(on_client - 2 * a_block + by_view, abs=2 * batch + 1)
    # The first block of all saves less than the others, for its input needs no gradient: maybe no rotary angles either.
    assert saved[Part.FRONT] <= a_block + left_out + rotary
    longer = saved_by_parts(lab, Split(2, 1, 1), batch, length)
    assert longer[Part.FRONT] - saved[Part.FRONT] - a_block - left_out in (0, rotary)
