"""The FLOP formulas are torch's own count with eager attention, and the frozen bytes are the real parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.cost import Flops, StepFlops, frozen_num_bytes, step_flops
from elsa_ray.model.split import Part, Split, whole
from elsa_ray.training.batches import CohortBatch
from elsa_ray.training.client import stack_adapters
from elsa_ray.training.loss import client_losses

from ..helpers import (
    ALL_SPLITS,
    LABELS,
    LAYERS,
    MODELS,
    PAD,
    VOCABULARY,
    Lab,
    make_lab,
    model_name,
    plain_loss,
    split_name,
)

SHAPES = [(3, 7), (1, 4)]
SPLITS = [Split(1, 2, 1), Split(3, 1, 0)]

TARGETS = {
    "auto": lambda family: "auto",
    "all": lambda family: {"bert": ENCODER, "roberta": ENCODER, "gpt2": GPT2}.get(family, LLAMA),
    "mlp": lambda family: {
        "bert": ["intermediate.dense", "output.dense"],
        "roberta": ["intermediate.dense"],
        "gpt2": ["c_fc", "mlp.c_proj"],
    }.get(family, ["gate_proj", "down_proj"]),
    "value": lambda family: {"bert": ["value"], "roberta": ["value"], "gpt2": ["attn.c_proj"]}.get(family, ["v_proj"]),
    "key": lambda family: {"bert": ["key"], "roberta": ["key"], "gpt2": ["mlp.c_fc"]}.get(family, ["k_proj"]),
}
ENCODER = ["query", "key", "value", "dense"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]


@cache
def lab_of(family: str, causal_lm: bool, targets: str, train_head: bool) -> Lab:
    lora = LoraConfig(rank=3, alpha=6.0, targets=TARGETS[targets](family), train_head=train_head)
    return make_lab(family, causal_lm=causal_lm, dtype=torch.float32, attention="eager", lora=lora)


def counted(compute: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def random_batch(lab: Lab, batch: int, length: int) -> CohortBatch:
    generator = torch.Generator().manual_seed(batch)
    labels_CB = None if lab.causal_lm else torch.randint(0, LABELS, (1, batch), generator=generator)
    return CohortBatch(
        torch.randint(PAD + 1, VOCABULARY, (batch, length), generator=generator),
        torch.ones(batch, length, dtype=torch.bool),
        labels_CB,
        torch.full((1, batch), length),
        ((batch, length),),
    )


class PartsCounter:
    """Counts each of the five computations of a split step, as client and edge make them."""

    def __init__(self, lab: Lab, split: Split, batch: CohortBatch) -> None:
        self.lab, self.split, self.batch = lab, split, batch
        self.parameters = stack_adapters([lab.adapters(0)], torch.device("cpu"))

    def held(self, part: Part) -> Adapters:
        return {t.name: self.parameters[t.name] for t in self.lab.layout.part(self.split, part)}

    def count(self) -> dict[str, int]:
        model, split, mask_NS = self.lab.model, self.split, self.batch.mask_NS
        result: dict[str, Tensor] = {}

        def front() -> None:
            result["h1"] = model.front(self.batch.ids_NS, mask_NS, self.held(Part.FRONT), split)

        def middle() -> None:
            result["h2"] = model.middle(result["h1_received"], mask_NS, self.held(Part.MIDDLE), split)

        def back() -> None:
            logits = model.back(result["h2_received"], mask_NS, self.held(Part.BACK), split)
            client_losses(logits, self.batch).sum().backward()

        counts = {"front_forward": counted(front)}
        result["h1_received"] = result["h1"].detach().requires_grad_()
        counts["middle_forward"] = counted(middle)
        result["h2_received"] = result["h2"].detach().requires_grad_()
        counts["back_forward_backward"] = counted(back)
        counts["middle_backward"] = counted(lambda: result["h2"].backward(result["h2_received"].grad))
        counts["front_backward"] = counted(lambda: result["h1"].backward(result["h1_received"].grad))
        return counts


def by_formula(step: StepFlops, batch: int, length: int) -> dict[str, int]:
    return {name: int(flops.total(batch, length)) for name, flops in vars(step).items()}


def assert_parts_equal(lab: Lab, split: Split, shape: tuple[int, int]) -> None:
    counts = PartsCounter(lab, split, random_batch(lab, *shape)).count()
    assert by_formula(step_flops(lab.shape, lab.layout, split), *shape) == counts


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen-head", "trained-head"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_each_parts_flops_are_torchs_count(model: tuple[str, bool], targets: str, train_head: bool) -> None:
    lab = lab_of(*model, targets, train_head)
    for split, shape in zip(SPLITS, SHAPES, strict=True):
        assert_parts_equal(lab, split, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("split", ALL_SPLITS, ids=split_name)
def test_each_parts_flops_for_every_split(split: Split, shape: tuple[int, int]) -> None:
    assert_parts_equal(lab_of("llama", True, "auto", False), split, shape)


@pytest.mark.parametrize("train_head", [False, True], ids=["frozen-head", "trained-head"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_the_uncut_models_flops_are_torchs_count(model: tuple[str, bool], targets: str, train_head: bool) -> None:
    lab, split = lab_of(*model, targets, train_head), whole(LAYERS)
    parameters = stack_adapters([lab.adapters(0)], torch.device("cpu"))
    for shape in SHAPES:
        batch = random_batch(lab, *shape)

        def train(batch: CohortBatch = batch) -> None:
            front, back = (
                {t.name: parameters[t.name] for t in lab.layout.part(split, p)} for p in (Part.FRONT, Part.BACK)
            )
            hidden_NSD = lab.model.front(batch.ids_NS, batch.mask_NS, front, split)
            client_losses(lab.model.back(hidden_NSD, batch.mask_NS, back, split), batch).sum().backward()

        formula = step_flops(lab.shape, lab.layout, split).whole
        assert int(formula.total(*shape)) == counted(train)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(
    "model", [model for model in MODELS if model[1] or model[0] in ("bert", "roberta")], ids=model_name
)
def test_the_uncut_models_flops_are_those_of_plain_peft(model: tuple[str, bool], targets: str) -> None:
    """Decoders' classifiers are left out: transformers scores every token and throws all but one away."""
    lab = lab_of(*model, targets, not model[1])
    peft = lab.peft(lab.adapters(0))
    for shape in SHAPES:
        batch = random_batch(lab, *shape)
        labels_B = None if batch.labels_CB is None else batch.labels_CB[0]
        count = counted(lambda b=batch, y=labels_B: plain_loss(peft, b.ids_NS, b.mask_NS, y).backward())
        formula = step_flops(lab.shape, lab.layout, whole(LAYERS)).whole
        assert int(formula.total(*shape)) == count


@pytest.mark.parametrize("split", ALL_SPLITS, ids=split_name)
def test_a_cut_only_adds_the_gradient_at_its_two_inputs(split: Split) -> None:
    """Cut or not, the same work is done where gradients reach the input of every part anyway."""
    lab = lab_of("bert", False, "all", True)
    assert step_flops(lab.shape, lab.layout, split).whole == step_flops(lab.shape, lab.layout, whole(LAYERS)).whole


def test_flops_of_arrays_are_those_of_their_entries_in_int64() -> None:
    flops = Flops(per_token=10**6, per_pair=3, per_text=7)
    batch, length = np.array([[1, 0], [64, 5]]), np.array([[8, 0], [4096, 2]])
    total = flops.total(batch, length)
    assert total.dtype == np.int64
    assert total.tolist() == [
        [10**6 * 8 + 3 * 64 + 7, 0],
        [10**6 * 64 * 4096 + 3 * 64 * 4096**2 + 7 * 64, 10**7 + 60 + 35],
    ]


def part_of_parameter(lab: Lab, name: str, split: Split) -> Part:
    inside = name.removeprefix(f"{lab.shape.block_path}.")
    if inside != name:
        return split.part_of(int(inside.split(".")[0]))
    is_front = any(word in name for word in ("embed", "wte", "wpe"))
    return Part.FRONT if is_front or not split.is_cut else Part.BACK


@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_frozen_bytes_are_the_real_parameters_of_each_part(model: tuple[str, bool]) -> None:
    lab = lab_of(*model, "auto", False)
    for split in [*ALL_SPLITS, whole(LAYERS)]:
        counts = dict.fromkeys(Part, 0)
        for name, parameter in lab.plain.named_parameters():
            counts[part_of_parameter(lab, name, split)] += parameter.numel()
        assert {part: frozen_num_bytes(lab.shape, split, part, 1) for part in Part} == counts
        assert sum(counts.values()) == lab.shape.num_parameters == lab.plain.num_parameters()
    assert frozen_num_bytes(lab.shape, ALL_SPLITS[0], Part.MIDDLE, 4) % 4 == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_head_is_sent_once(family: str) -> None:
    lab = make_lab(family, causal_lm=True, tie_word_embeddings=True)
    for split in [*ALL_SPLITS, whole(LAYERS)]:
        sent = sum(frozen_num_bytes(lab.shape, split, part, 1) for part in Part)
        assert sent == lab.plain.num_parameters() == lab.shape.num_parameters


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"head_dim": 16}),
        ("mistral", {"head_dim": 4}),
        ("gpt2", {"n_inner": None}),
        ("bert", {"type_vocab_size": 3}),
    ],
    ids=str,
)
def test_variants_of_a_family_are_described_as_they_are(family: str, options: dict[str, object]) -> None:
    lab = make_lab(family, attention="eager", dtype=torch.float32, **options)
    assert lab.shape.num_parameters == lab.plain.num_parameters()
    if "head_dim" not in options:
        assert_parts_equal(lab, Split(1, 2, 1), (2, 5))
    real = {name for name, module in lab.plain.get_submodule(f"{lab.shape.block_path}.0").named_modules()}
    assert {linear.name for linear in lab.shape.block.linears} <= real
