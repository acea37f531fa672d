"""Proof: training through the cuts is training of the whole model, for every split of every family.

The reference is transformers' own model with plain PEFT and autograd; the split side goes through the wire in fp64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.tasks.tokens import TokenizedTexts

from ..helpers import (
    ABSENT,
    ALL_SPLITS,
    MODELS,
    Lab,
    largest_difference,
    make_lab,
    model_name,
    own_batch,
    plain_loss,
    random_texts,
    recipe,
    split_name,
    train_cohort,
    trained_parameters,
)

TOLERANCE = 1e-9
LEARNING_RATE = 0.05
NUM_STEPS = 5


@dataclass(frozen=True)
class Reference:
    """Three clients of different data, each trained alone on the whole model by SGD."""

    lab: Lab
    tokens: TokenizedTexts
    examples: list[np.ndarray]
    start: list[Adapters]
    losses: list[list[float]]
    first_gradients: list[Adapters]
    end: list[Adapters]


@cache
def reference(model: tuple[str, bool]) -> Reference:
    family, causal_lm = model
    lab = make_lab(family, causal_lm=causal_lm)
    tokens = random_texts(18, labelled=not causal_lm)
    examples = [
        np.arange(15).reshape(5, 3) % 7,
        np.array([[7, 8], [9, 10], [10, ABSENT], [8, 9], [7, 10]]),
        np.array([[11, 12, 13, 14], [15, 16, 17, ABSENT], [12, 15, 11, 17]]),
    ]
    start = [lab.adapters(seed) for seed in range(3)]
    losses, gradients, end = [], [], []
    for member, examples_TB in enumerate(examples):
        peft = lab.peft(start[member])
        parameters = trained_parameters(peft)
        optimizer = torch.optim.SGD(parameters.values(), lr=LEARNING_RATE)
        losses.append([])
        for step, row in enumerate(examples_TB):
            optimizer.zero_grad()
            loss = plain_loss(peft, *own_batch(tokens, row))
            loss.backward()
            losses[-1].append(loss.item())
            if step == 0:
                gradients.append({name: parameter.grad.clone() for name, parameter in parameters.items()})
            optimizer.step()
        end.append({name: parameter.detach() for name, parameter in parameters.items()})
    return Reference(lab, tokens, examples, start, losses, gradients, end)


@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_the_reference_has_a_gradient_in_every_adapter(model: tuple[str, bool]) -> None:
    truth = reference(model)
    for gradients in truth.first_gradients:
        assert gradients.keys() == {tensor.name for tensor in truth.lab.layout.tensors}
        assert min(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-5


@pytest.mark.parametrize("split", ALL_SPLITS, ids=split_name)
@pytest.mark.parametrize("model", MODELS, ids=model_name)
@pytest.mark.parametrize("num_members", [1, 3])
def test_loss_and_every_gradient_equal_the_unsplit_models(
    model: tuple[str, bool], split: Split, num_members: int
) -> None:
    truth = reference(model)
    one_step = [examples_TB[:1] for examples_TB in truth.examples[:num_members]]
    start = truth.start[:num_members]
    settings = recipe(OptimizerConfig(kind="sgd", learning_rate=1.0))
    trained = train_cohort(truth.lab, split, settings, truth.tokens, one_step, start)
    for member in range(num_members):
        assert trained.losses[member] == pytest.approx(truth.losses[member][0], abs=TOLERANCE)
        before, after = start[member], trained.adapters[member]
        gradients = {name: before[name] - after[name] for name in before}
        assert largest_difference(gradients, truth.first_gradients[member]) < TOLERANCE


@pytest.mark.parametrize("split", ALL_SPLITS, ids=split_name)
@pytest.mark.parametrize("model", MODELS, ids=model_name)
def test_weights_equal_after_five_steps_of_sgd_with_a_member_that_stops_early(
    model: tuple[str, bool], split: Split
) -> None:
    truth = reference(model)
    settings = recipe(OptimizerConfig(kind="sgd", learning_rate=LEARNING_RATE))
    trained = train_cohort(truth.lab, split, settings, truth.tokens, truth.examples, truth.start)
    for member, adapters in enumerate(trained.adapters):
        assert largest_difference(adapters, truth.end[member]) < TOLERANCE
        assert largest_difference(adapters, truth.start[member]) > 1e-4
        assert trained.losses[member] == pytest.approx(np.mean(truth.losses[member]), abs=TOLERANCE)
