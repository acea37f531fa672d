"""Training through lossy cuts is autograd on the whole model with the codecs as layers in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Part, Split
from elsa_ray.tasks.tokens import TokenizedTexts
from elsa_ray.training.batches import cohort_batch
from elsa_ray.training.client import stack_adapters
from elsa_ray.training.cohort import PlanMismatchError
from elsa_ray.training.loss import client_losses
from elsa_ray.training.recipe import Chains

from ..helpers import (
    PAD,
    Lab,
    chain,
    chains,
    largest_difference,
    make_lab,
    random_texts,
    recipe,
    split_name,
    train_cohort,
)

SKETCH = {"kind": "sketch", "rows": 3, "buckets": 8}
SGD = OptimizerConfig(kind="sgd", learning_rate=1.0)
SPLITS = [Split(1, 2, 1), Split(2, 2, 0)]


def fp64(*specs: dict[str, Any]) -> CodecChain:
    return chain(*specs, wire_dtype="fp64")


class Cut(torch.autograd.Function):
    """What a cut does to the values that cross it, and to the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, sent_NSD: Tensor, of: Chains) -> Tensor:
        ctx.of = of
        ctx.save_for_backward(sent_NSD)
        return through(of.activation, sent_NSD)

    @staticmethod
    def backward(ctx: Any, gradient_NSD: Tensor) -> tuple[Tensor, None]:
        (sent_NSD,) = ctx.saved_tensors
        rows_TD, received_TD = sent_NSD.flatten(0, 1), through(ctx.of.gradient, gradient_NSD).flatten(0, 1)
        return ctx.of.activation.backward(rows_TD, received_TD, CodecContext()).reshape(sent_NSD.shape), None


def through(of: CodecChain, values_NSD: Tensor) -> Tensor:
    rows_TD = values_NSD.flatten(0, 1)
    return of.decode(of.encode(rows_TD, CodecContext()), *rows_TD.shape, CodecContext()).reshape(values_NSD.shape)


def gradients_of_one_graph(
    lab: Lab, split: Split, of: Chains, tokens: TokenizedTexts, row: np.ndarray, adapters: Adapters
) -> tuple[float, Adapters]:
    batch = cohort_batch(tokens, [row[None]], 0, PAD)
    parameters = stack_adapters([adapters], torch.device("cpu"))

    def held(part: Part) -> Adapters:
        return {t.name: parameters[t.name] for t in lab.layout.part(split, part)}

    h1_NSD = lab.model.front(batch.ids_NS, batch.mask_NS, held(Part.FRONT), split)
    h2_NSD = lab.model.middle(Cut.apply(h1_NSD, of), batch.mask_NS, held(Part.MIDDLE), split)
    logits = lab.model.back(Cut.apply(h2_NSD, of), batch.mask_NS, held(Part.BACK), split)
    loss = client_losses(logits, batch).sum()
    loss.backward()
    return loss.item(), {name: parameter.grad[0] for name, parameter in parameters.items()}


def assert_trains_as_one_graph(split: Split, of: Chains, rows: list[np.ndarray]) -> list[Adapters]:
    lab, tokens = make_lab("bert"), random_texts(18)
    start = [lab.adapters(seed) for seed in range(len(rows))]
    trained = train_cohort(lab, split, recipe(SGD, of=of), tokens, [row[None] for row in rows], start)
    found = []
    for member, row in enumerate(rows):
        loss, expected = gradients_of_one_graph(lab, split, of, tokens, row, start[member])
        gradients = {name: start[member][name] - trained.adapters[member][name] for name in expected}
        assert trained.losses[member] == pytest.approx(loss, abs=1e-9)
        assert largest_difference(gradients, expected) < 1e-9
        found.append(gradients)
    return found


@pytest.mark.parametrize("split", SPLITS, ids=split_name)
@pytest.mark.parametrize("backward", ["straight_through", "exact"])
@pytest.mark.parametrize("decode", ["mean", "mmse", "median"])
def test_sketched_activations_and_gradients(decode: str, backward: str, split: Split) -> None:
    sketch = {**SKETCH, "decode": decode, "backward": backward}
    of = Chains(fp64(sketch), fp64({**sketch, "seed": 1}), fp64())
    assert_trains_as_one_graph(split, of, [np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6, 7])])


@pytest.mark.parametrize("split", SPLITS, ids=split_name)
@pytest.mark.parametrize("start", [[], [{**SKETCH, "backward": "exact"}]], ids=["alone", "behind-a-sketch"])
@pytest.mark.parametrize("end", [{"kind": "int8"}, {"kind": "cast"}], ids=["int8", "cast"])
def test_quantised_activations_and_gradients(start: list[Any], end: dict[str, str], split: Split) -> None:
    both = fp64(*start, end)
    assert_trains_as_one_graph(split, Chains(both, both, fp64()), [np.array([0, 1, 2])])


def test_exact_and_straight_through_gradients_differ() -> None:
    rows = [np.array([0, 1, 2])]
    by_backward = {}
    for backward in ("straight_through", "exact"):
        of = Chains(fp64({**SKETCH, "backward": backward}), fp64(), fp64())
        (by_backward[backward],) = assert_trains_as_one_graph(SPLITS[0], of, rows)
    assert largest_difference(by_backward["straight_through"], by_backward["exact"]) > 1e-3


def test_each_message_is_charged_to_its_sender() -> None:
    lab, tokens = make_lab("bert"), random_texts(18)
    settings = recipe(SGD, of=chains({"kind": "int8"}))
    start = [lab.adapters(seed) for seed in range(2)]
    trained = train_cohort(lab, SPLITS[0], settings, tokens, [np.array([[0, 1], [2, 3]]), np.array([[4, 5]])], start)
    assert trained.clients_meter.num_payloads == {"activation_up": 3, "gradient_up": 3}
    assert trained.edge_meter.num_payloads == {"activation_down": 3, "gradient_down": 3}
    assert trained.edge_meter.num_bytes["activation_down"] == trained.edge_meter.num_bytes["gradient_down"]
    texts = 2 * 2 + 2
    up = trained.clients_meter.num_bytes
    assert up["activation_up"] == up["gradient_up"] + 2 * texts == trained.edge_meter.num_bytes["gradient_down"] + 12


def test_a_payload_of_another_size_than_planned_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, tokens = make_lab("bert"), random_texts(6)
    settings = recipe(SGD, of=chains({"kind": "int8"}))
    formula = CodecChain.body_bytes
    monkeypatch.setattr(CodecChain, "body_bytes", lambda self, rows, width: formula(self, rows, width) + 1)
    with pytest.raises(PlanMismatchError, match="activation_up has"):
        train_cohort(lab, SPLITS[0], settings, tokens, [np.array([[0, 1]])], [lab.adapters(0)])
