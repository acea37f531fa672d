"""What a training step is expected to take, before any is planned: for assignment and for the choice of splits.

Shapes: N clients, K edges, X options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elsa_ray.clustering.assignment import RoundTrips
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.cost import step_flops
from elsa_ray.model.split import Split
from elsa_ray.protocols.local_work import LocalWork
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.split_steps import distinct
from elsa_ray.world.plan import Floats, Ints
from elsa_ray.world.roles import Role


@dataclass(frozen=True)
class UsualStep:
    """Each client's usual training step: a full batch of texts of the client's mean length.

    Attributes:
        batch_N, length_N: texts, and tokens of each.
        up_bytes_N, down_bytes_N: of both messages of a direction together.
    """

    batch_N: Ints
    length_N: Ints
    up_bytes_N: Floats
    down_bytes_N: Floats


def usual_step(setting: Setting, config: ProtocolConfig) -> UsualStep:
    """Return what a step of each client usually is."""
    batch_N = np.minimum(config.batch_size, setting.num_examples)
    length_N = np.ceil(setting.task.mean_length_C).astype(np.int64)
    usual = LocalWork(np.ones_like(batch_N), batch_N[:, None], length_N[:, None])
    up = usual.step_bytes(setting, Role.ACTIVATION_UP) + usual.step_bytes(setting, Role.GRADIENT_UP)
    down = usual.step_bytes(setting, Role.ACTIVATION_DOWN) + usual.step_bytes(setting, Role.GRADIENT_DOWN)
    return UsualStep(batch_N, length_N, up[:, 0].astype(np.float64), down[:, 0].astype(np.float64))


def round_trips(setting: Setting, step: UsualStep) -> RoundTrips:
    """Return what a step's four messages take through each edge, on idle links, of the clients that one asks for."""
    return RoundTrips(setting.network, setting.router, up_bytes_N=step.up_bytes_N, down_bytes_N=step.down_bytes_N)


def compute_seconds(setting: Setting, step: UsualStep, splits: Sequence[Split]) -> Floats:
    """Return the time [N] that a client's and an idle edge's computations of a step take, each under its split."""
    seconds_N = np.zeros(setting.num_clients)
    rate_N = np.array([device.flops_per_second for device in setting.fleet.clients])
    different, split_of_client = distinct(splits)
    for number, split in enumerate(different):
        own = split_of_client == number
        flops = step_flops(setting.shape, setting.layout, split)
        on_client = flops.front_forward + flops.back_forward_backward + flops.front_backward
        on_edge = flops.middle_forward + flops.middle_backward
        shape = (step.batch_N[own], step.length_N[own])
        seconds_N[own] = on_client.total(*shape) / rate_N[own] + (
            on_edge.total(*shape) / setting.fleet.edge.flops_per_second
        )
    return seconds_N


def steps_a_round(setting: Setting, config: ProtocolConfig) -> npt.NDArray[np.float64]:
    """Return the optimiser steps [N] of each client in an edge round."""
    if config.local_steps is not None:
        return np.full(setting.num_clients, float(config.local_steps))
    assert config.local_epochs is not None
    batches: npt.NDArray[np.float64] = np.ceil(setting.num_examples / config.batch_size) * config.local_epochs
    return batches
