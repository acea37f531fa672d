"""The clients' side of a cohort's training, as a generator that yields what the edge must answer.

Whoever drives it may let other work run while the edge computes; the numbers do not depend on that.
Shapes: C members, B texts, S tokens, N = C·B, D hidden width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Part
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.tasks.tokens import TokenizedTexts
from elsa_ray.training.batches import CohortBatch, cohort_batch
from elsa_ray.training.cohort import CALIBRATION, ByteMeter, Cohort
from elsa_ray.training.failure import Whereabouts
from elsa_ray.training.loss import client_losses
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.messages import Coding, CohortMessenger, Payloads
from elsa_ray.training.misbehaviour import trained_labels
from elsa_ray.training.optimizer import CohortOptimizer
from elsa_ray.training.probing import (
    ProbeAnswers,
    class_probabilities,
    decode_probe_states,
    encode_probe_states,
    probe_batch,
    probe_pieces,
    split_answers,
)
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.roles import Role


class EdgeCall(Enum):
    """What a cohort asks of its edge."""

    FORWARD = "forward"
    BACKWARD = "backward"
    PROBE = "probe"
    CALIBRATE = "calibrate"


@dataclass(frozen=True)
class EdgeRequest:
    """The payloads of one message of all members; the edge answers with payloads of the same form.

    ``step`` is a training step, or counts the pieces of the probe set, or is ``CALIBRATION``.
    """

    call: EdgeCall
    step: int
    payloads: Payloads


@dataclass(frozen=True)
class ClientResult:
    """What one client's training gave.

    Attributes:
        adapters: of its own parts.
        mean_loss: over its steps.
        calibration: its keys and bases.
        answers: its model on the public probes, where it was asked to report them.
    """

    adapters: Adapters
    mean_loss: float
    calibration: CutMemory
    answers: ProbeAnswers | None


def train_clients(
    model: TripartiteModel,
    cohort: Cohort,
    recipe: Recipe,
    tokens: TokenizedTexts,
    examples_of_members: Sequence[npt.NDArray[np.int64]],
    adapters_of_members: Sequence[Adapters],
    meter: ByteMeter,
    memories: Sequence[CutMemory] | None = None,
    calibration_examples_of_members: Sequence[npt.NDArray[np.int64]] = (),
    where: Whereabouts | None = None,
    coding: Coding = nullcontext,
) -> Generator[EdgeRequest, Payloads, list[ClientResult]]:
    """Train a cohort's front and back parts; yields a request to the edge twice a step and is sent its answer.

    An uncut cohort trains its whole model and yields nothing.

    Args:
        model: the frozen backbone.
        cohort: whose training.
        recipe: seed, optimiser, chains.
        tokens: the training data.
        examples_of_members: for each member its examples [T, B] by step.
        adapters_of_members: the tensors that each member holds (parts front and back, head).
        meter: counts what the clients encode.
        memories: the keys and bases that each member holds; nothing by default.
        calibration_examples_of_members: for each member the examples that new keys and bases are made of, none where
            it has no need of them; empty for nobody.
        where: is told where the training is.
        coding: opened around all encoding and decoding, by whoever measures it.
    """
    where = where if where is not None else Whereabouts(cohort.active_keys)
    messenger = CohortMessenger(cohort, recipe, model.shape.hidden_size, meter, memories, where, coding)
    parameters = stack_adapters(adapters_of_members, model.device)
    round_index = cohort.members[0].key.round_index
    optimizer = CohortOptimizer(parameters, recipe.protocol.optimizer, recipe.learning_rate(round_index))
    loss_sum_C = torch.zeros(len(cohort.members), dtype=torch.float64)
    if any(len(examples) for examples in calibration_examples_of_members):
        first = [examples[None, :] for examples in calibration_examples_of_members]
        batch = cohort_batch(tokens, first, 0, recipe.pad_id)
        yield from _calibrate(model, cohort, messenger, parameters, batch)
    for step in range(cohort.num_steps):
        where.step(f"step {step}")
        batch = cohort_batch(tokens, examples_of_members, step, recipe.pad_id)
        batch = _as_members_see_it(batch, cohort, recipe)
        if cohort.split.is_cut:
            losses_C = yield from _split_step(model, cohort, messenger, parameters, batch, step)
        else:
            losses_C = _local_step(model, cohort, parameters, batch)
        optimizer.step(batch.active_C)
        loss_sum_C += losses_C.detach().double().cpu()
    answers: Sequence[ProbeAnswers | None] = [None] * len(cohort.members)
    if recipe.inquiry is not None and recipe.inquiry.clients_report:
        answers = yield from _report_answers(model, cohort, recipe, parameters, meter)
    num_steps_C = torch.tensor([member.num_steps for member in cohort.members])
    mean_loss_C = (loss_sum_C / num_steps_C).tolist()
    adapters = unstack_adapters(parameters, len(cohort.members))
    each = zip(adapters, mean_loss_C, messenger.memories, answers, strict=True)
    return [ClientResult(*own) for own in each]


def _calibrate(
    model: TripartiteModel,
    cohort: Cohort,
    messenger: CohortMessenger,
    parameters: Adapters,
    batch: CohortBatch,
) -> Generator[EdgeRequest, Payloads, None]:
    """Make keys and bases of texts set apart for them: at the first cut here, at the second at the edge."""
    with torch.no_grad():
        held = _held(model, cohort, parameters, Part.FRONT)
        h1_NSD = model.front(batch.ids_NS.to(model.device), batch.mask_NS.to(model.device), held, cohort.split)
    up = messenger.encode(Role.ACTIVATION_UP, CALIBRATION, h1_NSD, batch.sizes, batch.lengths_CB)
    down = yield EdgeRequest(EdgeCall.CALIBRATE, CALIBRATION, up)
    for position, calibrations in enumerate(down):
        if calibrations:
            messenger.take_calibrations(Role.ACTIVATION_DOWN, CALIBRATION, position, calibrations)


def _split_step(
    model: TripartiteModel,
    cohort: Cohort,
    messenger: CohortMessenger,
    parameters: Adapters,
    batch: CohortBatch,
    step: int,
) -> Generator[EdgeRequest, Payloads, Tensor]:
    """One step of methods.md 1.9; leaves the gradients in the parameters and returns the members' losses [C]."""
    mask_NS = batch.mask_NS.to(model.device)
    h1_NSD = model.front(
        batch.ids_NS.to(model.device), mask_NS, _held(model, cohort, parameters, Part.FRONT), cohort.split
    )
    up = messenger.encode(Role.ACTIVATION_UP, step, h1_NSD, batch.sizes, batch.lengths_CB)
    down = yield EdgeRequest(EdgeCall.FORWARD, step, up)
    h2_NSD, _, _ = messenger.decode(Role.ACTIVATION_DOWN, step, down, model.dtype, model.device)
    h2_NSD.requires_grad_()
    held, layers = _held(model, cohort, parameters, Part.BACK), cohort.split.layers(Part.BACK)
    losses_C = client_losses(model.scores(h2_NSD, mask_NS, held, layers), batch)
    losses_C.sum().backward()
    assert h2_NSD.grad is not None
    up = messenger.encode(Role.GRADIENT_UP, step, h2_NSD.grad, batch.sizes, batch.lengths_CB)
    down = yield EdgeRequest(EdgeCall.BACKWARD, step, up)
    g1_NSD, _, _ = messenger.decode(Role.GRADIENT_DOWN, step, down, h1_NSD.dtype, model.device)
    h1_NSD.backward(messenger.through_codec(Role.ACTIVATION_UP, step, h1_NSD, g1_NSD, batch.sizes))
    return losses_C


def _local_step(model: TripartiteModel, cohort: Cohort, parameters: Adapters, batch: CohortBatch) -> Tensor:
    """One step of the whole model on the client."""
    mask_NS = batch.mask_NS.to(model.device)
    # Without blocks at the edge the cut lies within the client: all blocks are run, whatever side of it they are on.
    embedded_NSD, layers = model.embed(batch.ids_NS.to(model.device)), range(model.shape.num_layers)
    losses_C = client_losses(model.scores(embedded_NSD, mask_NS, parameters, layers), batch)
    losses_C.sum().backward()
    return losses_C


def _as_members_see_it(batch: CohortBatch, cohort: Cohort, recipe: Recipe) -> CohortBatch:
    """Let members that train on wrong labels have them."""
    if batch.labels_CB is None or not recipe.misbehaviour:
        return batch
    round_index = cohort.members[0].key.round_index
    rows = [
        trained_labels(recipe.misbehaviour_of(member.key), labels_B, recipe.num_labels, round_index)
        for member, labels_B in zip(cohort.members, batch.labels_CB, strict=True)
    ]
    return replace(batch, labels_CB=torch.stack(rows))


@torch.no_grad()
def _report_answers(
    model: TripartiteModel, cohort: Cohort, recipe: Recipe, parameters: Adapters, meter: ByteMeter
) -> Generator[EdgeRequest, Payloads, list[ProbeAnswers]]:
    """Run the probes through the members' models and the edge's middle blocks; in the clear: probes are public."""
    assert recipe.inquiry is not None
    probes = recipe.inquiry.probes
    split, num_members = cohort.split, len(cohort.members)
    states, answers = [], []
    for ordinal, piece in enumerate(probe_pieces(len(probes))):
        ids_NS, mask_NS = probe_batch(probes, piece, num_members, recipe.pad_id)
        ids_NS, mask_NS = ids_NS.to(model.device), mask_NS.to(model.device)
        h1_NSD = model.front(ids_NS, mask_NS, _held(model, cohort, parameters, Part.FRONT), split)
        down = yield EdgeRequest(EdgeCall.PROBE, ordinal, encode_probe_states(cohort, recipe, ordinal, h1_NSD, meter))
        h2_NSD = decode_probe_states(cohort, recipe, ordinal, down, model)
        held = _held(model, cohort, parameters, Part.BACK)
        h3_NSD = model.last_hidden(h2_NSD, mask_NS, held, split)
        states.append(model.family.summary_state(h3_NSD, mask_NS))
        answers.append(class_probabilities(model, model.logits(h3_NSD, mask_NS, held)))
    return split_answers(states, answers, num_members)


def _held(model: TripartiteModel, cohort: Cohort, parameters: Adapters, part: Part) -> Adapters:
    return {tensor.name: parameters[tensor.name] for tensor in model.layout.part(cohort.split, part)}


def stack_adapters(adapters_of_members: Sequence[Adapters], device: torch.device) -> Adapters:
    """Return the members' adapters as leaves [C, ...] that take gradients."""
    names = list(adapters_of_members[0])
    return {
        name: torch.stack([adapters[name] for adapters in adapters_of_members]).to(device).requires_grad_()
        for name in names
    }


def unstack_adapters(parameters: Adapters, num_members: int) -> list[Adapters]:
    """Return each member's adapters, on the CPU."""
    detached = {name: tensor.detach().cpu() for name, tensor in parameters.items()}
    return [{name: tensor[member].clone() for name, tensor in detached.items()} for member in range(num_members)]
