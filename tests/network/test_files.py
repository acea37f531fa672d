"""Topology files: every format means the same network, and comes back as it went."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.network import Network, build_network, finish_times, load_network, named_topologies, save_network_yaml
from elsa_ray.network.check import check_network, describe

YAML = """
source: typical values
nodes:
  - {id: b, kind: edge}
  - {id: a, kind: client}
  - {id: 007, kind: cloud}
links:
  - {source: a, target: b, bandwidth_bytes_per_second: 8 kbit/s, latency_seconds: 250 ms,
     reverse_bandwidth_bytes_per_second: 4000}
  - {source: b, target: 007, bandwidth_bytes_per_second: 2000, latency_seconds: 0.5, shared_medium: true}
"""

JSON = {
    "directed": False,
    "multigraph": False,
    "graph": {"source": "typical values"},
    "nodes": [{"id": "b", "kind": "edge"}, {"id": "a", "kind": "client", "label": "A"}, {"id": "007", "kind": "cloud"}],
    "links": [
        {
            "source": "a",
            "target": "b",
            "bandwidth_bytes_per_second": "8 kbit/s",
            "latency_seconds": 0.25,
            "reverse_bandwidth_bytes_per_second": 4000,
        },
        {
            "source": "b",
            "target": "007",
            "bandwidth_bytes_per_second": 2000.0,
            "latency_seconds": "500 ms",
            "shared_medium": True,
        },
    ],
}

GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="s" for="graph" attr.name="source" attr.type="string"/>
  <key id="k" for="node" attr.name="kind" attr.type="string"/>
  <key id="w" for="edge" attr.name="bandwidth_bytes_per_second" attr.type="double"><default>2000</default></key>
  <key id="l" for="edge" attr.name="latency_seconds" attr.type="string"/>
  <key id="r" for="edge" attr.name="reverse_bandwidth_bytes_per_second" attr.type="double"/>
  <key id="m" for="edge" attr.name="shared_medium" attr.type="boolean"/>
  <graph edgedefault="undirected">
    <data key="s">typical values</data>
    <node id="b"><data key="k">edge</data></node>
    <node id="a"><data key="k">client</data></node>
    <node id="007"><data key="k">cloud</data></node>
    <edge source="a" target="b"><data key="w">1000</data><data key="l">0.25</data><data key="r">4000</data></edge>
    <edge source="b" target="007"><data key="l">500 ms</data><data key="m">true</data></edge>
  </graph>
</graphml>
"""

FILES = {"net.yaml": YAML, "net.json": json.dumps(JSON), "net.graphml": GRAPHML}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def same(first: Network, second: Network) -> bool:
    columns = [name for name in vars(first) if name.startswith(("link_", "capacity_"))]
    assert len(columns) == 6
    plain = ("node_names", "node_kinds", "figures", "directed")
    return all(getattr(first, name) == getattr(second, name) for name in plain) and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        and getattr(first, name).dtype == getattr(second, name).dtype
        for name in columns
    )


@pytest.mark.parametrize("name", FILES)
def test_all_formats_say_the_same(name: str, tmp_path: Path) -> None:
    network = load_network(write(tmp_path, name, FILES[name]), roles_required=True)
    assert network.node_names == ("b", "a", "007")
    assert network.node_kinds == ("edge", "client", "cloud")
    assert network.figures == "typical values"
    # The file says a to b, although b comes first among the nodes: 1000 is from a to b, 4000 back.
    assert network.link_source.tolist() == [1, 0, 0, 2]
    assert network.link_target.tolist() == [0, 1, 2, 0]
    assert network.link_bandwidth_bytes_per_second.tolist() == [1000, 4000, 2000, 2000]
    assert network.link_latency_seconds.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert network.link_capacity.tolist() == [0, 1, 2, 2]
    assert network.capacity_bytes_per_second.tolist() == [1000, 4000, 2000]
    assert (network.clients.tolist(), network.edges.tolist(), network.clouds.tolist()) == ([1], [0], [2])
    assert network.index("007") == 2


@pytest.mark.parametrize("name", FILES)
def test_yaml_brings_any_of_them_back(name: str, tmp_path: Path) -> None:
    network = load_network(write(tmp_path, name, FILES[name]), roles_required=True)
    for number, saved in enumerate((network, network.graph)):
        save_network_yaml(saved, tmp_path / f"{number}.yml")
        again = load_network(tmp_path / f"{number}.yml", roles_required=True)
        assert same(again, network)


def test_networkx_writers_keep_the_orientation(tmp_path: Path) -> None:
    network = load_network(write(tmp_path, "net.yaml", YAML), roles_required=True)
    path = tmp_path / "out.json"
    path.write_text(json.dumps(nx.node_link_data(network.graph, edges="edges")), encoding="utf-8")
    nx.write_graphml(network.graph, tmp_path / "out.graphml")
    transfers = [
        {"id": number, "src": src, "dst": dst, "num_bytes": 4000, "start_seconds": 0}
        for number, (src, dst) in enumerate((("a", "b"), ("b", "a"), ("a", "007")))
    ]
    expected = finish_times(network, transfers)
    for written in (path, tmp_path / "out.graphml"):
        assert finish_times(written, transfers) == expected


def test_directed_files_state_each_direction(tmp_path: Path) -> None:
    graph = nx.DiGraph()
    graph.add_edge("a", "b", bandwidth_bytes_per_second=100.0, latency_seconds=0.5, shared_medium=True)
    graph.add_edge("b", "a", bandwidth_bytes_per_second=100.0, latency_seconds=0.25)
    graph.add_edge("b", "c", bandwidth_bytes_per_second=70.0, latency_seconds=0.0)
    network = build_network(graph, "graph", roles_required=False)
    assert network.link_capacity.tolist() == [0, 0, 1]
    assert network.capacity_bytes_per_second.tolist() == [100, 70]
    (tmp_path / "d.json").write_text(json.dumps(nx.node_link_data(graph, edges="links")), encoding="utf-8")
    nx.write_graphml(graph, tmp_path / "d.graphml")
    save_network_yaml(network, tmp_path / "d.yaml")
    for name in ("d.json", "d.graphml", "d.yaml"):
        assert same(load_network(tmp_path / name, roles_required=False), network)


def test_natural_order_of_clients() -> None:
    graph = nx.Graph()
    for name in ("client10", "client9", "client1"):
        graph.add_node(name, kind="client")
    network = build_network(graph, "graph", roles_required=False)
    assert [network.node_names[node] for node in network.clients] == ["client1", "client9", "client10"]


def test_numbers_as_node_ids_become_texts() -> None:
    graph = nx.path_graph(3)
    nx.set_edge_attributes(graph, 100, "bandwidth_bytes_per_second")
    nx.set_edge_attributes(graph, np.float64(0.5), "latency_seconds")
    transfers = [{"id": "x", "src": 0, "dst": "2", "num_bytes": 100, "start_seconds": 0}]
    assert finish_times(graph, transfers)[0]["finish_seconds"] == 2.0


def test_six_networks_are_packaged() -> None:
    assert {"metro", "rural", "campus", "factory", "abilene", "nsfnet"} <= set(named_topologies())


@pytest.mark.parametrize("name", sorted(named_topologies()))
def test_packaged_networks_are_sound(name: str, tmp_path: Path) -> None:
    network = load_network(named_topologies()[name], roles_required=True)
    assert check_network(network) == []
    assert network.figures
    save_network_yaml(network, tmp_path / "again.yaml")
    assert same(load_network(tmp_path / "again.yaml", roles_required=True), network)


def test_metro_is_what_it_says() -> None:
    network = load_network(named_topologies()["metro"], roles_required=True)
    assert (len(network.clients), len(network.edges), len(network.clouds)) == (12, 3, 1)
    upload = {"dst": "edge0", "num_bytes": 1.25e6, "start_seconds": 0}
    alone = finish_times(network, [{"id": "a", "src": "client000", **upload}])
    both = finish_times(network, [{"id": name, "src": name, **upload} for name in ("client000", "client003")])
    assert [row["finish_seconds"] for row in alone] == [pytest.approx(1.0101)]
    assert [row["finish_seconds"] for row in both] == [pytest.approx(2.0101)] * 2


def test_check_finds_what_is_cut_off() -> None:
    graph = nx.DiGraph()
    for name, kind in (("c0", "client"), ("c1", "client"), ("e", "edge"), ("cloud", "cloud")):
        graph.add_node(name, kind=kind)
    for source, target in (("c0", "e"), ("e", "c0"), ("e", "cloud"), ("cloud", "e"), ("c1", "e")):
        graph.add_edge(source, target, bandwidth_bytes_per_second=1, latency_seconds=0)
    assert check_network(build_network(graph, "graph", roles_required=True)) == [
        "client c1 has no way to and from any edge",
        "client c1 has no way to and from any cloud",
    ]
    graph.remove_edge("e", "cloud")
    graph.remove_node("c1")
    assert check_network(build_network(graph, "graph", roles_required=True)) == [
        "client c0 has no way to and from any cloud",
        "edge e has no way to and from any cloud",
    ]
    graph.remove_node("cloud")
    assert "0 nodes of kind cloud; needed: exactly one" in check_network(
        build_network(graph, "graph", roles_required=False)
    )


def test_describe_gives_figures_by_tier(tmp_path: Path) -> None:
    described = describe(load_network(write(tmp_path, "net.yaml", YAML), roles_required=True))
    assert described["nodes"] == {"client": 1, "edge": 1, "cloud": 1, "router": 0}
    assert (described["directed_links"], described["shared_media"]) == (4, 1)
    assert described["tiers"]["client - edge"]["bandwidth_bytes_per_second"] == {"min": 1e3, "median": 1e3, "max": 1e3}
    assert described["tiers"]["edge - client"]["bandwidth_bytes_per_second"]["max"] == 4e3
    json.dumps(described)


def test_importing_is_light() -> None:
    code = "import sys, elsa_ray.network; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_saving_to_nowhere_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_network_yaml(nx.Graph(), tmp_path / "missing" / "net.yaml")
