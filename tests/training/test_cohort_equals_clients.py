"""Proof: a cohort of clients is as many separate runs of plain PEFT with torch's own optimisers, in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from elsa_ray.config.protocol import ElsaConfig, OptimizerConfig
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split, whole
from elsa_ray.tasks.tokens import TokenizedTexts
from elsa_ray.training.batches import cohort_batch, examples_of_steps
from elsa_ray.world.plan import WorkKey

from ..helpers import (
    ABSENT,
    LAYERS,
    PAD,
    Lab,
    chains,
    largest_difference,
    make_lab,
    model_name,
    own_batch,
    plain_loss,
    random_texts,
    recipe,
    relative_difference,
    train_cohort,
    trained_parameters,
)

UNCUT, CUT = whole(LAYERS), Split(1, 2, 1)
TOLERANCE = 1e-5

OPTIMIZERS = {
    "adamw": OptimizerConfig(kind="adamw", learning_rate=2e-3),
    "adamw-decay": OptimizerConfig(kind="adamw", learning_rate=2e-3, weight_decay=0.3),
    "sgd": OptimizerConfig(kind="sgd", learning_rate=0.01),
    "sgd-decay": OptimizerConfig(kind="sgd", learning_rate=0.01, weight_decay=0.3),
}
RAGGED = [
    np.array([[0, 1, 2], [3, 4, 5], [6, 0, 3], [1, 4, 2], [5, 6, 0]]),
    np.array([[7, 8], [9, 10], [8, 10], [9, 7], [10, 9]]),
    np.array([[11, 12, 13, 14], [15, 16, 17, ABSENT], [12, 15, 11, 17], [13, 14, 16, ABSENT], [11, 13, 15, 17]]),
]


def fp32_lab(family: str, causal_lm: bool = False) -> Lab:
    return make_lab(family, causal_lm=causal_lm, dtype=torch.float32)


def separate_run(
    lab: Lab,
    config: OptimizerConfig,
    tokens: TokenizedTexts,
    examples_of_members: Sequence[np.ndarray],
    member: int,
    start: Adapters,
) -> tuple[Adapters, float]:
    """Train one client by plain PEFT on batches padded as in its cohort."""
    peft = lab.peft(start)
    parameters = trained_parameters(peft)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.kind]
    optimizer = kind(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for step, row in enumerate(examples_of_members[member]):
        length = cohort_batch(tokens, examples_of_members, step, PAD).ids_NS.shape[1]
        optimizer.zero_grad()
        loss = plain_loss(peft, *own_batch(tokens, row, length=length))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}, float(np.mean(losses))


def assert_equals_separate_runs(
    lab: Lab,
    split: Split,
    config: OptimizerConfig,
    tokens: TokenizedTexts,
    examples: Sequence[np.ndarray],
    start: Sequence[Adapters],
) -> None:
    settings = recipe(config, of=chains(wire_dtype="fp32"), dtype=torch.float32)
    trained = train_cohort(lab, split, settings, tokens, examples, start)
    for member, adapters in enumerate(trained.adapters):
        alone, loss = separate_run(lab, config, tokens, examples, member, start[member])
        assert relative_difference(adapters, alone) < TOLERANCE
        assert relative_difference(adapters, start[member]) > 100 * TOLERANCE
        assert trained.losses[member] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("split", [UNCUT, CUT], ids=["uncut", "cut"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [("bert", False), ("llama", True), ("gpt2", False)], ids=model_name)
def test_ragged_clients_train_as_if_alone(model: tuple[str, bool], optimizer: str, split: Split) -> None:
    lab = fp32_lab(*model)
    tokens = random_texts(18, labelled=not model[1])
    start = [lab.adapters(seed) for seed in range(3)]
    assert_equals_separate_runs(lab, split, OPTIMIZERS[optimizer], tokens, RAGGED, start)


def test_without_blocks_at_the_edge_it_does_not_matter_where_the_client_is_cut() -> None:
    lab, split = fp32_lab("bert"), Split(1, 0, LAYERS - 1)
    start = [lab.adapters(seed) for seed in range(3)]
    assert_equals_separate_runs(lab, split, OPTIMIZERS["adamw"], random_texts(18), RAGGED, start)


@pytest.mark.parametrize("split", [UNCUT, CUT], ids=["uncut", "cut"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_client_that_runs_out_of_batches_stands_still(optimizer: str, split: Split) -> None:
    """With local_epochs, clients of 3, 7 and 18 texts make 2, 4 and 10 steps."""
    lab = fp32_lab("bert")
    tokens = random_texts(28)
    local_work = ElsaConfig(local_epochs=2, batch_size=4)
    owned = [np.arange(0, 3), np.arange(3, 10), np.arange(10, 28)]
    examples = [examples_of_steps(WorkKey(0, 0, client), own, local_work, 7) for client, own in enumerate(owned)]
    assert [len(examples_TB) for examples_TB in examples] == [2, 4, 10]
    start = [lab.adapters(seed) for seed in range(3)]
    assert_equals_separate_runs(lab, split, OPTIMIZERS[optimizer], tokens, examples, start)


@pytest.mark.parametrize("split", [UNCUT, CUT], ids=["uncut", "cut"])
def test_standing_still_is_bitwise(split: Split) -> None:
    """The steps that a longer client makes alone leave a finished client as it was, to the bit."""
    lab = fp32_lab("bert")
    tokens = random_texts(18)
    start = [lab.adapters(seed) for seed in range(2)]
    settings = recipe(OPTIMIZERS["adamw-decay"], of=chains(wire_dtype="fp32"), dtype=torch.float32)
    short = RAGGED[1][:2]
    together = train_cohort(lab, split, settings, tokens, [short, RAGGED[2]], start)
    stopped = train_cohort(lab, split, settings, tokens, [short, RAGGED[2][:2]], start)
    assert largest_difference(together.adapters[0], stopped.adapters[0]) == 0.0
    assert largest_difference(together.adapters[1], stopped.adapters[1]) > 0.0


@pytest.mark.parametrize("split", [UNCUT, CUT], ids=["uncut", "cut"])
def test_a_members_neighbours_do_not_change_it(split: Split) -> None:
    lab = fp32_lab("bert")
    tokens = random_texts(18, shortest=6, longest=6)
    settings = recipe(OPTIMIZERS["adamw"], of=chains(wire_dtype="fp32"), dtype=torch.float32)
    mine, other, third = (np.arange(start, start + 6).reshape(3, 2) for start in (0, 6, 12))
    start = [lab.adapters(seed) for seed in range(3)]
    first = train_cohort(lab, split, settings, tokens, [mine, other], start[:2])
    second = train_cohort(lab, split, settings, tokens, [mine, third], [start[0], start[2]])
    assert largest_difference(first.adapters[0], second.adapters[0]) == 0.0


@pytest.mark.parametrize("model", [("bert", False), ("gpt2", False), ("llama", True)], ids=model_name)
@pytest.mark.parametrize("split", [UNCUT, CUT], ids=["uncut", "cut"])
def test_cohorts_of_one_four_and_eight_give_the_same_bits_where_padding_is_equal(
    model: tuple[str, bool], split: Split
) -> None:
    """Batches of four: for one or two rows (BERT's pooler) a matrix library may choose another kernel."""
    lab = fp32_lab(*model)
    tokens = random_texts(64, shortest=7, longest=7, labelled=not model[1])
    examples = [np.arange(8 * client, 8 * client + 8).reshape(2, 4) for client in range(8)]
    start = [lab.adapters(seed) for seed in range(8)]
    settings = recipe(OPTIMIZERS["adamw"], of=chains(wire_dtype="fp32"), dtype=torch.float32)
    by_size = {}
    for size in (1, 4, 8):
        by_size[size] = [
            adapters
            for first in range(0, 8, size)
            for adapters in train_cohort(
                lab, split, settings, tokens, examples[first : first + size], start[first : first + size]
            ).adapters
        ]
    for size in (4, 8):
        differences = [largest_difference(a, b) for a, b in zip(by_size[size], by_size[1], strict=True)]
        assert differences == [0.0] * 8


@pytest.mark.parametrize("split", [UNCUT, CUT], ids=["uncut", "cut"])
def test_a_trained_pooler_and_every_linear_layer_train_as_in_peft(split: Split) -> None:
    lora = LoraConfig(rank=3, alpha=6.0, targets=["query", "key", "value", "dense"], train_pooler=True)
    lab = make_lab("bert", dtype=torch.float32, lora=lora)
    assert "bert.pooler.dense.weight" in {tensor.name for tensor in lab.layout.tensors}
    tokens = random_texts(18)
    start = [lab.adapters(seed) for seed in range(3)]
    assert_equals_separate_runs(lab, split, OPTIMIZERS["adamw"], tokens, RAGGED, start)
