"""What nodes have, what actors need, and what a run asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from elsa_ray.config.runtime import ActorResources

TINY = 1e-9
"""Shares are decimal fractions; sums of them are compared with this tolerance."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        node_id: Ray's.
        name: for people.
        total: what it has, by Ray's names: CPU, GPU, memory in bytes, custom resources.
        free: what of it nobody has reserved.
        gpu_memory_bytes: of each GPU; empty where it is not known.
    """

    node_id: str
    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    gpu_memory_bytes: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """CPUs, GPUs and custom resources in words; nodes of equal kind are alike."""
        parts = [f"{self.total.get('CPU', 0):g} CPU"]
        if self.total.get("GPU"):
            parts.append(f"{self.total['GPU']:g} GPU")
        parts += [name for name in sorted(self.total) if _is_custom(name)]
        return " + ".join(parts)


@dataclass(frozen=True)
class Need:
    """What Ray reserves for one actor.

    Attributes:
        num_cpus, num_gpus: shares.
        custom: custom resources.
        gpu_memory_bytes: most memory of its GPU, context included; None for no limit.
    """

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    gpu_memory_bytes: int | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """By Ray's names, without what is zero."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.custom}
        return {name: amount for name, amount in asked.items() if amount > 0}


@dataclass(frozen=True)
class Wanted:
    """Actors of one kind that a run asks for.

    Attributes:
        kind: in words, such as ``edge groups`` or ``pools of phone``.
        where: the config field of their resources.
        asked: these resources.
        hosts: what the actors carry: the cloud, or edge groups; pools carry none.
        number: of the actors, at most one for each host; None for as many as are of use.
        clients: whom pools serve: there are never more pools than that.
        devices: kinds of devices of these clients; None for all that no other pools serve.
    """

    kind: str
    where: str
    asked: ActorResources
    hosts: tuple[str, ...] = ()
    number: int | None = None
    clients: int = 0
    devices: tuple[str, ...] | None = None

    @property
    def is_pools(self) -> bool:
        """Whether these are client pools."""
        return not self.hosts


def need_text(need: Need) -> str:
    """Return what is reserved for an actor in words."""
    parts = [f"{need.num_cpus:g} CPU"]
    if need.num_gpus:
        parts.append(f"{need.num_gpus:g} GPU")
    if need.gpu_memory_bytes is not None:
        parts.append(f"at most {gigabytes(need.gpu_memory_bytes)} of GPU memory")
    parts += [f"{amount:g} {name}" for name, amount in sorted(need.custom.items())]
    return " + ".join(parts)


def gigabytes(num_bytes: float) -> str:
    """Return such as ``23.5 GB``."""
    return f"{num_bytes / 1e9:.4g} GB"


def _is_custom(name: str) -> bool:
    return name not in ("CPU", "GPU", "memory", "object_store_memory") and not name.startswith(
        ("node:", "accelerator_type:")
    )
