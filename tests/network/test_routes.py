"""Routes against a brute-force look at every simple path, ties and clients included."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import networkx as nx
import pytest

from elsa_ray.network.graph import Network, build_network
from elsa_ray.network.routes import Router, find_routes


def small_network(rng: random.Random) -> Network:
    """Make a network whose latencies often tie and are often zero, with clients in its middle."""
    names = rng.sample(["a", "b", "c", "a1", "a10", "a2", "Z", "é", "b0"], rng.randint(3, 8))
    directed = rng.random() < 0.5
    graph = nx.DiGraph() if directed else nx.Graph()
    for name in names:
        graph.add_node(name, kind=rng.choice(["client", "router", "router", "edge"]))
    for source in names:
        for target in names:
            if source != target and rng.random() < 0.45 and not graph.has_edge(source, target):
                latency = rng.choice([0.0, 0.1, 0.1, 0.2, 0.30000000000000004, 0.3])
                graph.add_edge(source, target, bandwidth_bytes_per_second=rng.randint(1, 9), latency_seconds=latency)
    return build_network(graph, "small", roles_required=False)


def brute_force(network: Network, source: str, target: str) -> tuple[int, int, list[str]] | None:
    """Return (femtoseconds, hops, node ids) of the best of all simple paths."""
    graph = nx.DiGraph()
    graph.add_nodes_from(network.node_names)
    for row, (start, end) in enumerate(zip(network.link_source, network.link_target, strict=True)):
        latency = round(float(network.link_latency_seconds[row]) * 1e15)
        graph.add_edge(network.node_names[start], network.node_names[end], latency=latency)
    kinds = dict(zip(network.node_names, network.node_kinds, strict=True))
    candidates = [
        (sum(graph.edges[pair]["latency"] for pair in pairwise(path)), len(path) - 1, path)
        for path in nx.all_simple_paths(graph, source, target)
        if all(kinds[name] != "client" for name in path[1:-1])
    ]
    return min(candidates, default=None)


@pytest.mark.parametrize("seed", range(60))
def test_routes_equal_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    network = small_network(rng)
    pairs = [(source, target) for source in network.node_names for target in network.node_names if source != target]
    rng.shuffle(pairs)
    indices = [(network.index(source), network.index(target)) for source, target in pairs]
    one_router = Router(network)
    bulk = find_routes(network, [source for source, _ in indices], [target for _, target in indices])
    for (source, target), ends, from_bulk in zip(pairs, indices, bulk, strict=True):
        expected = brute_force(network, source, target)
        for route in (one_router.route(*ends), Router(network).route(*ends), from_bulk):
            if expected is None:
                assert route is None
                continue
            assert route is not None
            names = [source] + [network.node_names[network.link_target[link]] for link in route.links]
            assert names == expected[2]
            assert route.latency_seconds == expected[0] / 10**15
            widths = network.link_bandwidth_bytes_per_second[list(route.links)]
            assert route.bottleneck_bytes_per_second == widths.min()
            for link, name in zip(route.links, names, strict=False):
                assert network.node_names[network.link_source[link]] == name


def graph_of(links: list[tuple[str, str, float]], **kinds: str) -> Network:
    graph = nx.Graph()
    for source, target, latency in links:
        graph.add_edge(source, target, bandwidth_bytes_per_second=1, latency_seconds=latency)
    for name, kind in kinds.items():
        graph.nodes[name]["kind"] = kind
    return build_network(graph, "graph", roles_required=False)


def names_of(network: Network, source: str, target: str) -> list[str]:
    route = Router(network).route(network.index(source), network.index(target))
    assert route is not None
    return [source] + [network.node_names[network.link_target[link]] for link in route.links]


def test_equal_sums_are_equal_in_whatever_order_they_are_added() -> None:
    # 0.1 + 0.2 is not 0.3 in floats; in femtoseconds it is, and then the fewer hops win.
    network = graph_of([("s", "a", 0.1), ("a", "t", 0.2), ("s", "t", 0.3)])
    assert names_of(network, "s", "t") == ["s", "t"]


def test_ids_compare_as_texts() -> None:
    network = graph_of([("s", "n9", 1), ("n9", "t", 1), ("s", "n10", 1), ("n10", "t", 1)])
    assert names_of(network, "s", "t") == ["s", "n10", "t"]


def test_clients_do_not_forward() -> None:
    links = [("c0", "c1", 0.0), ("c1", "edge", 0.0), ("c0", "r", 5.0), ("r", "edge", 5.0)]
    network = graph_of(links, c0="client", c1="client", edge="edge")
    assert names_of(network, "c0", "edge") == ["c0", "r", "edge"]
    assert names_of(network, "c0", "c1") == ["c0", "c1"]


def test_one_search_serves_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [(f"c{number}", "r", 1.0) for number in range(50)] + [("r", "edge", 1.0)]
    network = graph_of(links, edge="edge", **{f"c{number}": "client" for number in range(50)})
    searches: list[Any] = []
    search = Router._search

    def counted(self: Router, root: int, *, toward_root: bool) -> Any:
        searches.append((network.node_names[root], toward_root))
        return search(self, root, toward_root=toward_root)

    monkeypatch.setattr(Router, "_search", counted)
    router = Router(network)
    for client in network.clients.tolist():
        assert router.route(client, network.index("edge")) is not None
        assert router.route(network.index("edge"), client) is not None
    assert sorted(searches) == [("edge", False), ("edge", True)]


def test_no_path_and_no_distance() -> None:
    network = graph_of([("a", "b", 1.0), ("c", "d", 1.0)])
    assert find_routes(network, [0, 1], [2, 1])[0] is None
    stays = Router(network).route(1, 1)
    assert stays is not None
    assert (stays.links, stays.latency_seconds, stays.seconds_alone(1e9)) == ((), 0.0, 0.0)
