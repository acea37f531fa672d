"""What misbehaving clients do: pure functions of what the client itself holds or sends (methods.md 1.15; 4, item 6).

An honest client (None) gets back the very object that it gave. No draw here touches the streams of the honest run:
every seed is derived from ("misbehaviour", client, round, edge round, what).
Shapes: Q probes, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from elsa_ray.config.errors import InputError
from elsa_ray.config.misbehaviour import (
    GaussianUpdate,
    LabelFlip,
    Misbehaviour,
    NanPayload,
    ProbeLiar,
    ScaledUpdate,
    SignFlip,
    Sleeper,
    StaleReplay,
)
from elsa_ray.model.adapters import Adapters
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.world.plan import WorkKey


def misbehaviour_of_clients(
    specs: Sequence[Misbehaviour], num_clients: int, seed: int, *, where: str = "world.misbehaviour"
) -> tuple[Misbehaviour | None, ...]:
    """Return what each client does, None for the honest ones.

    Clients named by index come first. Then each entry with a share, in order, takes floor(share * num_clients) of those
    still honest, in one random order of all clients; so a further entry at the end of the list changes nobody before.

    Args:
        specs: the config's list; entries never overlap.
        num_clients: of the run.
        seed: the run's.
        where: the config field, for errors.

    Raises:
        InputError: an index is out of range or stands twice, a share is no whole client, or the shares exceed who is
            left.
    """
    deeds: list[Misbehaviour | None] = [None] * num_clients
    for position, spec in enumerate(specs):
        for client in spec.clients or ():
            field = f"{where}.{position}.clients"
            if client >= num_clients:
                raise InputError(field, client, f"indices from 0 to {num_clients - 1}")
            if deeds[client] is not None:
                raise InputError(field, f"client {client} twice", "each client once in the whole list")
            deeds[client] = spec
    order = numpy_generator(seed, "misbehaviour").permutation(num_clients).tolist()
    honest = [client for client in order if deeds[client] is None]
    for position, spec in enumerate(specs):
        if spec.share is None:
            continue
        # As a decimal fraction: 0.29 of 100 clients are 29, which the product of floats misses.
        count = math.floor(Fraction(str(spec.share)) * num_clients)
        if not 0 < count <= len(honest):
            allowed = "a share of at least one client" if count == 0 else f"at most the {len(honest)} still honest"
            raise InputError(f"{where}.{position}.share", f"{spec.share} of {num_clients} clients", allowed)
        taken, honest = honest[:count], honest[count:]
        for client in taken:
            deeds[client] = spec
    return tuple(deeds)


def deed_of_round(spec: Misbehaviour | None, round_index: int) -> Misbehaviour | None:
    """Return what a client does in a global round: a sleeper is honest first, then what it has slept for."""
    if isinstance(spec, Sleeper):
        return None if round_index < spec.rounds else spec.then
    return spec


def needs_memory(spec: Misbehaviour | None) -> bool:
    """Return whether the client must keep the first adapters that it sent, for ``previous`` of ``sent_adapters``."""
    deed = spec.then if isinstance(spec, Sleeper) else spec
    return isinstance(deed, StaleReplay)


def trained_labels(spec: Misbehaviour | None, labels: Tensor, num_classes: int, round_index: int) -> Tensor:
    """Return the labels, of any shape, that the client trains on; negative ones (no text) stay as they are."""
    if isinstance(deed_of_round(spec, round_index), LabelFlip):
        return torch.where(labels < 0, labels, num_classes - 1 - labels)
    return labels


def sent_adapters(
    spec: Misbehaviour | None,
    received: Adapters,
    trained: Adapters,
    previous: Adapters | None,
    key: WorkKey,
    seed: int,
) -> Adapters:
    """Return the adapters that the client sends in place of what it has trained.

    Args:
        spec: what it does.
        received: the tensors that it started from.
        trained: what honest training made of them, under the same names.
        previous: what it sent the first time, for ``stale_replay``; None if it has not sent anything yet.
        key: its work item.
        seed: the run's.
    """
    match deed_of_round(spec, key.round_index):
        case SignFlip(scale=scale):
            return {name: received[name] - scale * (tensor - received[name]) for name, tensor in trained.items()}
        case ScaledUpdate(factor=factor):
            return {name: received[name] + factor * (tensor - received[name]) for name, tensor in trained.items()}
        case GaussianUpdate(deviation=deviation):
            return {
                name: received[name] + deviation * _noise_like(tensor - received[name], key, seed, name)
                for name, tensor in trained.items()
            }
        case StaleReplay() if previous is not None:
            # A split that has grown since then brings tensors that it had not sent.
            return {name: previous.get(name, tensor) for name, tensor in trained.items()}
        case NanPayload():
            return {name: torch.full_like(tensor, torch.nan) for name, tensor in trained.items()}
    return trained


def told_answers(spec: Misbehaviour | None, answers_QK: Tensor, key: WorkKey, seed: int) -> Tensor:
    """Return the class probabilities that the client reports for the public probes.

    A probe liar draws each row from the uniform distribution over all probability vectors.
    """
    if not isinstance(deed_of_round(spec, key.round_index), ProbeLiar):
        return answers_QK
    num_probes, num_classes = answers_QK.shape
    drawn_QK = _generator(key, seed, "probe answers").dirichlet(np.ones(num_classes), num_probes)
    return torch.from_numpy(drawn_QK).to(answers_QK)


def _noise_like(update: Tensor, key: WorkKey, seed: int, name: str) -> Tensor:
    """Normal noise with the root mean square of an update in expectation; each tensor has its own stream."""
    noise = torch.from_numpy(_generator(key, seed, f"update {name}").standard_normal(tuple(update.shape)))
    return noise.to(update) * update.square().mean().sqrt()


def _generator(key: WorkKey, seed: int, what: str) -> np.random.Generator:
    return numpy_generator(seed, "misbehaviour", key.client, key.round_index, key.edge_round, what)
