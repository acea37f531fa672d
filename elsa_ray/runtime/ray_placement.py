"""What a Ray cluster has, and a placement carried out in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from elsa_ray.runtime.cluster import is_there, join_cluster
from elsa_ray.runtime.placement import PlacedActor, Placement
from elsa_ray.runtime.resources import Node

_NODE_ID_LABEL = "ray.io/node-id"
_ASK_SECONDS = 60.0


def cluster_nodes(*, with_gpu_memory: bool = False) -> tuple[Node, ...]:
    """Return the living nodes of the cluster that this process is connected to, in the order of their names.

    Args:
        with_gpu_memory: ask each node with GPUs how large they are; takes a moment.
    """
    # Only the dashboard's API, which a cluster may lack, tells what is free on each node in public.
    free = ray._private.state.available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: (node["NodeManagerHostname"], node["NodeID"]))
    sizes = _gpu_memory([node["NodeID"] for node in alive if node["Resources"].get("GPU")]) if with_gpu_memory else {}
    return tuple(
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            _plain(node["Resources"]),
            _plain(free.get(node["NodeID"], {})),
            sizes.get(node["NodeID"], ()),
        )
        for node in alive
    )


def nodes_at(address: str | None, *, with_gpu_memory: bool = False) -> tuple[Node, ...]:
    """Return the nodes of the cluster that a run with this address would have; where it would start one, this machine.

    Nothing is started, and nothing stays connected.

    Raises:
        InputError: nothing answers at the address.
    """
    if not is_there(address):
        return (this_machine(),)
    cluster = join_cluster(address)
    try:
        return cluster_nodes(with_gpu_memory=with_gpu_memory)
    finally:
        cluster.leave()


def this_machine() -> Node:
    """Return what a Ray that is started here would have."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    has = {"CPU": float(os.cpu_count() or 1), "memory": memory, **({"GPU": float(gpus)} if gpus else {})}
    sizes = tuple(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(gpus))
    return Node("here", os.uname().nodename, has, has, sizes)


class Reservation:
    """The room of a run in a cluster: all of it or none, so that two runs never hold half of theirs each.

    Args:
        placement: what is to be reserved.
        name: of the run.
    """

    def __init__(self, placement: Placement, name: str) -> None:
        self._needy = [actor for actor in placement.actors if actor.need.bundle]
        self._group: Any = None
        if self._needy:
            self._group = placement_group(
                [actor.need.bundle for actor in self._needy],
                strategy="PACK",
                name=name,
                bundle_label_selector=[_on(actor.node_id) for actor in self._needy],
            )

    def options(self, actor: PlacedActor) -> dict[str, Any]:
        """Return Ray's options for an actor in its place."""
        if actor.need.bundle:
            index = self._needy.index(actor)
            strategy: Any = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        elif actor.node_id is not None:
            strategy = NodeAffinitySchedulingStrategy(actor.node_id, soft=True)
        else:
            strategy = "DEFAULT"
        return {**resources_of(actor), "scheduling_strategy": strategy}

    def end(self) -> None:
        """Give the room back."""
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def resources_of(actor: PlacedActor) -> dict[str, Any]:
    """Return Ray's options for an actor that may go anywhere, such as one that takes the place of a dead one."""
    need = actor.need
    return {"num_cpus": need.num_cpus, "num_gpus": need.num_gpus, "resources": dict(need.custom)}


def is_alive(node_id: str | None) -> bool:
    """Return whether a node is in the cluster still; one that was never chosen is."""
    return node_id is None or any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def _on(node_id: str | None) -> dict[str, str]:
    return {} if node_id is None else {_NODE_ID_LABEL: node_id}


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Leave out what placement groups have made of a node's resources."""
    return {name: float(amount) for name, amount in resources.items() if "_group_" not in name}


def _gpu_memory(node_ids: list[str]) -> dict[str, tuple[int, ...]]:
    """Ask nodes for the sizes of their GPUs; nothing for one that cannot tell."""
    asking = ray.remote(gpu_sizes)
    references = {
        node: asking.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in node_ids
    }
    done, _ = ray.wait(list(references.values()), num_returns=len(references), timeout=_ASK_SECONDS)
    sizes = {}
    for node, reference in references.items():
        if reference in done:
            try:
                sizes[node] = ray.get(reference)
            except ray.exceptions.RayError:
                continue
    return sizes


def gpu_sizes() -> tuple[int, ...]:
    """Return the bytes of each GPU of the machine, without a CUDA context."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return tuple(int(line) * 2**20 for line in told.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
