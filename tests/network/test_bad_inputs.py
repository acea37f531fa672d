"""Every wrong topology is refused with one line that names the file, the place, what was found and what is allowed."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.network import build_network, load_network

GOOD_NODES = "nodes: [{id: a, kind: client}, {id: b, kind: edge}, {id: c, kind: cloud}]\n"
FIGURES = "bandwidth_bytes_per_second: 5, latency_seconds: 1"
GOOD_LINKS = f"links: [{{source: a, target: b, {FIGURES}}}, {{source: b, target: c, {FIGURES}}}]\n"


def link(text: str, ends: str = "source: a, target: b") -> str:
    return GOOD_NODES + f"links: [{{{ends}, {text}}}]\n"


BANDWIDTH = "link a-b: bandwidth_bytes_per_second: found"
LATENCY = "link a-b: latency_seconds: found"
YAML_CASES = {
    "negative bandwidth": (
        link("bandwidth_bytes_per_second: -3, latency_seconds: 1"),
        f"{BANDWIDTH} -3; allowed: a fi",
    ),
    "zero bandwidth": (
        link("bandwidth_bytes_per_second: 0, latency_seconds: 1"),
        f"{BANDWIDTH} 0; allowed: a finite n",
    ),
    "infinite bandwidth": (link("bandwidth_bytes_per_second: .inf, latency_seconds: 1"), f"{BANDWIDTH} .inf; allowed:"),
    "wrong unit": (link("bandwidth_bytes_per_second: 5 ms, latency_seconds: 1"), f"{BANDWIDTH} 5 ms; allowed: a finit"),
    "no bandwidth": (link("latency_seconds: 1"), f"{BANDWIDTH} nothing; allowed: a finite number > 0"),
    "bandwidth is a list": (link("bandwidth_bytes_per_second: [1], latency_seconds: 1"), f"{BANDWIDTH} ['1']; allowed"),
    "negative latency": (link("bandwidth_bytes_per_second: 5, latency_seconds: -1 ms"), f"{LATENCY} -1 ms; allowed: a"),
    "no latency": (link("bandwidth_bytes_per_second: 5"), f"{LATENCY} nothing; allowed: a finite number >= 0"),
    "endless latency": (link("bandwidth_bytes_per_second: 5, latency_seconds: 1e300"), f"{LATENCY} 1e300; allowed: at"),
    "misspelt attribute": (link(f"{FIGURES}, shared_medum: true"), "link a-b: found shared_medum; allowed: bandwidth"),
    "nearest attribute": (link(f"{FIGURES}, shared_medum: true"), "did you mean shared_medium?"),
    "wrong flag": (
        link(f"{FIGURES}, shared_medium: maybe"),
        "link a-b: shared_medium: found maybe; allowed: true, fal",
    ),
    "shared and asymmetric": (
        link(f"{FIGURES}, shared_medium: true, reverse_bandwidth_bytes_per_second: 6"),
        "link a-b: reverse_bandwidth_bytes_per_second: found 6; allowed: nothing: a shared medium has one bandwidth",
    ),
    "reverse in a directed graph": (
        "directed: true\n" + link(f"{FIGURES}, reverse_bandwidth_bytes_per_second: 6"),
        "link a-b: reverse_bandwidth_bytes_per_second: found 6; allowed: nothing",
    ),
    "unequal directions of one medium": (
        "directed: true\n"
        + GOOD_NODES
        + f"links: [{{source: a, target: b, {FIGURES}, shared_medium: true}},"
        + " {source: b, target: a, bandwidth_bytes_per_second: 7, latency_seconds: 1}]",
        "link b-a: bandwidth_bytes_per_second: found 7.0; allowed: 5, as its other direction",
    ),
    "unknown end": (link(FIGURES, "source: a, target: bb"), "link a-bb: target: found bb; allowed: the id of a node"),
    "nearest end": (link(FIGURES, "source: a, target: bb"), "did you mean b?"),
    "no end": (link(FIGURES, "source: a"), "link 1: target: found nothing; allowed: a text or a whole number"),
    "self loop": (link(FIGURES, "source: b, target: b"), "link b-b: found a link from a node to itself; allowed: two"),
    "parallel links": (
        GOOD_NODES + f"links: [{{source: a, target: b, {FIGURES}}}, {{source: b, target: a, {FIGURES}}}]",
        "link b-a: found a second link between these nodes",
    ),
    "no kind": (
        "nodes: [{id: a}]\n" + GOOD_LINKS,
        "node a: kind: found nothing; allowed: client, edge",
    ),
    "duplicate id": (
        "nodes: [{id: a, kind: edge}, {id: b, kind: edge}, {id: a, kind: edge}]\n" + GOOD_LINKS,
        "node a: found its id twice; allowed: one node of each id",
    ),
    "duplicate id at once": (
        "nodes: [{id: a, kind: edge}, {id: a, kind: edge}]\n" + GOOD_LINKS,
        "node a: found its id twice; allowed: one node of each id",
    ),
    "no id": ("nodes: [{kind: edge}]\n" + GOOD_LINKS, "node 1: id: found nothing; allowed: a text or a whole number"),
    "unknown kind": ("nodes: [{id: a, kind: cilent}]\n" + GOOD_LINKS, "node a: kind: found cilent; allowed: client, c"),
    "nearest kind": ("nodes: [{id: a, kind: cilent}]\n" + GOOD_LINKS, "did you mean client?"),
    "unknown node attribute": (
        "nodes: [{id: a, knid: edge}]\n" + GOOD_LINKS,
        "node a: found knid; allowed: id, kind, latitude, longitude; d",
    ),
    "no client": ("nodes: [{id: b, kind: edge}]\nlinks: []", "nodes: found 0 of kind client; allowed: at least one"),
    "two clouds": (
        "nodes: [{id: a, kind: client}, {id: b, kind: edge}, {id: c, kind: cloud}, {id: d, kind: cloud}]\nlinks: []",
        "nodes: found 2 of kind cloud; allowed: exactly one of kind cloud",
    ),
    "no nodes": (GOOD_LINKS, "nodes: found nothing; allowed: a list of mappings"),
    "nodes are texts": ("nodes: [a, b]\n" + GOOD_LINKS, "nodes: found something else; allowed: a list of mappings"),
    "unknown key": (
        GOOD_NODES + GOOD_LINKS + "link: []",
        "found link; allowed: attach, directed, links, nodes, source; did you",
    ),
    "a key twice": (GOOD_NODES + GOOD_LINKS + GOOD_LINKS, "the key links twice"),
    "wrong directed": ("directed: yes\n" + GOOD_NODES + GOOD_LINKS, "directed: found yes; allowed: true, false"),
    "no mapping": ("- a", "found no mapping; allowed: a mapping with the keys"),
    "empty": ("", "found no mapping"),
    "no YAML": ("nodes: [", "found no readable YAML"),
}


def refusal(path: Path, *, roles_required: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        load_network(path, roles_required=roles_required)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", YAML_CASES)
def test_wrong_yaml(case: str, tmp_path: Path) -> None:
    text, expected = YAML_CASES[case]
    path = tmp_path / "net.yaml"
    path.write_text(text, encoding="utf-8")
    assert expected in refusal(path)


def test_the_good_parts_are_good(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(GOOD_NODES + GOOD_LINKS, encoding="utf-8")
    assert load_network(path, roles_required=True).node_names == ("a", "b", "c")


JSON_LINK = '{"source": "a", "target": "b", "bandwidth_bytes_per_second": 5, "latency_seconds": 1'
OTHER_CASES = {
    "no JSON": ("net.json", "{", "found no readable JSON"),
    "JSON list": ("net.json", "[]", "found no object; allowed: an object with the keys nodes"),
    "both link lists": ("net.json", '{"nodes": [], "links": [], "edges": []}', "found both edges and links"),
    "JSON NaN": (
        "net.json",
        '{"nodes": [{"id": "a"}, {"id": "b"}], "links": [' + JSON_LINK.replace("5", "NaN") + "}]}",
        "link a-b: bandwidth_bytes_per_second: found nan; allowed: a finite number > 0",
    ),
    "surely misspelt": (
        "net.json",
        '{"nodes": [{"id": "a"}, {"id": "b"}], "links": ['
        + JSON_LINK
        + ', "label": "x", "reverse_bandwith_bytes_per_second": 3}]}',
        "link a-b: found reverse_bandwith_bytes_per_second; allowed: ",
    ),
    "parallel JSON links": (
        "net.json",
        '{"multigraph": true, "nodes": [{"id": "a"}, {"id": "b"}], "edges": [' + JSON_LINK + "}, " + JSON_LINK + "}]}",
        "link a-b: found a second link between these nodes",
    ),
    "boolean id": ("net.json", '{"nodes": [{"id": true}], "links": []}', "node 1: id: found True; allowed: a text or"),
    "wrong JSON directed": ("net.json", '{"directed": "no", "nodes": [], "links": []}', "directed: found no; allowed"),
    "no XML": ("net.graphml", "<graphml>", "found no readable XML"),
    "no graph": ("net.graphml", "<graphml/>", "found no graph element"),
    "nested graph": (
        "net.graphml",
        '<graphml><graph><node id="a"><graph/></node></graph></graphml>',
        "found a graph within a graph",
    ),
    "mixed directions": (
        "net.graphml",
        '<graphml><graph edgedefault="undirected"><node id="a"/><node id="b"/>'
        '<edge source="a" target="b" directed="true"/></graph></graphml>',
        "link a-b: directed: found true",
    ),
    "no figures in GraphML": (
        "net.graphml",
        '<graphml><graph><node id="a"/><node id="b"/><edge source="a" target="b"/></graph></graphml>',
        "link a-b: bandwidth_bytes_per_second: found nothing",
    ),
    "unknown ending": ("net.txt", "", "found a name ending in '.txt'; allowed: a name ending in .yaml, .yml, .json"),
}


@pytest.mark.parametrize("case", OTHER_CASES)
def test_wrong_files_of_other_formats(case: str, tmp_path: Path) -> None:
    name, text, expected = OTHER_CASES[case]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert expected in refusal(path, roles_required=False)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert "found no such file" in refusal(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "found an unreadable file" in refusal(tmp_path / "folder.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"source: caf\xe9")
    assert "it is not UTF-8" in refusal(tmp_path / "latin.yaml")


def test_wrong_networkx_graphs() -> None:
    figures = {"bandwidth_bytes_per_second": 5, "latency_seconds": 1}
    parallel = nx.MultiGraph()
    parallel.add_edge("a", "b", **figures)
    parallel.add_edge("b", "a", **figures)
    colliding = nx.Graph()
    colliding.add_edge(1, "1", **figures)
    for graph, expected in (
        (parallel, "graph: link a-b: found a second link"),
        (colliding, "graph: node 1: found its id twice"),
        (nx.path_graph(2), "graph: link 0-1: bandwidth_bytes_per_second: found nothing"),
    ):
        with pytest.raises(InputError) as caught:
            build_network(graph, "graph", roles_required=False)
        assert str(caught.value).startswith(expected)
