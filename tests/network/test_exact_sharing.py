"""Levels that are kept up to date against progressive filling from scratch, after each of many changes."""

from __future__ import annotations

import math
import random
import time

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.topology import HierarchicalTopology
from elsa_ray.network import bottlenecks, finish_times, hierarchical
from elsa_ray.network.bottlenecks import Bottlenecks
from elsa_ray.network.graph import Network
from elsa_ray.network.routes import find_routes
from elsa_ray.network.sharing import FluidSharing

from .networks import random_network, random_transfers
from .progressive_filling import max_min_rates
from .slow_solver import slow_finish


class World:
    """A sharing beside its slow double: rates from scratch after each change, bytes counted off by hand."""

    def __init__(self, capacities: list[float]) -> None:
        self.capacities = capacities
        self.sharing = FluidSharing(capacities)
        self.flows: dict[int, tuple[dict[int, float], float, float]] = {}
        self.left: dict[int, float] = {}
        self.now = 0.0

    def rates(self) -> dict[int, float]:
        """Return the rates, equal on both sides."""
        uses = [
            [(capacity, coefficient * weight) for capacity, coefficient in load.items()]
            for load, weight, _ in self.flows.values()
        ]
        bounds = [
            min([bound / weight, *(self.capacities[capacity] / load for capacity, load in use)])
            for use, (_, weight, bound) in zip(uses, self.flows.values(), strict=True)
        ]
        levels = max_min_rates(bounds, uses, dict(enumerate(self.capacities)))
        slow = {number: level * self.flows[number][1] for number, level in zip(self.flows, levels, strict=True)}
        assert self.sharing.rates() == pytest.approx(slow, rel=1e-10, abs=1e-10)
        return slow

    def start(
        self, number: int, num_bytes: float, path: list[int], coefficient: float, weight: float, bound: float
    ) -> None:
        coefficients = [coefficient] * len(path)
        self.sharing.start(number, num_bytes, path, self.now, coefficients, weight=weight, bound_bytes_per_second=bound)
        load: dict[int, float] = {}
        for capacity in path:
            load[capacity] = load.get(capacity, 0.0) + coefficient
        self.flows[number], self.left[number] = (load, weight, bound), num_bytes

    def advance(self, seconds: float) -> None:
        """Move on by so much, or to the first completion if that comes before."""
        rates = self.rates()
        ends = [self.now + self.left[number] / rate for number, rate in rates.items() if rate > 0]
        first = self.sharing.next_completion()
        if not ends:
            assert first is None
            self.now += seconds
            return
        assert first == pytest.approx(min(ends), rel=1e-10)
        until = min(self.now + seconds, first)
        for number, rate in rates.items():
            self.left[number] -= rate * (until - self.now)
        self.now = until
        for number, finish in self.sharing.complete_until(until):
            assert finish == first
            assert self.left.pop(number) == pytest.approx(0, abs=1e-6)
            del self.flows[number]
        assert self.sharing.remaining(self.now) == pytest.approx(self.left, rel=1e-7, abs=1e-6)


def paths_of(rng: random.Random, shape: str, size: object) -> tuple[list[float], list[list[int]]]:
    """Make capacities and paths: stations under edges under a common way, or any at all."""
    if shape == "mesh":
        count = rng.randint(2, 12)
        return [size() for _ in range(count)], [rng.choices(range(count), k=rng.randint(1, 4)) for _ in range(20)]  # type: ignore[operator]
    edges, stations = rng.randint(1, 4), rng.randint(2, 12)
    capacities = [size() * rng.choice([1, 3, 10])] + [size() for _ in range(edges + stations)]  # type: ignore[operator]
    ways = [[1 + edges + station, 1 + station % edges] for station in range(stations)]
    return capacities, ways + [[*way, 0] for way in ways]


@pytest.mark.parametrize("shape", ["tree", "mesh"])
@pytest.mark.parametrize("seed", range(25))
def test_after_any_change_levels_are_those_from_scratch(shape: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 5:
        monkeypatch.setattr(bottlenecks, "FEW", 0)  # full links follow others also where that spares nothing
    rng = random.Random(f"{shape}/{seed}")
    sizes = [
        lambda: float(rng.choice([100, 200, 300])),
        lambda: rng.uniform(1, 1000),
        lambda: float(rng.randint(1, 50)),
    ]
    size = sizes[seed % 3]
    is_plain = seed % 2 == 0
    capacities, paths = paths_of(rng, shape, size)
    world = World(capacities)
    for number in range(50):
        for _ in range(rng.choice([1, 1, 4])):
            world.start(
                100 * number + len(world.flows),
                rng.choice([100.0, 300.0, rng.uniform(1, 3000)]),
                rng.choice(paths),
                1.0 if is_plain else rng.choice([1.0, 2.0, 0.05]),
                1.0 if is_plain else rng.choice([1.0, rng.uniform(0.01, 5)]),
                math.inf if is_plain else rng.choice([math.inf, rng.uniform(1, 500)]),
            )
        world.advance(rng.choice([0.0, rng.random(), 5 * rng.random()]))
        if world.flows and rng.random() < 0.2:
            gone = rng.choice(list(world.flows))
            assert world.sharing.stop(gone, world.now) == pytest.approx(world.left.pop(gone), rel=1e-7, abs=1e-6)
            del world.flows[gone]
        if rng.random() < 0.2:
            capacity = rng.randrange(len(capacities))
            capacities[capacity] = rng.choice([0.0, size()])
            world.sharing.set_capacity(capacity, capacities[capacity], world.now)
    for capacity in range(len(capacities)):
        capacities[capacity] = capacities[capacity] or size()
        world.sharing.set_capacity(capacity, capacities[capacity], world.now)
    while world.flows:
        world.advance(math.inf)


def exact_finishes(network: Network, transfers: list[dict[str, object]]) -> list[float]:
    ends = [(network.index(str(row["src"])), network.index(str(row["dst"]))) for row in transfers]
    routes = find_routes(network, [source for source, _ in ends], [target for _, target in ends])
    flows = []
    for row, route in zip(transfers, routes, strict=True):
        assert route is not None
        flows.append((row["start_seconds"] + route.latency_seconds, row["num_bytes"], route.capacities))  # type: ignore[operator]
    return [float(finish) for finish in slow_finish(flows, network.capacity_bytes_per_second.tolist())]  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "count"), [("tree", 300), ("mesh", 100), ("asymmetric", 300), ("shared", 100)])
def test_hundreds_of_transfers_equal_the_exact_solver(shape: str, count: int) -> None:
    rng = random.Random(shape)
    network = random_network(rng, shape)
    transfers = random_transfers(rng, network, count)
    for row in transfers:
        row["start_seconds"] = round(row["start_seconds"] * 8 * 64) / 64
    found = [row["finish_seconds"] for row in finish_times(network, transfers)]
    assert found == pytest.approx(exact_finishes(network, transfers), rel=1e-9, abs=0)


def test_full_stations_follow_the_way_that_all_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """A station's second flow gets what the flow over the common way leaves it; each end there changes all of them."""
    count, rng = 150, random.Random(3)
    num_bytes = [rng.uniform(50, 400) * (1 if flow < count else 15) for flow in range(2 * count)]
    told = []
    settle = Bottlenecks._settle
    monkeypatch.setattr(
        Bottlenecks, "_settle", lambda self, link, level: (told.append(link), settle(self, link, level))
    )

    def finishes(few: int) -> dict[int, float]:
        monkeypatch.setattr(bottlenecks, "FEW", few)
        sharing = FluidSharing([count * 1.0] + [10.0] * count)
        for flow, size in enumerate(num_bytes):
            station = 1 + flow % count
            sharing.start(flow, size, [station, 0] if flow < count else [station], now=0.0)
        return dict(sharing.complete_until(math.inf))

    followed = finishes(8)
    num_following = len(told)
    assert finishes(10**6) == pytest.approx(followed, rel=1e-12)
    assert num_following < (len(told) - num_following) / 4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_of_equal_arrivals_changes_nothing(seed: int, rng: random.Random) -> None:
    draw = random.Random(seed)
    network = random_network(draw, draw.choice(["tree", "mesh", "shared"]))
    transfers = random_transfers(draw, network, 30)
    for row in transfers:
        row["start_seconds"] = float(draw.randrange(2))
    names = [row["id"] for row in transfers]
    rng.shuffle(names)
    renamed = [{**row, "id": name} for row, name in zip(transfers, names, strict=True)]
    before = [row["finish_seconds"] for row in finish_times(network, transfers)]
    assert [row["finish_seconds"] for row in finish_times(network, renamed)] == pytest.approx(before, rel=1e-12)


def cell(num_phones: int, **radio: object) -> nx.Graph:
    """Make a 5G cell: phones at an antenna, whose link to the network is asymmetric and shared by all of them."""
    graph = nx.Graph()
    for number in range(num_phones):
        ends = {"source_node": f"phone{number}", "latency_seconds": 0.0}
        graph.add_edge(f"phone{number}", "antenna", bandwidth_bytes_per_second=1e9, **ends)
    graph.add_edge("antenna", "core", source_node="antenna", latency_seconds=0.0078125, **radio)
    return graph


@pytest.mark.parametrize("num_phones", [1, 2, 7, 16])
def test_uploads_of_a_cell_slow_each_other_and_downloads_do_not(num_phones: int) -> None:
    # 10 Mbit/s up for the cell, and 60 Mbit/s down for each of its phones (methods.md 3.28): down the cell is wide.
    up, down = 10e6 / 8, 60e6 / 8
    graph = cell(num_phones, bandwidth_bytes_per_second=up, reverse_bandwidth_bytes_per_second=down * num_phones)
    for number in range(num_phones):
        graph.edges[f"phone{number}", "antenna"]["reverse_bandwidth_bytes_per_second"] = down
    size = 3_000_000
    phones = [f"phone{number}" for number in range(num_phones)]
    rows = [{"id": f"up {phone}", "src": phone, "dst": "core"} for phone in phones]
    rows += [{"id": f"down {phone}", "src": "core", "dst": phone} for phone in phones]
    table = finish_times(graph, [{**row, "num_bytes": size, "start_seconds": 0.0} for row in rows])
    for row in table:
        factor = num_phones if row["id"].startswith("up") else 1
        rate = up if row["id"].startswith("up") else down
        assert row["finish_seconds"] == pytest.approx(0.0078125 + factor * size / rate, rel=1e-12)
        assert row["seconds_alone"] == pytest.approx(0.0078125 + size / rate, rel=1e-12)


def cpu_seconds(num_clients: int, num_edges: int, num_transfers: int, seconds: float) -> float:
    """Return the CPU time that so many transfers to the cloud take, over a backhaul that they overbook."""
    network = hierarchical(HierarchicalTopology(clients=num_clients, edges=num_edges), seed=0)
    rng = random.Random(0)
    columns = {
        "id": list(range(num_transfers)),
        "src": [network.node_names[rng.choice(network.clients)] for _ in range(num_transfers)],
        "dst": ["cloud"] * num_transfers,
        "num_bytes": [rng.uniform(1e6, 4e6) for _ in range(num_transfers)],
        "start_seconds": [rng.uniform(0, seconds) for _ in range(num_transfers)],
    }
    begin = time.process_time()
    finish_times(network, columns)
    return time.process_time() - begin


@pytest.mark.slow
def test_cost_does_not_grow_with_the_flows_of_a_bottleneck() -> None:
    # 2,000 transfers at a time over one link: updating each of them at each event would take a hundred seconds.
    small, large = cpu_seconds(500, 10, 2000, 1.0), cpu_seconds(2000, 20, 8000, 4.0)
    assert large < 8 * small + 1.0
    assert large < 6.0
