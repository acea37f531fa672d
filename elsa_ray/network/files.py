"""Topology files: load one of any format, save one as YAML, and find those that come with the package."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import yaml

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.network.formats import READERS
from elsa_ray.network.graph import Network, assemble, build_network
from elsa_ray.network.text_files import read_text


def load_network(path: str | Path, *, roles_required: bool) -> Network:
    """Load a topology: YAML as in ``topologies/``, GraphML, or networkx node-link JSON, by the ending of its name.

    Bandwidths are in bytes per second and latencies in seconds, or texts with a unit such as ``20 Mbit/s``.

    Args:
        path: the file.
        roles_required: each node must have a kind, with at least one client, one edge, and exactly one cloud.

    Raises:
        InputError: the file is missing, unreadable or malformed, or a node or link is wrong; it names which.
    """
    path, where = Path(path), str(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(where, f"a name ending in {path.suffix!r}", "a name ending in " + ", ".join(READERS))
    document = reader(read_text(path, where), where)
    return assemble(
        document.nodes,
        document.links,
        where,
        directed=document.directed,
        figures=document.figures,
        roles_required=roles_required,
        strict=document.strict,
    )


def find_network(name: str, *, roles_required: bool) -> Network:
    """Return the packaged network of that name, or the one in the file of that name.

    Raises:
        InputError: there is neither, or the file is wrong.
    """
    named = named_topologies()
    if name not in named and not Path(name).suffix:
        raise unknown_name("topology", name, [*named, "a file"])
    return load_network(named.get(name, Path(name)), roles_required=roles_required)


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
        {"id": name, "kind": kind} for name, kind in zip(network.node_names, network.node_kinds, strict=True)
    ]
    content["links"] = list(network.stated_links())
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(str(path), f"a file that cannot be written ({error.strerror})", "a writable path") from error


def named_topologies() -> dict[str, Path]:
    """Return the networks that come with the package, by name, sorted."""
    package = Path(__file__).parent.parent
    # In a wheel the folder lies in the package; in a source tree, beside it.
    folders = (package / "topologies", package.parent / "topologies")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in READERS}
