"""The ``runtime`` section: where the work is computed. Nothing here can change a number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from elsa_ray.config.section import PositiveInt, Section
from elsa_ray.config.units import NumBytes, Seconds

Share = Annotated[float, Field(ge=0)] | Literal["auto"]


class ActorResources(Section):
    """What Ray reserves for one actor."""

    num_cpus: Share = 0.0
    """``auto``, for pools: one CPU, or less where there are more pools than CPUs."""
    num_gpus: Share = "auto"
    """``auto``, where ``numerics.device`` is cuda: what ``gpu_memory`` is of a GPU, or without it an equal share of
    what is left; else 0."""
    gpu_memory: Annotated[NumBytes, Field(gt=0)] | None = None
    """Most memory of its GPU that the actor takes, its CUDA context included; torch refuses it more."""
    custom: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom resources of the cluster, such as ``{client_node: 0.1}``."""

    @field_validator("num_gpus")
    @classmethod
    def _whole_beyond_one(cls, value: Share) -> Share:
        if isinstance(value, float) and value > 1 and value != int(value):
            raise ValueError("a part of one GPU, or a whole number of GPUs")
        return value


class PoolResources(ActorResources):
    """What Ray reserves for one client pool."""

    num_cpus: Share = "auto"


class DevicePools(PoolResources):
    """The pools of the clients that have one kind of device."""

    pools: PositiveInt | Literal["auto"] = "auto"
    """``auto``: as many as fit, beside the other pools in proportion to the clients of each."""


class RuntimeConfig(Section):
    """The executor and its workers."""

    executor: Literal["ray", "inline", "none"] = "ray"
    """``ray``: actors; ``inline``: this process, for debugging; ``none``: plan and time only."""
    pools: PositiveInt | Literal["auto"] = "auto"
    """Client pools; ``auto``: as many as fit, at most one for ``threads`` CPUs, or one a GPU."""
    clients_per_pool: PositiveInt | None = None
    """Instead of ``pools``: one pool for so many clients. A cohort is always computed whole by one pool, so one actor
    a client also needs ``numerics.cohort: 1``."""
    in_flight: PositiveInt = 2
    """Cohorts that a pool keeps under way, so that it works while one is at the edge."""
    threads: PositiveInt = 1
    """Threads of each worker's matrix products."""
    timeout_seconds: Annotated[Seconds, Field(gt=0)] = 600.0
    """Longest wait for an answer. A pool that trains a cohort has this long for each step of each cohort in flight."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often the same work is done again, a cohort or a whole round, because a worker or its node died."""
    startup_timeout_seconds: Seconds = 600.0
    """Longest wait for the cluster to grow until the actors fit."""
    keep_checkpoints: Annotated[int, Field(ge=0)] = 2
    """How many of the last checkpoints are kept, of which one is written after every round; with 0 there are none, and
    an interrupted run cannot be resumed."""
    edge_actors: PositiveInt | Literal["auto"] = "auto"
    """Actors that carry the edge groups, each about as many; ``auto``: one an edge group, but no more than CPUs, or
    than find room beside all others by what they reserve, and one a GPU where they share GPUs equally."""
    pool_resources: PoolResources = PoolResources()
    pools_by_device: dict[str, DevicePools] = {}
    """Pools of their own for clients by the name of their device, such as ``{phone: {pools: 2, num_cpus: 0.5}}``. A
    cohort goes to the pools of most of its members; devices that are not named share the other pools."""
    edge_resources: ActorResources = ActorResources()
    cloud_resources: ActorResources = ActorResources()
    gpu_context: NumBytes = 600e6
    """GPU memory that a process takes before its first tensor: the part of ``gpu_memory`` that is not for tensors."""
