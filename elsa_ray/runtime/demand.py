"""What a run asks of a cluster: its hosts, its pools, and the memory of a pool."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.model.adapters import AdapterLayout
from elsa_ray.model.memory import OptimizerKind, client_memory_bytes
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import whole
from elsa_ray.protocols.setting import Setting
from elsa_ray.runtime.jobs import CLOUD, host_names
from elsa_ray.runtime.placement import Node, Placement, Wanted, place

PROCESS_BYTES = 250_000_000
"""Resident memory of a worker with torch and Ray before it has any tensor of its own."""
NUMBER_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}
"""Of a number by the precision of the computation."""


def place_run(setting: Setting, nodes: Sequence[Node]) -> Placement:
    """Decide resources and nodes of all actors of a run.

    Raises:
        InputError: ``runtime`` names a device that no client has, or asks for more GPU memory than there is.
    """
    runtime, numerics = setting.config.runtime, setting.config.numerics
    return place(
        nodes,
        actors_wanted(setting),
        threads=runtime.threads,
        on_gpu=numerics.device == "cuda",
        gpu_context_bytes=int(runtime.gpu_context),
        pool_memory_bytes=pool_memory_bytes(setting) if numerics.device == "cpu" else PROCESS_BYTES,
    )


def actors_wanted(setting: Setting) -> list[Wanted]:
    """Return what a run asks for: cloud, edge groups, pools for all clients, and pools by their devices.

    Raises:
        InputError: ``runtime.pools_by_device`` names a device that no client has.
    """
    runtime = setting.config.runtime
    of_device = {device.name: 0 for device in setting.fleet.clients}
    for device in setting.fleet.clients:
        of_device[device.name] += 1
    for name in runtime.pools_by_device:
        if name not in of_device:
            nearest = nearest_name(name, of_device)
            where = "runtime.pools_by_device"
            raise InputError(where, name, f"devices of this run's clients: {', '.join(of_device)}", nearest=nearest)
    common = sum(number for name, number in of_device.items() if name not in runtime.pools_by_device)
    wanted = [Wanted("cloud", "runtime.cloud_resources", runtime.cloud_resources, (CLOUD,))]
    edge_groups = tuple(host_names(setting))
    if edge_groups:
        asked = None if runtime.edge_actors == "auto" else runtime.edge_actors
        wanted.append(Wanted("edge groups", "runtime.edge_resources", runtime.edge_resources, edge_groups, asked))
    wanted.append(
        Wanted(
            "pools",
            "runtime.pool_resources",
            runtime.pool_resources,
            number=_number(runtime.pools, runtime.clients_per_pool, common),
            clients=common,
        )
    )
    for name, own in runtime.pools_by_device.items():
        number = own.pools
        if number == "auto" and runtime.clients_per_pool is not None:
            number = math.ceil(of_device[name] / runtime.clients_per_pool)
        wanted.append(
            Wanted(
                f"pools of {name}",
                f"runtime.pools_by_device.{name}",
                own,
                number=None if number == "auto" else number,
                clients=of_device[name],
                devices=(name,),
            )
        )
    return wanted


def pool_memory_bytes(setting: Setting) -> int:
    """Return the main memory of a pool: the process, and its cohorts under way with the longest texts in all places.

    The frozen weights are not in it: all workers of a node share those of the object store.
    """
    config = setting.config
    cohort = cohort_memory_bytes(
        setting.shape,
        setting.layout,
        members=min(config.numerics.cohort, setting.num_clients),
        batch=config.protocol.batch_size,
        length=int(setting.task.longest_C.max()),
        num_heads=int(setting.task.backbone.config.num_attention_heads),
        optimizer_kind=config.protocol.optimizer.kind,
        number_bytes=NUMBER_BYTES[config.numerics.precision],
    )
    return PROCESS_BYTES + config.runtime.in_flight * cohort


def cohort_memory_bytes(
    shape: ModelShape,
    layout: AdapterLayout,
    *,
    members: int,
    batch: int,
    length: int,
    num_heads: int,
    optimizer_kind: OptimizerKind,
    number_bytes: int,
) -> int:
    """Return what a cohort of whole models trains with: adapters, gradients, moments, and what backward passes need.

    Args:
        shape, layout: the model and its trained tensors.
        members: clients of the cohort.
        batch, length: texts of each client's step, and their tokens.
        num_heads: of attention.
        optimizer_kind: decides the number of moments.
        number_bytes: of a number.
    """
    member = client_memory_bytes(
        shape,
        layout,
        whole(shape.num_layers),
        batch=batch,
        length=length,
        num_heads=num_heads,
        optimizer_kind=optimizer_kind,
        number_bytes=number_bytes,
    )
    return members * max(0, int(member) - shape.num_parameters * number_bytes)


def _number(pools: int | str, clients_per_pool: int | None, clients: int) -> int | None:
    if clients_per_pool is not None:
        return math.ceil(clients / clients_per_pool)
    return None if isinstance(pools, str) else pools
