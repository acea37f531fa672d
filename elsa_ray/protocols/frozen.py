"""Frozen weights on their way to clients that take part for the first time: ``weights_down``."""

from __future__ import annotations

import numpy as np

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.model.cost import frozen_num_bytes
from elsa_ray.model.split import Part, Split
from elsa_ray.protocols.local_work import FP32_BYTES
from elsa_ray.protocols.protocol import ProtocolState
from elsa_ray.protocols.setting import Setting
from elsa_ray.world.plan import Ints, PlanBuilder
from elsa_ray.world.roles import Role


def send_frozen_to_clients(
    builder: PlanBuilder, setting: Setting, state: ProtocolState, split: Split, clients: Ints, items: Ints
) -> Ints:
    """Plan ``weights_down`` from the cloud to those clients that lack their blocks, as part of their work items.

    Returns:
        The rows, in the order of the clients; -1 for those that get nothing (all, where blocks are preloaded).
    """
    rows = np.full(len(clients), -1, np.int64)
    lacking = ~np.isin(clients, sorted(state.loaded_clients))
    if setting.config.task.preloaded or not lacking.any():
        return rows
    size = sum(frozen_num_bytes(setting.shape, split, part, FP32_BYTES) for part in (Part.FRONT, Part.BACK))
    rows[lacking] = builder.transfers(
        source=setting.cloud,
        target=setting.network.clients[clients[lacking]].astype(np.int64),
        label=Role.WEIGHTS_DOWN,
        client=clients[lacking],
        num_bytes=HEADER_BYTES + size,
        uncompressed_bytes=size,
        work=items[lacking],
    )
    return rows
