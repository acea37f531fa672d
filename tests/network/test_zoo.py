"""GraphML as the Internet Topology Zoo writes it: speeds in its words, latencies by coordinates, gaps are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.network import Network, load_network, make_network, save_network_yaml
from elsa_ray.network.check import check_network
from elsa_ray.network.geography import fibre_seconds

KEYS = {
    "n0": ("label", "node"),
    "n1": ("Latitude", "node"),
    "n2": ("Longitude", "node"),
    "n3": ("Internal", "node"),
    "e0": ("LinkLabel", "edge"),
    "e1": ("LinkSpeed", "edge"),
    "e2": ("LinkSpeedUnits", "edge"),
    "e3": ("LinkSpeedRaw", "edge"),
    "e4": ("LinkType", "edge"),
    "e5": ("id", "edge"),
    "g0": ("Network", "graph"),
    "g1": ("Source", "graph"),
}
KEY_OF = {name: key for key, (name, _) in KEYS.items()}


def data(**values: object) -> str:
    return "".join(f'<data key="{KEY_OF[name]}">{value}</data>' for name, value in values.items())


def zoo(links: list[tuple[int, int, dict[str, object]]], *, more: str = "") -> str:
    """Five towns on the equator and a meridian, two of which have one name and one of which is nowhere."""
    places = {0: ("Here", 0, 0), 1: ("East", 0, 1), 2: ("Twin", 0, 2), 3: ("Twin", 1, 0)}
    nodes = "".join(
        f'<node id="{number}">{data(label=label, Latitude=latitude, Longitude=longitude, Internal=1)}</node>'
        for number, (label, latitude, longitude) in places.items()
    )
    nodes += f'<node id="4">{data(label="Nowhere", Internal=0)}</node>'
    edges = "".join(
        f'<edge source="{source}" target="{target}">{data(**values)}</edge>' for source, target, values in links
    )
    keys = "".join(
        f'<key attr.name="{name}" attr.type="string" for="{of}" id="{key}"/>' for key, (name, of) in KEYS.items()
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns">{keys}'
        f'<graph edgedefault="undirected">{data(Network="Made Up", Source="http://example.org/map")}{nodes}{edges}{more}'
        "</graph></graphml>"
    )


CHAIN: list[tuple[int, int, dict[str, object]]] = [
    (0, 1, {"LinkSpeed": 10, "LinkSpeedUnits": "G", "LinkSpeedRaw": 10000000000.0, "LinkLabel": "10 Gbps"}),
    (1, 2, {"LinkType": "OC-192", "LinkLabel": "OC-192c"}),
    (0, 3, {"LinkLabel": "155 Mbps"}),
    (3, 4, {}),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "Madeup.graphml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, links: list[tuple[int, int, dict[str, object]]]) -> Network:
    return load_network(write(folder, zoo(links)), roles_required=False)


def test_a_small_zoo_by_hand(tmp_path: Path) -> None:
    network = read(tmp_path, CHAIN)
    assert network.node_names == ("Here", "East", "Twin 2", "Twin 3", "Nowhere")
    assert set(network.node_kinds) == {"router"}
    rates = network.link_bandwidth_bytes_per_second[::2]
    assert rates.tolist() == pytest.approx([10e9 / 8, 192 * 51.84e6 / 8, 155e6 / 8, 1e9 / 8], rel=1e-15)
    degree = fibre_seconds(6_371_008.8 * 3.141592653589793 / 180)
    assert network.link_latency_seconds[::2].tolist() == pytest.approx([degree, degree, degree, 0.005], rel=1e-9)
    assert network.coordinates["Twin 2"] == (0, 2) and "Nowhere" not in network.coordinates
    assert network.figures.startswith("Internet Topology Zoo: Made Up, http://example.org/map.")
    assert "1 of 4 links without a bandwidth: 1000 Mbit/s assumed." in network.figures
    assert "1 of 4 links without a latency: 5 ms assumed." in network.figures


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ({"LinkSpeedRaw": 45000000.0, "LinkLabel": "1 Gbps"}, 45e6),
        ({"LinkSpeed": "2.5", "LinkSpeedUnits": "G"}, 2.5e9),
        ({"LinkSpeed": "155", "LinkSpeedUnits": "M"}, 155e6),
        ({"LinkSpeed": "64", "LinkSpeedUnits": "K"}, 64e3),
        ({"LinkSpeed": "10/40", "LinkSpeedUnits": "G"}, 10e9),
        ({"LinkLabel": "10-20Gbps"}, 10e9),
        ({"LinkLabel": "2 x nothing, 34 Mb/s"}, 34e6),
        ({"LinkLabel": "GigE 1 Gbit/s"}, 1e9),
        ({"LinkLabel": "10GE"}, 10e9),
        ({"LinkLabel": "STM-16"}, 16 * 155.52e6),
        ({"LinkLabel": "OC3"}, 3 * 51.84e6),
        ({"LinkType": "OC-48"}, 48 * 51.84e6),
    ],
    ids=str,
)
def test_speeds_in_the_words_of_the_zoo(values: dict[str, object], bits: float, tmp_path: Path) -> None:
    network = read(tmp_path, [(0, 1, values)])
    assert network.link_bandwidth_bytes_per_second[0] == pytest.approx(bits / 8, rel=1e-15)


@pytest.mark.parametrize(
    "values", [{}, {"LinkLabel": "Lit Fibre"}, {"LinkSpeedRaw": "?"}, {"LinkLabel": "0 Mbps"}], ids=str
)
def test_what_tells_no_speed_is_a_gap(values: dict[str, object], tmp_path: Path) -> None:
    network = read(tmp_path, [(0, 1, values)])
    assert network.link_bandwidth_bytes_per_second[0] == 1e9 / 8 and "1 of 1 links" in network.figures


def test_parallel_links_are_one_and_loops_are_none(tmp_path: Path) -> None:
    gigabit = {"LinkSpeedRaw": 1e9}
    network = read(
        tmp_path, [(0, 1, gigabit), (1, 0, gigabit), (0, 0, gigabit), (0, 1, {}), (0, 1, {"LinkLabel": "10 Gbps"})]
    )
    assert network.link_bandwidth_bytes_per_second.tolist() == [12e9 / 8] * 2


def test_clients_and_edges_are_attached_by_config(tmp_path: Path) -> None:
    path = write(tmp_path, zoo(CHAIN))
    with pytest.raises(
        InputError, match=r"Madeup\.graphml: found no clients, .*allowed: attach: \{clients: N, edges: K\}"
    ):
        load_network(path, roles_required=True)
    attach = {"clients": 10, "edges": 2, "core_bandwidth": "2 Gbit/s", "core_latency": "7 ms", "access": "lte"}
    network = make_network(make_config({"topology": {"file": str(path), "attach": attach}}).topology, 0, Path())
    assert check_network(network) == [] and (len(network.clients), len(network.edges)) == (10, 2)
    assert "2000 Mbit/s assumed" in network.figures and "7 ms assumed" in network.figures
    save_network_yaml(network, tmp_path / "saved.yaml")
    assert load_network(tmp_path / "saved.yaml", roles_required=True).coordinates == network.coordinates


def test_only_the_largest_part_gets_clients(tmp_path: Path) -> None:
    path = write(tmp_path, zoo([(0, 1, {}), (1, 2, {}), (3, 4, {})]))
    attach = make_config({"topology": {"file": "x.graphml", "attach": {"clients": 4, "edges": 1}}}).topology.attach
    network = load_network(path, roles_required=True, attach=attach)
    assert [next(iter(network.graph[f"client00{number}"])) for number in range(4)] == ["Here", "East", "Twin 2", "Here"]
    assert check_network(network) == ["2 nodes, Twin 3 among them, are joined to each other only"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (zoo([(0, 9, {})]), "link Here-9: target: found 9; allowed: the id of a node"),
        (
            zoo([(0, 1, {})], more='<node id="7"><data key="n1">95</data><data key="n2">3</data></node>'),
            "node 7: latitude",
        ),
        (zoo([(0, 1, {})], more='<node id="0"/>'), "id twice"),
    ],
    ids=["unknown end", "latitude", "twice"],
)
def test_a_mistake_is_told_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=line) as error:
        load_network(write(tmp_path, text), roles_required=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ("latitude: 91, longitude: 0", "node a: latitude: found 91; allowed: degrees from -90 to 90"),
        ("latitude: 9, longitude: east", "node a: longitude: found east"),
        ("latitude: 9", "node a: found one coordinate"),
    ],
)
def test_wrong_coordinates_in_our_own_format(node: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(f"nodes: [{{id: a, kind: router, {node}}}]\nlinks: []\n")
    with pytest.raises(InputError, match=line):
        load_network(tmp_path / "net.yaml", roles_required=False)
