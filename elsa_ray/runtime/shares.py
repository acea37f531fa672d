"""Decides ``auto``: which part of a CPU or a GPU each actor reserves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from elsa_ray.config.runtime import ActorResources
from elsa_ray.runtime.resources import TINY, Need, Node, Wanted


def decide_needs(nodes: Sequence[Node], wanted: Sequence[Wanted], *, on_gpu: bool) -> list[Need]:
    """Decide what each kind of actor reserves, but for the CPUs of pools that are ``auto``: these are 0 here.

    Args:
        nodes: the cluster.
        wanted: by the run.
        on_gpu: whether the workers compute on GPUs.
    """
    gpu_shares = _gpu_shares(nodes, wanted) if on_gpu else [0.0] * len(wanted)
    needs = []
    for own, auto_gpus in zip(wanted, gpu_shares, strict=True):
        asked = own.asked
        memory = None if asked.gpu_memory is None or not on_gpu else int(asked.gpu_memory)
        num_cpus = 0.0 if asked.num_cpus == "auto" else asked.num_cpus
        num_gpus = auto_gpus if asked.num_gpus == "auto" else asked.num_gpus
        needs.append(Need(num_cpus, num_gpus, dict(asked.custom), memory))
    return needs


def with_cpus_of_pools(
    nodes: Sequence[Node], wanted: Sequence[Wanted], needs: Sequence[Need], taken: Mapping[str, float], threads: int
) -> list[Need]:
    """Decide the CPUs of pools that are ``auto``: one for each thread, or less where there are more pools than CPUs.

    Args:
        nodes: the cluster.
        wanted: by the run.
        needs: of each kind.
        taken: CPUs of hosts, by node.
        threads: of a pool.
    """
    auto = [own.is_pools and own.asked.num_cpus == "auto" for own in wanted]
    decided = []
    for own, need, is_auto in zip(wanted, needs, auto, strict=True):
        if not is_auto:
            decided.append(need)
            continue
        cpus = [node.total.get("CPU", 0.0) - taken.get(node.node_id, 0.0) for node in nodes if _could_fit(node, need)]
        # Kinds with the same custom resources share the same CPUs.
        rivals = sum(
            other.number or 0
            for other, is_rival in zip(wanted, auto, strict=True)
            if is_rival and other.asked.custom == own.asked.custom
        )
        share = largest_share(cpus, max(1, rivals), most=float(threads))
        decided.append(replace(need, num_cpus=share or float(threads)))
    return decided


def largest_share(capacities: Iterable[float], count: int, *, most: float) -> float:
    """Return the largest share, at most ``most``, of which ``count`` fit when none is cut in two.

    Args:
        capacities: what each node (or each GPU) has.
        count: shares.
        most: of one.

    Returns:
        The share in whole ten-thousandths, as Ray counts; 0 where there is nothing.
    """
    whole = [capacity for capacity in capacities if capacity > 0]
    if not whole:
        return 0.0
    candidates = {most} | {capacity / parts for capacity in set(whole) for parts in range(1, count + 1)}
    for share in sorted((_rounded_down(own) for own in candidates if own <= most), reverse=True):
        if share > 0 and sum(times(capacity, share) for capacity in whole) >= count:
            return share
    return 0.0


def times(capacity: float, share: float) -> int:
    """Return how often a share fits."""
    return int(capacity / share + 1e-6)


def _gpu_shares(nodes: Sequence[Node], wanted: Sequence[Wanted]) -> list[float]:
    """Of a GPU: what is asked, or ``auto``: what the memory is of it, or without it equal shares of what is left."""
    sizes = [size for node in nodes for size in node.gpu_memory_bytes]
    num_gpus = int(sum(node.total.get("GPU", 0.0) for node in nodes))
    stated = [_stated_gpu_share(own.asked, sizes) for own in wanted]
    numbers = [own.number or 0 for own in wanted]
    pairs = list(zip(stated, numbers, strict=True))
    reserved = sum(number * share for share, number in pairs if share is not None)
    equal = sum(number for share, number in pairs if share is None)
    free = max(0.0, 1.0 - reserved / num_gpus) if num_gpus else 0.0
    share_of_equal = largest_share([free] * num_gpus, equal, most=1.0) if equal else 0.0
    # Without any GPU, or any room on one, it waits for a whole one to come.
    return [share_of_equal or 1.0 if share is None else share for share in stated]


def _stated_gpu_share(asked: ActorResources, sizes: Sequence[int]) -> float | None:
    if asked.num_gpus != "auto":
        return asked.num_gpus
    if asked.gpu_memory is None or not sizes:
        return None
    return min(1.0, _rounded_up(asked.gpu_memory / min(sizes)))


def _could_fit(node: Node, need: Need) -> bool:
    """Whether a node has the kinds of resources that an actor needs, CPUs aside."""
    needed = {name: amount for name, amount in need.bundle.items() if name != "CPU"}
    return all(node.total.get(name, 0.0) >= amount - TINY for name, amount in needed.items())


def _rounded_down(share: float) -> float:
    """Ray counts resources in ten-thousandths."""
    return math.floor(share * 10_000 + 1e-6) / 10_000


def _rounded_up(share: float) -> float:
    return math.ceil(share * 10_000 - 1e-6) / 10_000
