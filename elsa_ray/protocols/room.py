"""Refuses clients that cannot hold their part of the model, before anything runs.

Shapes: N clients that take part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import ProtocolConfig
from elsa_ray.model.memory import client_memory_bytes
from elsa_ray.model.split import Split
from elsa_ray.protocols.setting import Setting
from elsa_ray.world.plan import Ints


def check_clients_hold(setting: Setting, config: ProtocolConfig, split: Split, clients: Sequence[int]) -> None:
    """Refuse a run in which a device is too small for its part of a split, or for all of an uncut model.

    Needed are weights, adapters, gradients and moments, and what a step keeps for its backward pass with the client's
    longest text in all places of its batch (``elsa_ray/model/memory.py``); numbers have four bytes.

    Args:
        setting: the run's circumstances.
        config: batch size and optimiser.
        split: of all clients.
        clients: who takes part.

    Raises:
        InputError: a client's memory is too small; it names the first one, its device, what is there, what is needed,
            what is missing, and what can be done.
    """
    devices = [setting.fleet.clients[client] for client in clients]
    memory_N = np.array([device.memory_bytes for device in devices])
    if not len(memory_N) or not np.isfinite(memory_N).any():
        return
    needed_N = _needed(setting, config, split, clients)
    too_small = np.flatnonzero(needed_N > memory_N)
    if not len(too_small):
        return
    first = int(too_small[0])
    name = setting.network.node_names[setting.network.clients[clients[first]]]
    memory, needed = memory_N[first], int(needed_N[first])
    others = f" (as {len(too_small) - 1} more)" if len(too_small) > 1 else ""
    smaller = "smaller parts in protocol.split, protocol.split: auto" if split.is_cut else "a protocol that splits"
    raise InputError(
        "world.clients.device",
        f"{name} ({devices[first].name}) with {memory:,.0f} bytes for training, {needed - memory:,.0f} too few{others}",
        f"at least {needed:,} bytes, which its part of the model needs; or {smaller}, a smaller batch_size or "
        "max_length, another device",
    )


def _needed(setting: Setting, config: ProtocolConfig, split: Split, clients: Sequence[int]) -> Ints:
    return client_memory_bytes(
        setting.shape,
        setting.layout,
        split,
        batch=np.minimum(config.batch_size, setting.num_examples[list(clients)]),
        length=setting.task.longest_C[list(clients)],
        num_heads=int(setting.task.backbone.config.num_attention_heads),
        optimizer_kind=config.optimizer.kind,
    )
