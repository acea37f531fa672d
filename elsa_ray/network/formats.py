"""Reads the three topology formats into nodes and links as stated: YAML, networkx node-link JSON, GraphML."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import yaml

from elsa_ray.config import load
from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.topology import Attachment, Attachments
from elsa_ray.config.validate import validate_file
from elsa_ray.network.graph import SOURCE_NODE
from elsa_ray.network.zoo import from_zoo, is_zoo

_YAML_KEYS = ("source", "directed", "nodes", "links", "attach")


@dataclass(frozen=True)
class Document:
    """What a topology file states, in its order and orientation, nothing checked yet but its form."""

    nodes: list[dict[str, Any]]
    links: list[dict[str, Any]]
    directed: bool = False
    figures: str = ""
    strict: bool = field(default=False)
    """Unknown attributes are errors; only in our own format, since others carry the data of other tools."""
    attach: Sequence[Attachment] = ()
    """Who is attached to the routers unless the user says otherwise."""
    may_have_gaps: bool = False
    """Whether bandwidths and latencies may be missing."""


class _TextLoader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """YAML with every scalar a text: an id such as 007 or 12:30 stays as written, and quantities read themselves."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice} twice, line {node.start_mark.line + 1}")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_yaml(text: str, where: str) -> Document:
    """Read our own format: a mapping of ``source``, ``nodes``, ``links``, and optionally ``directed`` and ``attach``.

    Raises:
        InputError: it is no YAML, no such mapping, or has other keys.
    """
    try:
        content = yaml.load(text, Loader=_TextLoader)  # texts, lists and mappings only
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise InputError(where, f"no readable YAML ({error})", "a YAML mapping of nodes and links") from error
    if not isinstance(content, dict):
        raise InputError(where, "no mapping", "a mapping with the keys " + ", ".join(_YAML_KEYS))
    for key in content:
        if key not in _YAML_KEYS:
            raise unknown_name(where, str(key), _YAML_KEYS)
    directed = str(content.get("directed", "false"))
    if directed.lower() not in ("true", "false"):
        raise InputError(f"{where}: directed", directed, "true, false")
    attach: Sequence[Attachment] = ()
    if "attach" in content:
        # Read again, because a number is a number there.
        attach = validate_file(Attachments, {"attach": load.read_yaml(text, where)["attach"]}, where).attach
    return Document(
        _mappings(content, "nodes", where),
        _mappings(content, "links", where),
        directed=directed.lower() == "true",
        figures=str(content.get("source", "")),
        strict=True,
        attach=attach,
    )


def read_node_link_json(text: str, where: str) -> Document:
    """Read networkx node-link JSON; the links are under ``edges`` or ``links``.

    Raises:
        InputError: it is no JSON, or not in that form.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"no readable JSON ({error})", "networkx node-link JSON") from error
    if not isinstance(content, dict):
        raise InputError(where, "no object", "an object with the keys nodes, and edges or links")
    if "edges" in content and "links" in content:
        raise InputError(where, "both edges and links", "one of the two")
    directed = content.get("directed", False)
    if not isinstance(directed, bool):
        raise InputError(f"{where}: directed", directed, "true, false")
    links = _mappings(content, "edges" if "edges" in content else "links", where)
    about = content.get("graph")
    figures = str(about.get("source", "")) if isinstance(about, dict) else ""
    return Document(_mappings(content, "nodes", where), [_oriented(link) for link in links], directed, figures)


def read_graphml(text: str, where: str) -> Document:
    """Read GraphML: the first graph of the file, flat, all of whose links are of one direction kind.

    Raises:
        InputError: it is no XML, has no graph, nested graphs or hyperedges, or mixes directed and undirected links.
    """
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(where, f"no readable XML ({error})", "GraphML") from error
    graph = root.find("{*}graph")
    if graph is None:
        raise InputError(where, "no graph element", "GraphML with one graph")
    for tag, meaning in (("graph", "a graph within a graph"), ("hyperedge", "a hyperedge")):
        if graph.find(f".//{{*}}{tag}") is not None:
            raise InputError(where, meaning, "nodes, and links between two nodes")
    directed = graph.get("edgedefault", "undirected") == "directed"
    keys = {key.get("id"): key for key in root.iterfind("{*}key")}
    nodes = [{**_data(node, "node", keys), "id": node.get("id")} for node in graph.iterfind("{*}node")]
    links = []
    for element in graph.iterfind("{*}edge"):
        ends = {"source": element.get("source"), "target": element.get("target")}
        if element.get("directed", str(directed).lower()) != str(directed).lower():
            place = f"{where}: link {ends['source']}-{ends['target']}: directed"
            raise InputError(place, element.get("directed"), "what edgedefault says: all links directed, or none")
        links.append(_oriented({**_data(element, "edge", keys), **ends}))
    about = _data(graph, "graph", keys)
    if is_zoo([key.get("attr.name", "") for key in keys.values()]):
        routers, merged, figures = from_zoo(nodes, links, about, directed=directed)
        return Document(routers, merged, directed, figures, may_have_gaps=True)
    return Document(nodes, links, directed, about.get("source", ""))


def _data(element: ElementTree.Element, domain: str, keys: dict[str | None, ElementTree.Element]) -> dict[str, str]:
    """Return the GraphML data of an element by attribute name, defaults included; all are texts."""
    values = {}
    for key in keys.values():
        default = key.find("{*}default")
        if default is not None and key.get("for") in (domain, "all"):
            values[key.get("attr.name") or str(key.get("id"))] = default.text or ""
    for data in element.iterfind("{*}data"):
        declared = keys.get(data.get("key"))
        name = str(data.get("key")) if declared is None else declared.get("attr.name") or str(declared.get("id"))
        values[name] = (data.text or "").strip()
    return values


def _oriented(link: dict[str, Any]) -> dict[str, Any]:
    """Turn a link round whose ``source_node`` says that a writer has swapped its ends."""
    source_node = link.pop(SOURCE_NODE, None)
    if source_node is not None and str(source_node) == str(link.get("target")):
        link["source"], link["target"] = link["target"], link["source"]
    return link


def _mappings(content: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        shown = "nothing" if found in (None, "") else "something else"
        raise InputError(f"{where}: {key}", shown, f"a list of mappings, one for each of the {key}")
    return found


READERS: dict[str, Callable[[str, str], Document]] = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".json": read_node_link_json,
    ".graphml": read_graphml,
}
"""The reader for each ending of a topology file's name."""
