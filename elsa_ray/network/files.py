"""Topology files: load one of any format, save one as YAML, and find those that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import yaml

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.topology import Attachment, Figures
from elsa_ray.network.attach import Group, attached
from elsa_ray.network.formats import READERS
from elsa_ray.network.gaps import with_fibre_latencies, without_gaps
from elsa_ray.network.graph import Network, assemble, build_network
from elsa_ray.network.text_files import read_text


def load_network(
    path: str | Path, *, roles_required: bool, attach: Sequence[Attachment] = (), seed: int = 0
) -> Network:
    """Load a topology: YAML as in ``topologies/``, GraphML, or networkx node-link JSON, by the ending of its name.

    Bandwidths are in bytes per second and latencies in seconds, or texts with a unit such as ``20 Mbit/s``. A link
    without a latency, between two nodes with coordinates, has that of light in fibre on the great circle.

    Args:
        path: the file.
        roles_required: each node must have a kind, with at least one client, one edge, and exactly one cloud.
        attach: who is attached to the routers, in place of the file's own clients; nobody leaves it to the file.
        seed: of what is attached.

    Raises:
        InputError: the file is missing, unreadable or malformed, or a node or link is wrong; it names which.
    """
    path, where = Path(path), str(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(where, f"a name ending in {path.suffix!r}", "a name ending in " + ", ".join(READERS))
    document = reader(read_text(path, where), where)
    attach = attach or document.attach
    nodes, links, figures = document.nodes, document.links, [document.figures.strip()]
    if any("latitude" in node for node in nodes):
        links = with_fibre_latencies(nodes, links, where)
    if document.may_have_gaps:
        if roles_required and not attach:
            raise InputError(
                where, "no clients, edge servers and cloud", "attach: {clients: N, edges: K} beside the file"
            )
        links, assumed = without_gaps(links, attach[0] if attach else Figures())
        figures += assumed
    if attach:
        # Checked first as it stands, so that a mistake is told in the file's own words.
        bare = assemble(nodes, links, where, directed=document.directed, roles_required=False, strict=document.strict)
        place = "topology.attach" if attach is not document.attach else f"{where}: attach"
        groups = [Group(own.clients, own.edges, own, own.sites, place) for own in attach]
        cloud_at = next((own.cloud_at for own in attach if own.cloud_at is not None), None)
        nodes, links = attached(
            nodes, [*bare.stated_links()], groups, seed, cloud_at=cloud_at, directed=document.directed
        )
        figures.append(_told(attach, seed))
    return assemble(
        nodes,
        links,
        where,
        directed=document.directed,
        figures=_sentences(figures),
        roles_required=roles_required,
        strict=document.strict,
    )


def _told(attach: Sequence[Attachment], seed: int) -> str:
    """Say in one sentence what was attached."""
    edges = sum(own.edges or 0 for own in attach)
    groups = [f"{own.clients} clients{_by_access(own)}" for own in attach]
    groups += [f"{edges} edge servers"] if edges else []
    return f"Attached: {', '.join(groups)}; seed {seed}."


def _by_access(own: Attachment) -> str:
    if own.access is None:
        return ""
    return f" by {own.access if isinstance(own.access, str) else ' and '.join(sorted(own.access.mix))}"


def _sentences(texts: Sequence[str]) -> str:
    """Join texts as sentences; a single one stays as it is."""
    told = [text for text in texts if text]
    return " ".join(text if text.endswith(".") else f"{text}." for text in told) if len(told) > 1 else "".join(told)


def find_network(name: str, *, roles_required: bool, attach: Sequence[Attachment] = (), seed: int = 0) -> Network:
    """Return the packaged network of that name, or the one in the file of that name. See ``load_network``.

    Raises:
        InputError: there is neither, or the file is wrong.
    """
    named = named_topologies()
    if name not in named and not Path(name).suffix:
        raise unknown_name("topology", name, [*named, "a file"])
    path = named.get(name, Path(name))
    return load_network(path, roles_required=roles_required, attach=attach, seed=seed)


def save_network_yaml(network: Network | nx.Graph | nx.DiGraph, path: str | Path) -> None:
    """Write a topology in our own format; loading it gives the same network, bit for bit.

    Raises:
        InputError: the graph is no topology, or the file cannot be written.
    """
    if not isinstance(network, Network):
        network = build_network(network, "graph", roles_required=False)
    content: dict[str, object] = {"source": network.figures}
    if network.directed:
        content["directed"] = True
    content["nodes"] = [
        {"id": name, "kind": kind, **_place(network, name)}
        for name, kind in zip(network.node_names, network.node_kinds, strict=True)
    ]
    content["links"] = list(network.stated_links())
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(str(path), f"a file that cannot be written ({error.strerror})", "a writable path") from error


def _place(network: Network, name: str) -> dict[str, float]:
    place = network.coordinates.get(name)
    return {} if place is None else {"latitude": place[0], "longitude": place[1]}


def named_topologies() -> dict[str, Path]:
    """Return the networks that come with the package, by name, sorted."""
    package = Path(__file__).parent.parent
    # In a wheel the folder lies in the package; in a source tree, beside it.
    folders = (package / "topologies", package.parent / "topologies")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in READERS}
