"""Which edge a client gets: against brute force, with and without capacity, and when a link moves.

Shapes: N clients, K edges.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.clustering import assignment
from elsa_ray.clustering.assignment import (
    PARKED,
    RoundTrips,
    assign,
    default_capacity,
    edge_costs,
    edges_of_clusters,
    step_round_trip_seconds,
)
from elsa_ray.clustering.transport import least_cost, near_least_cost
from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.clustering import ClusteringConfig
from elsa_ray.config.errors import InputError
from elsa_ray.config.topology import HierarchicalTopology
from elsa_ray.network import Network, build_network
from elsa_ray.network.generate import hierarchical
from elsa_ray.network.routes import Route, Router
from elsa_ray.prepare import Prepared, prepare

from ..helpers import run_config, write_texts


def cost_of(cost_NK: np.ndarray, edges: np.ndarray | tuple[int, ...]) -> tuple[int, float]:
    """Return how many are parked and what the others cost: smaller is better, in this order."""
    chosen = [cost_NK[n, k] for n, k in enumerate(edges) if k != PARKED]
    return len(edges) - len(chosen), float(sum(chosen))


def best_by_brute_force(cost_NK: np.ndarray, capacity: int | None) -> tuple[int, float]:
    num_clients, num_edges = cost_NK.shape
    best = (num_clients + 1, 0.0)
    for edges in itertools.product([PARKED, *range(num_edges)], repeat=num_clients):
        reachable = all(k == PARKED or np.isfinite(cost_NK[n, k]) for n, k in enumerate(edges))
        fits = capacity is None or all(edges.count(k) <= capacity for k in range(num_edges))
        if reachable and fits:
            best = min(best, cost_of(cost_NK, edges))
    return best


@pytest.mark.parametrize("capacity", [None, 1, 2, 3, 10])
@pytest.mark.parametrize("seed", range(12))
def test_the_assignment_is_the_best_one_that_brute_force_finds(seed: int, capacity: int | None) -> None:
    generator = np.random.default_rng(seed)
    num_clients, num_edges = int(generator.integers(1, 6)), int(generator.integers(1, 4))
    cost_NK = generator.exponential(10.0 ** generator.integers(-4, 5), (num_clients, num_edges))
    cost_NK[generator.random(cost_NK.shape) < 0.3] = np.inf
    edges = assign(cost_NK, capacity)
    assert all(edge == PARKED or np.isfinite(cost_NK[n, edge]) for n, edge in enumerate(edges))
    assert capacity is None or max(np.bincount(edges[edges != PARKED], minlength=1)) <= capacity
    parked, total = best_by_brute_force(cost_NK, capacity)
    assert cost_of(cost_NK, edges) == (parked, pytest.approx(total, rel=1e-9))


def test_without_capacity_each_gets_its_nearest_and_the_first_of_equal_ones() -> None:
    inf = np.inf
    cost_NK = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0], [inf, inf, 7.0], [inf, inf, inf]])
    assert assign(cost_NK, None).tolist() == [1, 0, 2, PARKED]


def test_a_client_gives_way_to_one_that_has_no_other_edge() -> None:
    """Client 0 is nearer to edge 0, but only client 1 would be parked without it."""
    cost_NK = np.array([[1.0, 100.0], [50.0, np.inf]])
    assert assign(cost_NK, 1).tolist() == [1, 0]


def test_beyond_the_exact_size_it_is_the_heuristic_and_distrust_still_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cost_NK = np.random.default_rng(3).random((60, 6)) + 2 * np.random.default_rng(4).random(6)
    exact, near = least_cost(cost_NK, 12), near_least_cost(cost_NK, 12)
    assert exact.tolist() != near.tolist(), "so that one can be told from the other"
    alike_N1, handicap_N = np.zeros((4, 1)), np.array([0.0, 0.3, 0.1, 0.2])
    for size, expected in ((cost_NK.size, exact), (cost_NK.size - 1, near)):
        monkeypatch.setattr(assignment, "EXACT_SIZE", size)
        assert assign(cost_NK, 12).tolist() == expected.tolist()
    monkeypatch.setattr(assignment, "EXACT_SIZE", 0)
    assert assign(alike_N1, 2, handicap_N).tolist() == [0, PARKED, 0, PARKED]


def test_those_without_a_free_place_are_parked() -> None:
    edges = assign(np.array([[1.0], [2.0], [3.0], [0.5]]), 2)
    assert edges.tolist() == [0, PARKED, PARKED, 0]


def bottleneck_and_latency(network: Network, source: int, target: int) -> tuple[float, float] | None:
    """Find the path of least latency by trying all of them; clients do not forward."""
    best: tuple[float, float] | None = None
    links: dict[int, list[tuple[int, float, float]]] = {}
    for link in range(len(network.link_source)):
        item = (
            int(network.link_target[link]),
            float(network.link_latency_seconds[link]),
            float(network.link_bandwidth_bytes_per_second[link]),
        )
        links.setdefault(int(network.link_source[link]), []).append(item)
    paths = [(source, 0.0, np.inf, frozenset([source]))]
    while paths:
        node, latency, bandwidth, seen = paths.pop()
        if node == target:
            best = min(best, (latency, -bandwidth)) if best else (latency, -bandwidth)
            continue
        if node != source and network.node_kinds[node] == "client":
            continue
        paths += [
            (other, latency + more, min(bandwidth, width), seen | {other})
            for other, more, width in links.get(node, [])
            if other not in seen
        ]
    return None if best is None else (best[0], -best[1])


def slow_round_trips(network: Network, up_bytes_N: np.ndarray, down_bytes_N: np.ndarray) -> np.ndarray:
    seconds_NK = np.full((len(network.clients), len(network.edges)), np.inf)
    for n, client in enumerate(network.clients.tolist()):
        for k, edge in enumerate(network.edges.tolist()):
            up, down = bottleneck_and_latency(network, client, edge), bottleneck_and_latency(network, edge, client)
            if up is not None and down is not None:
                seconds_NK[n, k] = 2 * (up[0] + down[0]) + up_bytes_N[n] / up[1] + down_bytes_N[n] / down[1]
    return seconds_NK


def two_cells(**moved: Any) -> nx.Graph:
    """Two cells with two clients each; ``moved`` gives the home router of a client, or None to cut it off."""
    graph = nx.Graph()
    home = {"client0": "router0", "client1": "router0", "client2": "router1", "client3": "router1", **moved}
    for k in range(2):
        graph.add_node(f"edge{k}", kind="edge")
        graph.add_node(f"router{k}", kind="router")
        graph.add_edge(f"router{k}", f"edge{k}", bandwidth_bytes_per_second=1e8, latency_seconds=0.001)
        graph.add_edge(f"router{k}", "cloud", bandwidth_bytes_per_second=1e8, latency_seconds=0.02)
    graph.nodes["cloud"]["kind"] = "cloud"
    for number, (client, router) in enumerate(home.items()):
        graph.add_node(client, kind="client")
        if router is not None:
            figures = {
                "bandwidth_bytes_per_second": 1e5 * (1 + number),
                "reverse_bandwidth_bytes_per_second": 4e5 * (1 + number),
                "latency_seconds": 0.01 * (1 + number),
            }
            graph.add_edge(client, router, source_node=client, **figures)
    return graph


MOVES: list[dict[str, str | None]] = [{}, {"client0": "router1"}, {"client3": "router0"}, {"client1": None}]


@pytest.mark.parametrize("moved", MOVES, ids=str)
def test_round_trips_are_those_of_all_paths_tried_by_hand(moved: dict[str, str | None]) -> None:
    network = build_network(two_cells(**moved), "by hand", roles_required=True)
    up_bytes_N, down_bytes_N = np.array([1e4, 2e4, 3e4, 4e4]), np.array([5e4, 1e4, 7e4, 2e4])
    compute_seconds_NK = np.arange(8.0).reshape(4, 2)
    found_NK = step_round_trip_seconds(
        network,
        Router(network),
        up_bytes_N=up_bytes_N,
        down_bytes_N=down_bytes_N,
        compute_seconds_NK=compute_seconds_NK,
    )
    expected_NK = slow_round_trips(network, up_bytes_N, down_bytes_N) + compute_seconds_NK
    np.testing.assert_allclose(found_NK, expected_NK, rtol=1e-12)
    assert np.isinf(found_NK).any() == (None in moved.values())


def test_a_round_trip_by_hand() -> None:
    """2 x (latency up + down) + bytes up over the uplink's bandwidth + bytes down over the downlink's."""
    network = build_network(two_cells(), "by hand", roles_required=True)
    seconds_NK = step_round_trip_seconds(
        network,
        Router(network),
        up_bytes_N=np.array([1e5, 0.0, 0.0, 0.0]),
        down_bytes_N=np.array([8e5, 0.0, 0.0, 0.0]),
        compute_seconds_NK=np.zeros((4, 2)),
    )
    assert seconds_NK[0, 0] == pytest.approx(4 * 0.011 + 1.0 + 2.0, rel=1e-12)
    assert seconds_NK[1, 0] == pytest.approx(4 * 0.021, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), directed=st.booleans())
def test_round_trips_are_right_for_clients_of_any_links(seed: int, directed: bool) -> None:
    """Clients with no link, one, or several; to routers, edges, or other clients; there and back by different ways."""
    generator = np.random.default_rng(seed)
    graph = nx.DiGraph() if directed else nx.Graph()
    kinds = {"client": 5, "edge": 2, "router": 3, "cloud": 1}
    names = [f"{kind}{number}" for kind, count in kinds.items() for number in range(count)]
    for name in names:
        graph.add_node(name, kind=name[:-1])
    num_links = 10 + 10 * directed
    for _ in range(num_links):
        first, second = generator.choice(len(names), 2, replace=False).tolist()
        figures = {
            "bandwidth_bytes_per_second": generator.uniform(1e4, 1e6),
            "latency_seconds": generator.uniform(0.001, 0.1),
        }
        if not directed:
            figures |= {
                "source_node": names[first],
                "reverse_bandwidth_bytes_per_second": generator.uniform(1e4, 1e6),
            }
        graph.add_edge(names[first], names[second], **figures)
    network = build_network(graph, "at random", roles_required=True)
    up_bytes_N, down_bytes_N = generator.uniform(0, 1e5, 5), generator.uniform(0, 1e5, 5)
    found_NK = step_round_trip_seconds(
        network,
        Router(network),
        up_bytes_N=up_bytes_N,
        down_bytes_N=down_bytes_N,
        compute_seconds_NK=np.zeros((5, 2)),
    )
    np.testing.assert_allclose(found_NK, slow_round_trips(network, up_bytes_N, down_bytes_N), rtol=1e-12)
    pairs = RoundTrips(network, Router(network), up_bytes_N=up_bytes_N, down_bytes_N=down_bytes_N)
    clients, edges = np.array([4, 0, 0, 2, 1, 3]), np.array([1, 0, 1, 0, 1, 1])
    assert np.array_equal(pairs.seconds_through(clients, edges), found_NK[clients, edges])


def test_ways_are_looked_up_between_gateways_not_between_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a generated network of 200 clients and 4 edges there are 4 gateways: 16 routes each way, not 800."""
    config = HierarchicalTopology(clients=200, edges=4)
    network = hierarchical(config, 0)
    router, looked_up = Router(network), []
    routes = router.routes

    def counted(sources: list[int], targets: list[int]) -> list[Route | None]:
        looked_up.extend(sources)
        return routes(sources, targets)

    monkeypatch.setattr(router, "routes", counted)
    zeros_N = np.zeros(200)
    step_round_trip_seconds(
        network, router, up_bytes_N=zeros_N, down_bytes_N=zeros_N, compute_seconds_NK=np.zeros((200, 4))
    )
    assert len(looked_up) == 2 * 16


def test_the_cost_by_hand() -> None:
    """Divergences have the median 2, the longest latency is 4 seconds, client 1 is trusted by half."""
    inf, nan = np.inf, np.nan
    divergence_NK = np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 8.0], [nan, nan, nan]])
    latency_NK = np.array([[1.0, 2.0, inf], [4.0, 2.0, 1.0], [1.0, 1.0, 3.0]])
    cost_NK = edge_costs(divergence_NK, latency_NK, np.array([1.0, 0.5, 1.0]), ClusteringConfig())
    expected_NK = [
        [0.6 * 0 + 0.3 * 0.25, 0.6 * 1 + 0.3 * 0.5, inf],
        [0.6 * 1.5 + 0.3 * 1 + 0.05, 0.6 * 1 + 0.3 * 0.5 + 0.05, 0.6 * 4 + 0.3 * 0.25 + 0.05],
        [0.3 * 0.25, 0.3 * 0.25, 0.3 * 0.75],
    ]
    np.testing.assert_allclose(cost_NK, expected_NK, rtol=1e-12)


def test_an_edge_without_a_medoid_is_as_near_as_the_median() -> None:
    divergence_NK = np.array([[0.0, 2.0, np.nan], [4.0, 0.0, np.nan]])
    config = ClusteringConfig(behaviour_weight=1.0, latency_weight=0.0)
    cost_NK = edge_costs(divergence_NK, np.ones((2, 3)), np.ones(2), config)
    assert cost_NK.tolist() == [[0.0, 2 / 3, 1.0], [4 / 3, 0.0, 1.0]]


def test_an_edge_beyond_the_longest_latency_is_no_edge() -> None:
    latency_NK = np.array([[1.0, 5.0], [2.0, 2.5], [7.0, np.inf]])
    config = ClusteringConfig(max_latency_seconds=2.5)
    cost_NK = edge_costs(np.full((3, 2), np.nan), latency_NK, np.ones(3), config)
    assert np.isinf(cost_NK).tolist() == [[False, True], [False, False], [True, True]]
    assert cost_NK[1, 1] == pytest.approx(0.3), "the longest admitted latency is the unit"
    assert assign(cost_NK, 2)[2] == PARKED


def test_clusters_get_the_edges_that_are_nearest_to_their_members() -> None:
    """Cluster 0 is near to edge 2, cluster 1 too but less so; cluster 2 has no members."""
    latency_NK = np.array([[9.0, 9, 1], [9, 9, 2], [9, 8, 3], [np.inf, 8, 4], [5, 5, 5]])
    assert edges_of_clusters(np.array([0, 0, 1, 1, -1]), latency_NK).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("clients", "edges", "places"), [(60, 6, 12), (10_000, 100, 120), (1, 1, 2), (5, 4, 2), (7, 3, 3)]
)
def test_without_a_configured_capacity_a_fifth_of_the_places_is_spare(clients: int, edges: int, places: int) -> None:
    assert default_capacity(clients, edges) == places
    assert places * edges >= clients


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"))


def prepared_on(graph: nx.Graph, folder: Path, dataset: dict[str, str], capacity: int | None = None) -> Prepared:
    path = folder / "topology.json"
    links = []
    for first, second, figures in graph.edges(data=True):
        source = figures.get("source_node", first)
        target = second if source == first else first
        numbers = {name: value for name, value in figures.items() if name != "source_node"}
        links.append({"source": source, "target": target, **numbers})
    nodes = [{"id": name, **attributes} for name, attributes in graph.nodes(data=True)]
    path.write_text(json.dumps({"directed": False, "multigraph": False, "nodes": nodes, "edges": links}))
    config = run_config(
        dataset,
        topology={"file": str(path)},
        world={"edges": {"capacity": capacity}},
    )
    return prepare(config)


def step_bytes(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Return what a usual step sends up and down, from the wire format: fp64 numbers, 2 bytes a text for the mask."""
    setting = prepared.setting
    lengths = setting.task.train.lengths
    up, down = [], []
    for indices in setting.task.partition:
        batch, length = min(setting.config.protocol.batch_size, len(indices)), np.ceil(lengths[indices].mean())
        message = HEADER_BYTES + batch * length * setting.shape.hidden_size * 8
        up.append(2 * message + 2 * batch)
        down.append(2 * message)
    return np.array(up), np.array(down)


@pytest.mark.parametrize("capacity", [None, 2, 3])
@pytest.mark.parametrize("moved", MOVES, ids=str)
def test_moving_a_link_moves_the_client_to_the_edge_that_brute_force_finds(
    moved: dict[str, str | None], capacity: int | None, tmp_path: Path, dataset: dict[str, str]
) -> None:
    prepared = prepared_on(two_cells(**moved), tmp_path, dataset, capacity)
    network = prepared.setting.network
    edge_of_client = prepared.protocol.start(None).edge_of_client
    cost_NK = slow_round_trips(network, *step_bytes(prepared))
    edges = tuple(PARKED if node == PARKED else network.edges.tolist().index(node) for node in edge_of_client)
    parked, total = best_by_brute_force(cost_NK, capacity)
    assert cost_of(cost_NK, edges) == (parked, pytest.approx(total, rel=1e-9))
    if capacity is None:
        home = {"client0": 0, "client1": 0, "client2": 1, "client3": 1}
        home |= {client: PARKED if router is None else int(router[-1]) for client, router in moved.items()}
        assert edges == tuple(home.values())


def test_clients_without_any_edge_are_an_error_that_names_the_topology(tmp_path: Path, dataset: dict[str, str]) -> None:
    graph = two_cells(client0=None, client1=None, client2=None, client3=None)
    with pytest.raises(InputError, match="topology"):
        prepared_on(graph, tmp_path, dataset).protocol.start(None)
