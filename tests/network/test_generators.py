"""Generators and attaching: what holds for all of them, and the form of each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.config.topology import GENERATORS
from elsa_ray.network import Network, load_network, make_network, named_topologies, save_network_yaml
from elsa_ray.network.attach import Group, attached
from elsa_ray.network.backbones import backbone
from elsa_ray.network.check import check_network
from elsa_ray.network.generate import generated
from elsa_ray.network.geography import distance_metres, fibre_seconds
from elsa_ray.network.graph import assemble
from elsa_ray.network.nearest import nearest_edges

WITH_ROUTERS = ("ring", "grid", "barabasi_albert", "waxman")


def make(kind: str, seed: int = 0, **options: Any) -> Network:
    return generated(make_config({"topology": {"kind": kind, **options}}).topology, seed)


def names(network: Network, nodes: Any) -> list[str]:
    return [network.node_names[node] for node in nodes]


def between_routers(network: Network) -> nx.Graph:
    routers = [name for name, kind in zip(network.node_names, network.node_kinds, strict=True) if kind == "router"]
    return nx.Graph(network.graph.subgraph(routers))


ACCESS = st.sampled_from([None, "5g", "wifi", {"mix": {"lte": 0.5, "lora": 0.5}}])


@given(
    st.sampled_from(sorted(GENERATORS)),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(3, 12),
    ACCESS,
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_generated_network_is_sound(
    kind: str, clients: int, edges: int, routers: int, access: Any, seed: int
) -> None:
    options: dict[str, Any] = {"clients": clients, "edges": edges, "access": access}
    if kind in WITH_ROUTERS:
        options["routers"] = routers
    network = make(kind, seed, **options)
    assert check_network(network, edge_capacity=math.ceil(clients / edges)) == []
    assert (len(network.clients), len(network.edges), len(network.clouds)) == (clients, edges, 1)
    assert len(nearest_edges(network)) == clients
    again = make(kind, seed, **options)
    assert again.node_names == network.node_names
    assert np.array_equal(again.link_bandwidth_bytes_per_second, network.link_bandwidth_bytes_per_second)
    assert np.array_equal(again.link_latency_seconds, network.link_latency_seconds)
    own = nx.Graph(network.graph)
    assert all(own.degree(name) == 1 for name in names(network, network.clients))


@pytest.mark.parametrize("seed", [0, 3])
def test_attaching_to_a_star_of_routers_is_the_hierarchical_generator(seed: int) -> None:
    """Two ways to the same network: all links with all their figures, in any order."""
    config = make_config({"topology": {"clients": 23, "edges": 4}}).topology
    routers = backbone(config, seed)
    group = Group(config.clients, config.edges, config, routers.sites)
    nodes, links = attached(routers.nodes, routers.links, [group], seed, cloud_at=routers.cloud_at)
    other = assemble(nodes, links, "attached", directed=False, roles_required=True)
    network = generated(config, seed)
    assert sorted(map(str, other.stated_links())) == sorted(map(str, network.stated_links()))
    assert other.node_names == network.node_names and other.node_kinds == network.node_kinds


def test_forms() -> None:
    ring = between_routers(make("ring", clients=5, edges=3, routers=7))
    assert sorted(degree for _, degree in ring.degree) == [2] * 7 and nx.is_connected(ring)
    assert between_routers(make("ring", edges=2)).number_of_edges() == 1
    grid = between_routers(make("grid", routers=11))
    full = nx.convert_node_labels_to_integers(nx.grid_2d_graph(3, 4), ordering="sorted")
    assert nx.is_isomorphic(grid, nx.Graph(full.subgraph(range(11))))
    grown = between_routers(make("barabasi_albert", routers=30, links_per_router=3))
    assert grown.number_of_edges() == (30 - 3) * 3 and min(grown.degree(f"router{n:02d}") for n in range(4, 30)) >= 3
    star = make("star", clients=4, edges=3)
    assert star.graph.degree("router0") == 4 + 3 + 1


def test_waxman_latencies_are_distances_and_parts_are_joined() -> None:
    config = make_config({"topology": {"kind": "waxman", "routers": 25, "alpha": 0.02, "side_kilometres": 500}})
    routers = backbone(config.topology, 3)
    graph = nx.Graph((link["source"], link["target"]) for link in routers.links)
    assert nx.is_connected(graph) and len(graph) == 25
    latency = [link["latency_seconds"] for link in routers.links]
    assert min(latency) > 0 and max(latency) < fibre_seconds(500e3 * math.sqrt(2))
    twice = make_config({"topology": {"kind": "waxman", "routers": 25, "alpha": 0.02, "side_kilometres": 1000}})
    assert [link["latency_seconds"] for link in backbone(twice.topology, 3).links] == pytest.approx(
        [2 * seconds for seconds in latency]
    )


def test_edge_servers_stand_far_from_each_other() -> None:
    network = make("ring", clients=2, edges=3, routers=9)
    (cloud,) = [name for name in network.graph["cloud"]]
    at = sorted(int(next(iter(network.graph[name])).removeprefix("router")) for name in ("edge0", "edge1", "edge2"))
    gaps = [(after - before) % 9 for before, after in zip(at, [*at[1:], at[0]], strict=True)]
    assert cloud == "router0" and at[0] == 0 and min(gaps) >= 2
    crowded = make("ring", clients=2, edges=8, routers=3)
    sites = [next(iter(crowded.graph[f"edge{number}"])) for number in range(8)]
    assert sorted(sites) == sites and all(sites.count(f"router{number}") >= 2 for number in range(3))


def write_chain(folder: Path, *, directed: bool = False) -> Path:
    """A chain of three routers with a client, an edge server and no cloud; the last router is longest away."""
    nodes = [{"id": name} for name in ("r0", "r1", "r2")]
    nodes += [{"id": "old-client", "kind": "client"}, {"id": "old-edge", "kind": "edge"}]
    pairs = [("r0", "r1", 0.25), ("r1", "r2", 0.5), ("old-client", "r0", 0.5), ("r1", "old-edge", 0.125)]
    links = [
        {"source": a, "target": b, "bandwidth_bytes_per_second": 1000, "latency_seconds": seconds}
        for a, b, seconds in pairs
    ]
    if directed:
        links += [{**link, "source": link["target"], "target": link["source"]} for link in links]
    path = folder / "chain.json"
    path.write_text(json.dumps({"directed": directed, "nodes": nodes, "links": links}))
    return path


@pytest.mark.parametrize("directed", [False, True])
def test_attaching_by_hand(directed: bool, tmp_path: Path) -> None:
    path = write_chain(tmp_path, directed=directed)
    attach = {"clients": 3, "access_up": 100, "access_down": 200, "access_latency": 1.0, "spread": 0, "cloud_at": "r2"}
    section = make_config({"topology": {"file": str(path), "attach": attach}}).topology
    network = make_network(section, 0, Path())
    assert names(network, network.clients) == ["client000", "client001", "client002"]
    assert names(network, network.edges) == ["old-edge"], "without a number of edges, those of the file stay"
    graph = network.graph
    assert [next(iter(graph[name])) for name in ("client000", "client001", "client002", "cloud")] == [
        *("r0", "r1", "r2"),
        "r2",
    ]
    bandwidth, client = network.link_bandwidth_bytes_per_second, network.clients[0]
    assert bandwidth[network.link_source == client].tolist() == [100]
    assert bandwidth[network.link_target == client].tolist() == [200]
    replaced = make_config({"topology": {"file": str(path), "attach": {**attach, "edges": 2}}}).topology
    other = make_network(replaced, 0, Path())
    # The first is where the cloud is, the second as far from it as can be.
    assert [next(iter(nx.Graph(other.graph)[name])) for name in ("edge0", "edge1")] == ["r0", "r2"]
    assert "old-edge" not in other


def test_groups_of_clients_at_sites_of_their_own(tmp_path: Path) -> None:
    groups = [
        {"clients": 2, "sites": ["r0"], "access": "lte", "edges": 1, "spread": 0},
        {"clients": 2, "sites": ["r2"], "access": "5g", "edges": 1, "spread": 0},
    ]
    section = make_config({"topology": {"file": str(write_chain(tmp_path)), "attach": groups}}).topology
    network = make_network(section, 0, Path())
    assert [next(iter(network.graph[f"client00{n}"])) for n in range(4)] == ["r0", "r0", "r2.5g.0", "r2.5g.0"]
    assert [next(iter(network.graph[name])) for name in ("edge0", "edge1")] == ["r0", "r2"]
    assert "2 clients by lte, 2 clients by 5g, 2 edge servers" in network.figures


@pytest.mark.parametrize("name", sorted(named_topologies()))
def test_packaged_networks_take_other_clients(name: str, tmp_path: Path) -> None:
    section = make_config({"topology": {"name": name, "attach": {"clients": 50, "edges": 2, "access": "wifi"}}})
    network = make_network(section.topology, 4, tmp_path)
    assert check_network(network) == [] and (len(network.clients), len(network.edges)) == (50, 2)
    save_network_yaml(network, tmp_path / "saved.yaml")
    assert load_network(tmp_path / "saved.yaml", roles_required=True).coordinates == network.coordinates


def test_real_backbones_are_what_they_say() -> None:
    abilene = load_network(named_topologies()["abilene"], roles_required=True)
    cities = [name for name in abilene.node_names if name in abilene.coordinates]
    routers = abilene.graph.subgraph(cities)
    assert (len(cities), routers.number_of_edges()) == (11, 14)
    assert {data["bandwidth_bytes_per_second"] for _, _, data in routers.edges(data=True)} == {9.953e9 / 8}
    # About 328 km as the crow flies, so 1.64 ms in glass.
    near = routers.edges["New York", "Washington"]["latency_seconds"]
    assert near == pytest.approx(328e3 / 2e8, rel=0.01)
    nsfnet = load_network(named_topologies()["nsfnet"], roles_required=True)
    sites = nsfnet.graph.subgraph([name for name in nsfnet.node_names if name in nsfnet.coordinates])
    assert (len(sites), sites.number_of_edges()) == (14, 21)
    assert nx.edge_connectivity(nx.Graph(sites)) == 2, "no single cut parts it"


def test_great_circles_by_hand() -> None:
    quarter = math.pi / 2 * 6_371_008.8
    assert distance_metres((0, 0), (0, 90)) == pytest.approx(quarter, rel=1e-12)
    assert distance_metres((90, 0), (0, 17)) == pytest.approx(quarter, rel=1e-12)
    assert distance_metres((10, 179), (10, -179)) == pytest.approx(distance_metres((10, 0), (10, 2)), rel=1e-12)
    assert distance_metres((1, 2), (1, 2)) == 0
    assert fibre_seconds(299_792_458) == 1.5


@pytest.mark.parametrize(
    ("topology", "line"),
    [
        ({"kind": "rign"}, r"topology\.kind: found rign; allowed: barabasi_albert, .*did you mean ring\?"),
        ({"kind": "star", "routers": 2}, r"topology\.routers: found an unknown key"),
        ({"kind": "ring", "routers": 0}, r"topology\.routers: found 0; allowed: greater than or equal to 1"),
        (
            {"kind": "barabasi_albert", "routers": 3, "links_per_router": 3},
            r"topology\.links_per_router: found 3; allowed: less than the number of routers, which is 3",
        ),
        ({"kind": "waxman", "beta": 1.5}, r"topology\.beta: found 1\.5; allowed: less than or equal to 1"),
        ({"name": "abilene", "attach": {"edges": 3}}, r"topology\.attach\.clients: found nothing; allowed: a value"),
        ({"name": "abilene", "attach": 3}, r"topology\.attach: found 3; allowed: a valid list"),
        (
            {"name": "abilene", "attach": {"clients": 3, "edges": 1, "sites": ["Bosten"]}},
            r"topology\.attach\.sites: found Bosten; allowed: Atlanta",
        ),
        ({"name": "abilene", "attach": {"clients": 3}}, r"topology\.attach\.edges: found nothing; allowed: a number"),
        (
            {"name": "nsfnet", "attach": {"clients": 3, "edges": 1, "cloud_at": "Seatle"}},
            r"topology\.attach\.cloud_at: found Seatle; .*did you mean Seattle\?",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_line(topology: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line) as error:
        make_network(make_config({"topology": topology}).topology, 0, tmp_path)
    assert "\n" not in str(error.value)
