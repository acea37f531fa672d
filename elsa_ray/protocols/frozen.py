"""Frozen weights on their way to clients that take part for the first time: ``weights_down``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.split import AutoSplitConfig
from elsa_ray.model.cost import blocks_num_bytes, frozen_num_bytes
from elsa_ray.model.split import Part, Split
from elsa_ray.protocols.local_work import FP32_BYTES
from elsa_ray.protocols.protocol import ProtocolState
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.split_steps import Members
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


def send_new_blocks(
    builder: PlanBuilder,
    setting: Setting,
    loaded_clients: Collection[int],
    held_layers: Sequence[frozenset[int]],
    members: Members,
) -> Ints:
    """Plan ``weights_down`` to members that lack blocks of their split, as part of their work items.

    A client that has nothing yet (unless blocks are preloaded) gets all of its parts, embeddings and head included; one
    whose split has grown since gets the new blocks, which is charged in any case.

    Returns:
        The rows, in the order of the members; -1 for those that get nothing.
    """
    rows = np.full(len(members.clients), -1, np.int64)
    for position, (client, split) in enumerate(zip(members.clients.tolist(), members.splits, strict=True)):
        needed = {*split.layers(Part.FRONT), *split.layers(Part.BACK)}
        missing = needed - held_layers[client]
        size = blocks_num_bytes(setting.shape, len(missing), FP32_BYTES)
        if client not in loaded_clients and not setting.config.task.preloaded:
            size = sum(frozen_num_bytes(setting.shape, split, part, FP32_BYTES) for part in (Part.FRONT, Part.BACK))
        elif not missing:
            continue
        (rows[position],) = builder.transfers(
            source=setting.cloud,
            target=members.nodes[position],
            label=Role.WEIGHTS_DOWN,
            client=client,
            num_bytes=HEADER_BYTES + size,
            uncompressed_bytes=size,
            work=members.items[position],
        )
    return rows


def edge_parts(setting: Setting) -> tuple[Part, ...]:
    """Return the parts whose frozen blocks an edge needs.

    The middle; everything where clients may be cut anywhere, or where the edge itself runs whole models on probes.
    """
    protocol, inquiry = setting.config.protocol, setting.inquiry
    verifies = inquiry is not None and not inquiry.clients_report
    is_auto = isinstance(getattr(protocol, "split", None), AutoSplitConfig)
    return tuple(Part) if verifies or is_auto else (Part.MIDDLE,)
