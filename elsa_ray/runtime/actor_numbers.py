"""Decides ``auto``: how many actors of a kind are of use, before anything is placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from elsa_ray.runtime.resources import Need, Node, Wanted
from elsa_ray.runtime.shares import decide_needs, times


def bounded(own: Wanted, nodes: Sequence[Node], *, on_gpu: bool) -> Wanted:
    """Return actors of a number that is of use: pools no more than clients; hosts' actors no more than hosts.

    Where the number is open: one a GPU for those that share GPUs equally; else hosts have one a CPU, for each takes the
    memory of a process, and no more than could find room. How many really do, beside the others, is seen later.
    """
    most = len(own.hosts) or own.clients
    if own.number is not None:
        return replace(own, number=min(own.number, most))
    if on_gpu and own.asked.num_gpus == "auto" and own.asked.gpu_memory is None:
        return replace(own, number=min(most, max(1, num_whole(nodes, "GPU"))))
    if own.is_pools:
        return own
    (need,) = decide_needs(nodes, [own], on_gpu=on_gpu)
    fitting = num_fitting(nodes, need) if need.bundle else most
    return replace(own, number=max(1, min(most, fitting, num_whole(nodes, "CPU"))))


def num_whole(nodes: Sequence[Node], resource: str) -> int:
    """Return how much of a resource all nodes have together, rounded down."""
    return int(sum(node.total.get(resource, 0.0) for node in nodes))


def num_fitting(nodes: Sequence[Node], need: Need) -> int:
    """Return at most how many actors the nodes have room for, if nobody else is there; shares may be cut in two."""
    return sum(min(times(node.total.get(name, 0.0), amount) for name, amount in need.bundle.items()) for node in nodes)
