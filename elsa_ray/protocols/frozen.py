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
    preloaded, sizes = setting.config.task.preloaded, dict[tuple[int, bool, frozenset[int]], int]()
    size_W = np.zeros(len(members.clients), np.int64)
    for position, (client, kind) in enumerate(zip(members.clients.tolist(), members.split_W.tolist(), strict=True)):
        has_nothing = not preloaded and client not in loaded_clients
        key = (kind, has_nothing, held_layers[client])
        if key not in sizes:
            sizes[key] = _missing_num_bytes(setting, members.splits[kind], has_nothing, held_layers[client])
        size_W[position] = sizes[key]
    rows, lacking = np.full(len(size_W), -1, np.int64), np.flatnonzero(size_W)
    if len(lacking):
        rows[lacking] = builder.transfers(
            source=setting.cloud,
            target=members.nodes[lacking],
            label=Role.WEIGHTS_DOWN,
            client=members.clients[lacking],
            num_bytes=HEADER_BYTES + size_W[lacking],
            uncompressed_bytes=size_W[lacking],
            work=members.items[lacking],
            group=members.groups[lacking],
        )
    return rows


def _missing_num_bytes(setting: Setting, split: Split, has_nothing: bool, held: frozenset[int]) -> int:
    """Return the bytes of the frozen blocks that a client lacks for its split; 0 where it lacks none."""
    if has_nothing:
        return sum(frozen_num_bytes(setting.shape, split, part, FP32_BYTES) for part in (Part.FRONT, Part.BACK))
    missing = {*split.layers(Part.FRONT), *split.layers(Part.BACK)} - held
    return blocks_num_bytes(setting.shape, len(missing), FP32_BYTES)


def edge_parts(setting: Setting) -> tuple[Part, ...]:
    """Return the parts whose frozen blocks an edge needs.

    The middle; everything where clients may be cut anywhere, or where the edge itself runs whole models on probes.
    """
    protocol, inquiry = setting.config.protocol, setting.inquiry
    verifies = inquiry is not None and not inquiry.clients_report
    is_auto = isinstance(getattr(protocol, "split", None), AutoSplitConfig)
    return tuple(Part) if verifies or is_auto else (Part.MIDDLE,)
