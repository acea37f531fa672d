"""Which actors a run has, what Ray reserves for each, and on which node each goes: pure functions, no Ray in sight.

Pools fill what the cluster has free, in proportion to the nodes' CPUs. Edge groups are spread over the nodes: those
that need resources over the nodes that have them, those that need none over the nodes with pools, so that each has
pools beside it. An actor that fits nowhere now has no node: it waits until the cluster has grown, or others have gone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from elsa_ray.runtime.actor_numbers import bounded, num_fitting, num_whole
from elsa_ray.runtime.gpu_claims import check_gpu_memory, claims_of
from elsa_ray.runtime.resources import TINY, Need, Node, Wanted, need_text
from elsa_ray.runtime.shares import decide_needs, with_cpus_of_pools


@dataclass(frozen=True)
class PlacedActor:
    """An actor of a run.

    Attributes:
        name: ``cloud``, ``edge-group-0``, ``edge-groups-0-4``, ``pool-0``.
        kind: of ``Wanted``.
        need: what is reserved for it.
        node_id: where; None where there is no room yet.
        hosts: what it carries; none for a pool.
    """

    name: str
    kind: str
    need: Need
    node_id: str | None
    hosts: tuple[str, ...] = ()


def device_of(placed: PlacedActor, device: str) -> str:
    """Return what an actor computes on in a run on a device: an actor without a share of a GPU sees none."""
    return device if placed.need.num_gpus > 0 else "cpu"


@dataclass(frozen=True)
class Placement:
    """All actors of a run.

    Attributes:
        hosts: actors of the cloud and of the edge groups.
        pools: client pools; their order numbers them.
        pools_of_device: positions of the pools for clients by their device; all others take ``common_pools``.
        common_pools: positions.
        nodes: of the cluster.
    """

    hosts: tuple[PlacedActor, ...]
    pools: tuple[PlacedActor, ...]
    pools_of_device: Mapping[str, tuple[int, ...]]
    common_pools: tuple[int, ...]
    nodes: tuple[Node, ...]

    @property
    def actors(self) -> tuple[PlacedActor, ...]:
        """All of them, hosts first."""
        return (*self.hosts, *self.pools)

    def near(self) -> dict[str, frozenset[int]]:
        """Return for each host the positions of the pools on its node."""
        on_node: dict[str, set[int]] = {}
        for position, pool in enumerate(self.pools):
            if pool.node_id is not None:
                on_node.setdefault(pool.node_id, set()).add(position)
        return {host: frozenset(on_node.get(own.node_id or "", ())) for own in self.hosts for host in own.hosts}

    def pools_for(self, devices: Sequence[str]) -> tuple[int, ...]:
        """Return the pools for clients with these devices: those of most of them, of equally many of the first.

        Args:
            devices: of each client.
        """
        ((device, _),) = Counter(devices).most_common(1)
        return self.pools_of_device.get(device, self.common_pools)

    def lines(self) -> list[str]:
        """Return a line for each kind of actor: how many, what each reserves, on what nodes."""
        kinds = {node.node_id: node.kind for node in self.nodes}
        lines = []
        for kind in dict.fromkeys(actor.kind for actor in self.actors):
            own = [actor for actor in self.actors if actor.kind == kind]
            counts = Counter(actor.node_id for actor in own)
            nodes_of_kind = Counter(kinds[node] for node in counts if node is not None)
            where = [f"{number} of {node_kind}" for node_kind, number in nodes_of_kind.items()]
            nodes = f"on {_counted(sum(nodes_of_kind.values()), 'node')}: {', '.join(where)}" if where else ""
            waiting = f"{counts[None]} wait for room" if counts[None] else ""
            each = " each" if len(own) > 1 else ""
            told = "; ".join(part for part in (f"{need_text(own[0].need)}{each}", nodes, waiting) if part)
            number = sum(len(actor.hosts) for actor in own) or len(own)
            actors = f" in {_counted(len(own), 'actor')}" if number > len(own) else ""
            lines.append(f"{number} {_singular(kind) if number == 1 else kind}{actors}: {told}")
        return lines


def place(
    nodes: Sequence[Node],
    wanted: Sequence[Wanted],
    *,
    threads: int,
    on_gpu: bool,
    gpu_context_bytes: int,
    pool_memory_bytes: int = 0,
) -> Placement:
    """Decide resources and nodes of all actors.

    Args:
        nodes: the cluster.
        wanted: hosts first, then pools.
        threads: CPUs that a pool really uses: as many pools as fit are no more than the CPUs allow.
        on_gpu: whether the workers compute on GPUs.
        gpu_context_bytes: GPU memory that no tensor can use.
        pool_memory_bytes: main memory that a pool needs: as many as fit are no more than the memory allows.

    Raises:
        InputError: actors that Ray could put on one GPU may take more memory than it has.
    """
    used = [own for own in wanted if not own.is_pools or own.clients > 0]
    decided = [bounded(own, nodes, on_gpu=on_gpu) for own in used]

    def placed_on(nodes: Sequence[Node]) -> Placement:
        needs = decide_needs(nodes, decided, on_gpu=on_gpu)
        if on_gpu:
            sizes = [size for node in nodes for size in node.gpu_memory_bytes]
            check_gpu_memory(claims_of(decided, needs), sizes, gpu_context_bytes)
        return _placed(nodes, decided, needs, _Room(nodes, threads, pool_memory_bytes), threads)

    # An open number of hosts' actors must leave room for the others, were nobody else in the cluster.
    empty = [replace(node, free=node.total) for node in nodes]
    for position, own in enumerate(used):
        if own.is_pools or own.number is not None:
            continue
        while (number := decided[position].number or 1) > 1 and _is_crowded(placed_on(empty), own.kind):
            decided[position] = replace(decided[position], number=number - 1)
    return placed_on(nodes)


def _placed(
    nodes: Sequence[Node], wanted: Sequence[Wanted], needs: Sequence[Need], room: _Room, threads: int
) -> Placement:
    """Return where actors of decided numbers go."""
    hosts_of_actors = [_hosts_of_actors(own) for own in wanted]
    # What needs room gets it before the pools take all of it; what needs none goes where the pools then are.
    node_of: dict[str, str | None] = {}
    for actors, need in zip(hosts_of_actors, needs, strict=True):
        if need.bundle:
            node_of |= {name: room.take_host(need) for name in actors}
    needs = with_cpus_of_pools(nodes, wanted, needs, room.cpus_of_hosts, threads)
    pools = _place_pools(nodes, wanted, needs, room)
    pools_on = Counter(node for own in pools for node in own if node is not None)
    for actors, need in zip(hosts_of_actors, needs, strict=True):
        if not need.bundle:
            node_of |= _beside_pools([*actors], nodes, pools_on)
    hosts = [
        PlacedActor(name, own.kind, need, node_of[name], carried)
        for own, need, actors in zip(wanted, needs, hosts_of_actors, strict=True)
        for name, carried in actors.items()
    ]
    return _numbered(tuple(nodes), wanted, needs, tuple(hosts), pools)


def _is_crowded(placement: Placement, kind: str) -> bool:
    """Whether somebody finds no room, and actors of this kind, of hosts, take some."""
    takes_room = any(actor.kind == kind and actor.need.bundle for actor in placement.hosts)
    return takes_room and any(actor.node_id is None for actor in placement.actors)


def _hosts_of_actors(own: Wanted) -> dict[str, tuple[str, ...]]:
    """Return the names of the actors of a kind, and the hosts that each carries: about as many, neighbours together."""
    if own.is_pools:
        return {}
    assert own.number is not None, "bounded decides it"
    parts = np.array_split(np.array(own.hosts), own.number)
    return {_actor_name(part.tolist()): tuple(part.tolist()) for part in parts}


def _actor_name(hosts: Sequence[str]) -> str:
    """Return its host's name, or of several such as ``edge-groups-0-4``."""
    if len(hosts) == 1:
        return hosts[0]
    numbers = [host.rpartition("-")[2] for host in (hosts[0], hosts[-1])]
    return "-".join(["edge-groups", *numbers])


class _Room:
    """What is free on each node, while actors are put there one by one."""

    def __init__(self, nodes: Sequence[Node], threads: int, pool_memory_bytes: int) -> None:
        self._nodes, self._threads, self._pool_memory_bytes = nodes, threads, pool_memory_bytes
        self._free = {
            node.node_id: {name: own for name, own in node.free.items() if name not in ("GPU", "memory")}
            for node in nodes
        }
        self._gpus = {node.node_id: _each_gpu(node.free.get("GPU", 0.0)) for node in nodes}
        self._cores = {node.node_id: node.free.get("CPU", 0.0) for node in nodes}
        self._memory = {node.node_id: node.free.get("memory", math.inf) for node in nodes}
        self.cpus_of_hosts: dict[str, float] = {node.node_id: 0.0 for node in nodes}
        self._hosts: Counter[str] = Counter()
        self._pools: Counter[str] = Counter()

    def take_host(self, need: Need) -> str | None:
        """Return the fitting node with the fewest hosts, and take the room there; None where there is none."""
        fitting = [node for node in self._nodes if self._fits(node.node_id, need)]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda node: self._hosts[node.node_id]).node_id
        self._hosts[chosen] += 1
        self._cores[chosen] -= need.num_cpus
        self.cpus_of_hosts[chosen] += need.num_cpus
        self._take(chosen, need)
        return chosen

    def take_pool(self, need: Need, *, only_useful: bool) -> str | None:
        """Return the fitting node with the fewest pools for its CPUs, and take the room there; None where none is.

        Args:
            need: what is reserved.
            only_useful: not where it would have no core or no memory of its own, whatever it reserves.
        """
        fitting = [
            node
            for node in self._nodes
            if self._fits(node.node_id, need) and (not only_useful or self._has_cores(node.node_id, need))
        ]
        if not fitting:
            return None
        chosen = min(fitting, key=lambda node: (self._pools[node.node_id] + 1) / max(node.total.get("CPU", 0.0), TINY))
        self._pools[chosen.node_id] += 1
        self._cores[chosen.node_id] -= self._cores_of(need)
        self._memory[chosen.node_id] -= self._pool_memory_bytes
        self._take(chosen.node_id, need)
        return chosen.node_id

    def _cores_of(self, need: Need) -> float:
        return 0.0 if need.num_gpus else max(need.num_cpus, float(self._threads))

    def _has_cores(self, node: str, need: Need) -> bool:
        return self._cores[node] >= self._cores_of(need) - TINY and self._memory[node] >= self._pool_memory_bytes - TINY

    def _fits(self, node: str, need: Need) -> bool:
        free = self._free[node]
        plain = {name: amount for name, amount in need.bundle.items() if name != "GPU"}
        if any(free.get(name, 0.0) < amount - TINY for name, amount in plain.items()):
            return False
        whole, part = _whole_and_part(need.num_gpus)
        fitting = [own for own in self._gpus[node] if own >= (part or 1.0) - TINY]
        return not need.num_gpus or len(fitting) >= max(1, whole)

    def _take(self, node: str, need: Need) -> None:
        for name, amount in need.bundle.items():
            if name != "GPU":
                self._free[node][name] -= amount
        whole, part = _whole_and_part(need.num_gpus)
        gpus = self._gpus[node]
        for _ in range(whole):
            gpus.remove(max(gpus))
        if part:
            # The fullest that still fits: large shares find room later.
            fullest = min(own for own in gpus if own >= part - TINY)
            gpus[gpus.index(fullest)] -= part


def _place_pools(
    nodes: Sequence[Node], wanted: Sequence[Wanted], needs: Sequence[Need], room: _Room
) -> list[list[str | None]]:
    """Return the nodes of the pools of each kind: first those of a stated number, then as many as fit."""
    placed: list[list[str | None]] = [[] for _ in wanted]
    for position, (own, need) in enumerate(zip(wanted, needs, strict=True)):
        for _ in range(own.number or 0 if own.is_pools else 0):
            placed[position].append(room.take_pool(need, only_useful=False))
    open_kinds = [position for position, own in enumerate(wanted) if own.is_pools and own.number is None]
    while open_kinds:
        next_ = min(open_kinds, key=lambda position: len(placed[position]) / wanted[position].clients)
        node = room.take_pool(needs[next_], only_useful=True)
        if node is not None:
            placed[next_].append(node)
        if node is None or len(placed[next_]) >= wanted[next_].clients:
            open_kinds.remove(next_)
    for position, (own, need) in enumerate(zip(wanted, needs, strict=True)):
        if own.is_pools and not placed[position]:
            # One at least, wherever Ray can put it; or all that there may be, when there is room.
            node = room.take_pool(need, only_useful=False)
            placed[position] = [node] if node is not None else [None] * _expected_pools(nodes, own, need)
    return placed


def _expected_pools(nodes: Sequence[Node], own: Wanted, need: Need) -> int:
    """Return how many pools to wait for where none fits now: as many as if nobody else were there, else one a CPU."""
    fitting = num_fitting(nodes, need) if need.bundle else 0
    cpus = num_whole(nodes, "CPU")
    return max(1, min(fitting or cpus, cpus, own.clients))


def _beside_pools(names: Sequence[str], nodes: Sequence[Node], pools_on: Mapping[str, int]) -> dict[str, str | None]:
    """Spread hosts that need no room over the nodes in proportion to their pools."""
    there: Counter[str] = Counter()
    node_of: dict[str, str | None] = {}
    candidates = [node.node_id for node in nodes if pools_on.get(node.node_id)]
    for name in names:
        if not candidates:
            node_of[name] = None
            continue
        chosen = min(candidates, key=lambda node: (there[node] + 1) / pools_on[node])
        there[chosen] += 1
        node_of[name] = chosen
    return node_of


def _numbered(
    nodes: tuple[Node, ...],
    wanted: Sequence[Wanted],
    needs: Sequence[Need],
    hosts: tuple[PlacedActor, ...],
    placed: Sequence[Sequence[str | None]],
) -> Placement:
    pools: list[PlacedActor] = []
    of_device: dict[str, tuple[int, ...]] = {}
    common: tuple[int, ...] = ()
    for own, need, node_ids in zip(wanted, needs, placed, strict=True):
        if not own.is_pools:
            continue
        positions = tuple(range(len(pools), len(pools) + len(node_ids)))
        pools += [PlacedActor(f"pool-{p}", own.kind, need, node) for p, node in zip(positions, node_ids, strict=True)]
        if own.devices is None:
            common = positions
        else:
            of_device |= {device: positions for device in own.devices}
    return Placement(hosts, tuple(pools), of_device, common or tuple(range(len(pools))), nodes)


def _each_gpu(total: float) -> list[float]:
    whole, part = _whole_and_part(total)
    return [1.0] * whole + ([part] if part else [])


def _whole_and_part(amount: float) -> tuple[int, float]:
    whole = int(amount + TINY)
    part = amount - whole
    return whole, part if part > TINY else 0.0


def _singular(kind: str) -> str:
    return kind.replace("pools", "pool").replace("edge groups", "edge group")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
