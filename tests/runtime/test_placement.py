"""Which actors a run gets, what each reserves, on which node it goes: computed by hand, and laws."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.config.runtime import ActorResources, PoolResources
from elsa_ray.runtime import actors
from elsa_ray.runtime.failure import WorkerError
from elsa_ray.runtime.gpu_claims import Claim, worst_on_one_gpu
from elsa_ray.runtime.gpu_memory import hold_to, tensor_share
from elsa_ray.runtime.placement import Placement, device_of, place
from elsa_ray.runtime.resources import Node, Wanted
from elsa_ray.runtime.shares import largest_share

GB = 10**9


def node(
    name: str, cpus: float, *, free: Mapping[str, float] | None = None, gpu_gb: tuple[int, ...] = (), **has: float
):
    total = {"CPU": float(cpus), "memory": 64e9, **has, **({"GPU": float(len(gpu_gb))} if gpu_gb else {})}
    return Node(name, name, total, {**total, **(free or {})}, tuple(size * GB for size in gpu_gb))


def wanted(
    *,
    edges: int = 2,
    edge_actors: int | None = None,
    pools: int | None = None,
    clients: int = 100,
    cloud: ActorResources | None = None,
    edge: ActorResources | None = None,
    pool: PoolResources | None = None,
) -> list[Wanted]:
    return [
        Wanted("cloud", "runtime.cloud_resources", cloud or ActorResources(), ("cloud",)),
        Wanted(
            "edge groups",
            "runtime.edge_resources",
            edge or ActorResources(),
            tuple(f"edge-group-{number}" for number in range(edges)),
            edge_actors,
        ),
        Wanted("pools", "runtime.pool_resources", pool or PoolResources(), number=pools, clients=clients),
    ]


def phones(number: int | None, clients: int, **asked: Any) -> Wanted:
    where = "runtime.pools_by_device.phone"
    return Wanted("pools of phone", where, PoolResources(**asked), number=number, clients=clients, devices=("phone",))


def placed(nodes: list[Node], asked: list[Wanted], **options: Any) -> Placement:
    defaults = {"threads": 1, "on_gpu": False, "gpu_context_bytes": GB // 2}
    return place(nodes, asked, **{**defaults, **options})


def where(placement: Placement) -> dict[str, str | None]:
    return {actor.name: actor.node_id for actor in placement.actors}


def test_one_machine_has_a_pool_for_each_cpu() -> None:
    placement = placed([node("a", 2)], wanted())
    assert where(placement) == dict.fromkeys(("cloud", "edge-group-0", "edge-group-1", "pool-0", "pool-1"), "a")
    assert [pool.need.bundle for pool in placement.pools] == [{"CPU": 1.0}] * 2
    assert [host.need.bundle for host in placement.hosts] == [{}] * 3


def carried(placement: Placement) -> dict[str, int]:
    return {actor.name: len(actor.hosts) for actor in placement.hosts if actor.kind == "edge groups"}


def test_many_edge_groups_share_an_actor_for_each_cpu() -> None:
    """Each takes the memory of a process; more of them than CPUs would compute nothing sooner."""
    placement = placed([node("a", 2)], wanted(edges=11))
    assert carried(placement) == {"edge-groups-0-5": 6, "edge-groups-6-10": 5}
    assert placement.lines()[1] == "11 edge groups in 2 actors: 0 CPU each; on 1 node: 1 of 2 CPU"
    assert set(placement.near()) == {"cloud", *(f"edge-group-{n}" for n in range(11))}
    assert set(placement.near().values()) == {frozenset({0, 1})}
    stated = placed([node("a", 2)], wanted(edges=4, edge_actors=3))
    assert carried(stated) == {"edge-groups-0-1": 2, "edge-group-2": 1, "edge-group-3": 1}
    assert len(carried(placed([node("a", 2)], wanted(edges=4, edge_actors=9)))) == 4, "never more than groups"


@pytest.mark.parametrize(
    ("nodes", "edge", "options", "number"),
    [
        ([node("a", 8, gpu_gb=(80,)), node("b", 8)], ActorResources(num_gpus=0.5), {}, 2),
        ([node("a", 8, gpu_gb=(80, 80))], ActorResources(num_gpus=0.4), {}, 4),
        ([node("a", 8, phones=1.0)], ActorResources(custom={"phones": 0.4}), {}, 2),
        ([node("a", 2)], ActorResources(num_cpus=1), {}, 1),
        ([node("a", 4, free={"CPU": 1.0}), node("b", 4)], ActorResources(num_cpus=1), {}, 7),
        ([node("a", 8, gpu_gb=(80, 80))], None, {"on_gpu": True}, 2),
        ([node("a", 8, gpu_gb=(80,))], ActorResources(gpu_memory="20 GB"), {"on_gpu": True}, 3),
    ],
)
def test_no_more_edge_actors_than_leave_room_for_all_others(
    nodes: list[Node], edge: ActorResources | None, options: dict[str, Any], number: int
) -> None:
    """On the empty cluster: what others have reserved for now is waited for."""
    placement = placed(nodes, wanted(edges=40, edge=edge), **options)
    assert len(carried(placement)) == number
    if all(own.free == own.total for own in nodes):
        assert None not in where(placement).values()
        assert placement.pools and {own.kind for own in placement.hosts} == {"cloud", "edge groups"}


@given(st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=50)
def test_each_edge_group_has_one_actor(edges: int, actors: int) -> None:
    placement = placed([node("a", 64)], wanted(edges=edges, edge_actors=actors))
    groups = [host for actor in placement.hosts if actor.kind == "edge groups" for host in actor.hosts]
    assert groups == [f"edge-group-{number}" for number in range(edges)]
    numbers = carried(placement).values()
    assert len(numbers) == min(edges, actors) and max(numbers) - min(numbers) <= 1


def test_edges_stand_beside_pools_in_proportion() -> None:
    placement = placed([node("big", 6), node("small", 2)], wanted(edges=4))
    assert Counter(pool.node_id for pool in placement.pools) == {"big": 6, "small": 2}
    assert Counter(host.node_id for host in placement.hosts if host.kind == "edge groups") == {"big": 3, "small": 1}
    near = placement.near()
    for host in placement.hosts:
        assert near[host.name] == {p for p, pool in enumerate(placement.pools) if pool.node_id == host.node_id}


def test_edges_go_to_nodes_with_gpus_and_pools_to_their_kinds_of_nodes() -> None:
    nodes = [
        node("g1", 1, gpu_gb=(80,)),
        node("g2", 1, gpu_gb=(80,)),
        node("p", 4, phones=1.0),
        node("l", 4, laptops=1.0),
    ]
    asked = [
        *wanted(
            edges=4, pools=2, clients=10, edge=ActorResources(num_gpus=0.5), pool=PoolResources(custom={"laptops": 0.1})
        ),
        phones(3, 20, num_cpus=0.25, custom={"phones": 0.2}),
    ]
    placement = placed(nodes, asked)
    assert where(placement) == {
        **{"cloud": "p", "edge-group-0": "g1", "edge-group-1": "g2", "edge-group-2": "g1", "edge-group-3": "g2"},
        **{"pool-0": "l", "pool-1": "l", "pool-2": "p", "pool-3": "p", "pool-4": "p"},
    }
    assert placement.pools_of_device == {"phone": (2, 3, 4)} and placement.common_pools == (0, 1)
    computing = {own.name: device_of(own, "cuda") for own in placement.actors}
    assert {name for name, device in computing.items() if device == "cuda"} == {f"edge-group-{n}" for n in range(4)}
    assert set(computing.values()) == {"cuda", "cpu"} and {device_of(own, "cpu") for own in placement.actors} == {"cpu"}
    assert placement.pools[0].need.bundle == {"CPU": 1.0, "laptops": 0.1}
    assert placement.pools[2].need.bundle == {"CPU": 0.25, "phones": 0.2}
    assert placement.pools_for(["phone", "laptop", "phone"]) == (2, 3, 4)
    assert placement.pools_for(["laptop", "phone"]) == (0, 1), "of equally many the first one's"
    assert placement.lines() == [
        "1 cloud: 0 CPU; on 1 node: 1 of 4 CPU + phones",
        "4 edge groups: 0 CPU + 0.5 GPU each; on 2 nodes: 2 of 1 CPU + 1 GPU",
        "2 pools: 1 CPU + 0.1 laptops each; on 1 node: 1 of 4 CPU + laptops",
        "3 pools of phone: 0.25 CPU + 0.2 phones each; on 1 node: 1 of 4 CPU + phones",
    ]


def test_open_numbers_of_pools_follow_the_clients() -> None:
    """Eight CPUs, three quarters of the clients are phones: six pools for them, two for the others."""
    placement = placed([node("a", 4), node("b", 4)], [*wanted(clients=10), phones(None, 30)])
    assert len(placement.pools_of_device["phone"]) == 6 and len(placement.common_pools) == 2
    assert Counter(pool.node_id for pool in placement.pools) == {"a": 4, "b": 4}


def test_never_more_pools_than_clients_or_than_memory_allows() -> None:
    assert len(placed([node("a", 64)], wanted(clients=3)).pools) == 3
    assert len(placed([node("a", 64)], wanted(pools=9, clients=3)).pools) == 3
    assert len(placed([node("a", 64)], wanted(), pool_memory_bytes=10 * GB).pools) == 6
    assert len(placed([node("a", 64)], wanted(), threads=8).pools) == 8


def test_what_others_have_reserved_is_not_counted() -> None:
    busy = [node("a", 4, free={"CPU": 1.0}), node("b", 4)]
    assert Counter(pool.node_id for pool in placed(busy, wanted()).pools) == {"a": 1, "b": 4}
    full = placed([node("a", 4, free={"CPU": 0.0})], wanted())
    assert [pool.node_id for pool in full.pools] == [None] * 4, "as many as if nobody else were there wait for room"
    assert full.lines()[-1] == "4 pools: 1 CPU each; 4 wait for room"


def test_hosts_with_cpus_leave_less_to_pools() -> None:
    placement = placed([node("a", 4)], wanted(edge=ActorResources(num_cpus=0.5), cloud=ActorResources(num_cpus=1)))
    assert len(placement.pools) == 2
    crowded = placed([node("a", 4)], wanted(pools=4, cloud=ActorResources(num_cpus=1)))
    assert {pool.node_id for pool in crowded.pools} == {"a"} and crowded.pools[0].need.num_cpus == 0.75


def test_equal_gpu_shares_are_never_cut_in_two() -> None:
    """Two GPUs and five actors: a third each, not two fifths, of which only four fit."""
    placement = placed([node("a", 16, gpu_gb=(80, 80))], wanted(edges=2, pools=2), on_gpu=True)
    assert {actor.need.num_gpus for actor in placement.actors} == {0.3333}
    assert None not in where(placement).values()
    without = placed([node("a", 16, gpu_gb=(80, 80))], wanted(edges=2), on_gpu=True)
    assert len(without.pools) == 2, "an open number of pools is one a GPU"


def test_gpu_memory_decides_the_share() -> None:
    edge, cloud = ActorResources(gpu_memory="20 GB"), ActorResources(num_gpus=0.1)
    asked = wanted(edges=2, pools=1, edge=edge, cloud=cloud, pool=PoolResources(gpu_memory="32 GB"))
    placement = placed([node("a", 8, gpu_gb=(80,))], asked, on_gpu=True)
    assert [actor.need.num_gpus for actor in placement.actors] == [0.1, 0.25, 0.25, 0.4]
    assert [actor.need.gpu_memory_bytes for actor in placement.actors] == [None, 20 * GB, 20 * GB, 32 * GB]
    assert "1 pool: 1 CPU + 0.4 GPU + at most 32 GB of GPU memory; on 1 node: 1 of 8 CPU + 1 GPU" in placement.lines()


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (
            {"gpu_memory": "30 GB", "num_gpus": 0.25},
            "runtime.edge_resources.gpu_memory: found 30 GB with num_gpus 0.25: 3 actors of edge groups may share a "
            "GPU and claim 90 GB; allowed: claims that fit its 80 GB; num_gpus: auto follows the memory",
        ),
        (
            {"gpu_memory": "96 GB"},
            "runtime.edge_resources.gpu_memory: found 96 GB; allowed: at most 80 GB, what the smallest GPU has",
        ),
        (
            {"gpu_memory": "0.5 GB"},
            "runtime.edge_resources.gpu_memory: found 0.5 GB; allowed: more than runtime.gpu_context, the 0.5 GB that "
            "no tensor can use",
        ),
    ],
)
def test_gpu_memory_that_is_not_there_is_refused(edge: dict[str, Any], message: str) -> None:
    asked = wanted(edges=3, edge=ActorResources(**edge))
    with pytest.raises(InputError) as refused:
        placed([node("a", 8, gpu_gb=(80, 94))], asked, on_gpu=True)
    assert str(refused.value) == message
    placed([node("a", 8, gpu_gb=(80, 94))], asked)  # on CPUs nobody takes any


def test_the_context_is_part_of_the_limit() -> None:
    assert tensor_share(20 * GB, GB // 2, 80 * GB) == 19.5 / 80
    assert tensor_share(200 * GB, 0, 80 * GB) == 1.0


def test_an_actor_holds_torch_to_its_bytes_and_starts_only_where_they_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GB; its own context of half a GB is there already when it looks."""
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    for free, is_enough in ((80 * GB - GB // 2, True), (20 * GB - GB // 2, True), (20 * GB - GB // 2 - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 * GB))
        if is_enough:
            hold_to(20 * GB, GB // 2)
        else:
            with pytest.raises(WorkerError, match=r"^gpu_memory: 20 GB are declared, and 19.5 GB of the GPU's 80 GB"):
                hold_to(20 * GB, GB // 2)
    assert limits == [19.5 / 80] * 2


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_an_actor_is_held_to_its_bytes_before_its_model_is_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(actors, "hold_to", lambda *given: done.append(given))

    def unpacked(packed: Any) -> Any:
        done.append("model")
        raise RuntimeError("no more is looked at")

    monkeypatch.setattr(actors, "unpack_model", unpacked)
    rest: Any = None
    settings = actors.WorkerSettings(rest, rest, rest, device, 1, 9.0, 20 * GB, GB // 2)
    with pytest.raises(RuntimeError, match="no more"):
        settings.build_model(rest)
    assert done == [(20 * GB, GB // 2), "model"][device == "cpu" :]


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]), st.integers(1, 50), st.integers(1, 6)), max_size=3)
)
@settings(max_examples=50)
def test_the_worst_sharing_of_a_gpu_is_found(kinds: list[tuple[float, int, int]]) -> None:
    """Against trying every set of actors by hand."""
    claims = [Claim("kind", "where", share, memory, count) for share, memory, count in kinds]
    worst = sum(number * claim.memory_bytes for number, claim in zip(worst_on_one_gpu(claims), claims, strict=True))
    sets = [()]
    for claim in claims:
        sets = [(*chosen, number) for chosen in sets for number in range(claim.count + 1)]
    allowed = [own for own in sets if sum(n * c.num_gpus for n, c in zip(own, claims, strict=True)) <= 1 + 1e-6]
    assert worst == max(sum(n * c.memory_bytes for n, c in zip(own, claims, strict=True)) for own in allowed)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.integers(1, 40), st.sampled_from([1.0, 2.0]))
@settings(max_examples=60)
def test_the_largest_share_fits_and_none_larger_does(cpus: list[int], count: int, most: float) -> None:
    share = largest_share(cpus, count, most=most)
    fits = [sum(int(capacity * 10_000) // round(own * 10_000) for capacity in cpus) for own in (share, share + 1e-4)]
    assert fits[0] >= count and (share == most or fits[1] < count)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=80)
def test_nothing_is_promised_twice(
    kinds: list[tuple[int, int, bool]], edges: int, pools: int | None, edge_gpus: float
) -> None:
    """On no node more is reserved than is free; who is left without a node really has no room anywhere."""
    nodes = [
        node(f"n{i}", cpus, gpu_gb=(80,) * gpus, **({"phones": 1.0} if special else {}))
        for i, (cpus, gpus, special) in enumerate(kinds)
    ]
    asked = wanted(edges=edges, pools=pools, clients=9, edge=ActorResources(num_gpus=edge_gpus, num_cpus=0.5))
    placement = placed(nodes, [*asked, phones(None, 5, custom={"phones": 0.5})])
    left = {own.node_id: dict(own.free) for own in nodes}
    for actor in placement.actors:
        for name, amount in actor.need.bundle.items() if actor.node_id is not None else ():
            left[actor.node_id][name] = left[actor.node_id].get(name, 0.0) - amount
    assert all(amount > -1e-6 for own in left.values() for amount in own.values())
    for actor in placement.actors:
        if actor.node_id is None and actor.need.bundle and not actor.need.num_gpus:
            for free in left.values():
                assert any(free.get(name, 0.0) < amount - 1e-6 for name, amount in actor.need.bundle.items())
