"""What an attacker may read of a run, and apart from it what was true.

``Observed`` is made of the bytes that were sent, by the codecs' own receiving ends; ``Truth`` is for scoring alone, and
for the oracle that grants known plaintexts.
Shapes: B texts, S tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain, Memory, matching_memory
from elsa_ray.codecs.wire import calibration_num_bytes, decode_hidden
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.privacy.tap import Message, Tap
from elsa_ray.protocols.setting import Setting
from elsa_ray.tasks.batches import ABSENT
from elsa_ray.tasks.tokens import pad_batch
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.training.cohort import CALIBRATION, ByteMeter, Cohort, Member
from elsa_ray.training.memory import CutMemory
from elsa_ray.training.messages import MAKERS, CohortMessenger
from elsa_ray.training.recipe import Chains, Recipe
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role


class Attacker(Enum):
    """Who reads along."""

    EDGE = "edge"
    """The edge server itself. An eavesdropper on its links to the clients reads the same, if nothing is encrypted."""
    KEYLESS = "keyless"
    """An eavesdropper on these links who lacks the KEY messages: they are taken to travel through a secure channel."""


@dataclass(frozen=True)
class SeenStep:
    """One step as its payloads show it.

    Attributes:
        lengths_B: tokens of each text; they travel in the clear.
        states_BSD: ``activation_up``, decoded.
        gradients_BSD: ``gradient_up``, decoded.
    """

    lengths_B: Tensor
    states_BSD: Tensor
    gradients_BSD: Tensor


@dataclass(frozen=True)
class SeenWork:
    """One work item of a client.

    Attributes:
        split: where its model is cut.
        held: keys and bases of both cuts that the attacker has; () for one that it lacks.
        steps: in order.
    """

    split: Split
    held: CutMemory
    steps: tuple[SeenStep, ...]


@dataclass(frozen=True)
class Observed:
    """What an attacker reads.

    Attributes:
        attacker: who.
        messages: the bytes, keys and bases included as far as it gets them.
        works: what it makes of them.
        models: the global model at the start of each round, which passes edges and links.
    """

    attacker: Attacker
    messages: tuple[Message, ...]
    works: Mapping[WorkKey, SeenWork]
    models: Mapping[int, Adapters]


@dataclass(frozen=True)
class TrueStep:
    """One step of a client as it was.

    Attributes:
        examples_B: positions in the training set.
        ids_BS: token ids, padded.
        labels_B: of the training set; None for causal_lm.
        states_BSD: at the first cut, before the codecs.
    """

    examples_B: npt.NDArray[np.int64]
    ids_BS: Tensor
    labels_B: Tensor | None
    states_BSD: Tensor


@dataclass(frozen=True)
class Truth:
    """What no attacker may read.

    Attributes:
        steps: of each work item.
        keys: what the client itself held at the first cut: its secret keys, and bases.
    """

    steps: Mapping[WorkKey, tuple[TrueStep, ...]]
    keys: Mapping[WorkKey, Memory]


def observe(tap: Tap, recipe: Recipe, width: int, attacker: Attacker) -> Observed:
    """Return what an attacker makes of the bytes.

    Args:
        tap: what was sent.
        recipe: codecs and the public seeds of their hashes.
        width: D.
        attacker: who reads.
    """
    held_of_client: dict[int, CutMemory] = {}
    works, read = {}, list[Message]()
    for work, (member, split) in tap.members.items():
        messages = tap.messages[work]
        before = held_of_client.get(work.client, CutMemory())
        held_of_client[work.client] = _held_by_edge(messages, member, split, recipe, width, before)
        held = held_of_client[work.client]
        if attacker is Attacker.KEYLESS:
            activation = recipe.chains.activation
            held = CutMemory(without_keys(activation, held.first), without_keys(activation, held.second))
            messages = [_without_key_payloads(message, activation, width) for message in messages]
        works[work] = SeenWork(split, held, _seen_steps(messages, held, recipe))
        read += messages
    return Observed(attacker, tuple(read), works, dict(tap.models))


def truth_of(tap: Tap, setting: Setting, recipe: Recipe) -> Truth:
    """Return what was true of everything that was written down."""
    task = setting.task
    steps: dict[WorkKey, tuple[TrueStep, ...]] = {}
    keys: dict[WorkKey, Memory] = {}
    for work in tap.members:
        examples_TB = examples_of_steps(work, task.partition[work.client], recipe.protocol, recipe.seed)
        own = []
        for step, row_B in enumerate(examples_TB):
            plain, row_B = tap.plain[work, step], row_B[row_B != ABSENT]
            length = int(task.train.lengths[row_B].max())
            ids_BS, _ = pad_batch(task.train, row_B, length, recipe.pad_id)
            labels_B = None if task.train.labels is None else torch.from_numpy(task.train.labels[row_B])
            states_BSD = plain.rows_TD.reshape(len(row_B), length, -1)
            own.append(TrueStep(row_B, torch.from_numpy(ids_BS), labels_B, states_BSD))
            keys[work] = plain.memory
        steps[work] = tuple(own)
    return Truth(steps, keys)


def role_memory(chains: Chains, held: CutMemory, role: Role) -> Memory:
    """Return what serves a message that goes up, in its own chain's form, of what is held."""
    if role is Role.ACTIVATION_UP:
        return held.first
    return matching_memory(chains.activation, chains.gradient, held.second)


def without_keys(chain: CodecChain, memory: Memory) -> Memory:
    """Return a memory of the chain without what only KEY messages carry."""
    if not memory:
        return memory
    roles = [stage.calibration.role if stage.calibration else None for stage in chain.stages]
    return tuple(() if role is Role.KEY else own for role, own in zip(roles, memory, strict=True))


def ships_keys(chain: CodecChain) -> bool:
    """Whether KEY messages travel, so that it makes a difference who reads them."""
    return any(stage.calibration is not None and stage.calibration.role is Role.KEY for stage in chain.stages)


def _held_by_edge(
    messages: Sequence[Message], member: Member, split: Split, recipe: Recipe, width: int, before: CutMemory
) -> CutMemory:
    """Return what the edge holds of a client during a work item: its first messages carry both cuts' keys and bases."""
    if not member.calibrates:
        return before
    receiver = CohortMessenger(Cohort("replay", (member,), split), recipe, width, ByteMeter(), [before])
    first = 0 if recipe.chains.calibration_texts is None else CALIBRATION
    for message in messages:
        if message.step == first and message.role in MAKERS:
            receiver.take_calibrations(message.role, message.step, 0, message.calibrations)
    (held,) = receiver.memories
    return held


def _without_key_payloads(message: Message, chain: CodecChain, width: int) -> Message:
    if not message.calibrations:
        return message
    shipped = calibration_num_bytes(chain, width, MAKERS[message.role])
    kept = [payload for (role, _), payload in zip(shipped, message.calibrations, strict=True) if role is not Role.KEY]
    return Message(message.work, message.step, message.role, tuple(kept), message.payload)


def _seen_steps(messages: Sequence[Message], held: CutMemory, recipe: Recipe) -> tuple[SeenStep, ...]:
    decoded: dict[tuple[int, Role], tuple[Tensor, Tensor | None]] = {}
    for message in messages:
        if message.step != CALIBRATION and message.role in (Role.ACTIVATION_UP, Role.GRADIENT_UP):
            chain, context = (
                recipe.chains.of_step(message.role),
                recipe.context(message.work, message.role, message.step),
            )
            memory = role_memory(recipe.chains, held, message.role)
            decoded[message.step, message.role] = decode_hidden(chain, message.role, message.payload, context, memory)
    steps = []
    for step in sorted({step for step, _ in decoded}):
        states_BSD, lengths_B = decoded[step, Role.ACTIVATION_UP]
        gradients_BSD, _ = decoded[step, Role.GRADIENT_UP]
        assert lengths_B is not None, "activation_up tells the texts' lengths"
        steps.append(SeenStep(lengths_B, states_BSD, gradients_BSD))
    return tuple(steps)
