"""GraphML as the Internet Topology Zoo writes it: link speeds in its words, coordinates in place of latencies.

Nodes are routers. A node is called by its label where that is unique. Links from a node to itself are left out,
parallel links are one link with the sum of their bandwidths, and the latency of a link is that of light in fibre on the
great circle between its ends. The speed of a link is, in this order, LinkSpeedRaw (bits per second), LinkSpeed with
LinkSpeedUnits, or what LinkLabel, LinkNote or LinkType say, such as "2.5 Gbps" or "OC-192c"; of a range its lower end.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_SPEEDS = ("LinkSpeedRaw", "LinkSpeed", "LinkSpeedUnits", "LinkLabel", "LinkType", "LinkNote")
_PLACES = ("Latitude", "Longitude")
_DIALECT = {"LinkSpeedRaw", "LinkSpeed", "LinkLabel", *_PLACES}
_OWN = "bandwidth_bytes_per_second"
_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "g": 1e9, "G": 1e9, "t": 1e12, "T": 1e12}
_SPEED = re.compile(r"(\d+(?:\.\d+)?)(?:\s*[-–/]\s*\d+(?:\.\d+)?)?\s*([kKmMgGtT])(?:i?b|B|E|bit|$|\s|/)", re.ASCII)
_OPTICAL = re.compile(r"\b(OC|STM)\s*-?\s*(\d+)", re.IGNORECASE)
_OPTICAL_BITS = {"OC": 51.84e6, "STM": 155.52e6}
"""The rates of the synchronous hierarchies SONET and SDH (ITU-T G.707) are multiples of these."""


def is_zoo(attributes: Sequence[str]) -> bool:
    """Tell by the names of the attributes that a file declares whether it is in this dialect."""
    return _OWN not in attributes and bool(_DIALECT & set(attributes))


def from_zoo(
    nodes: Sequence[Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    about: Mapping[str, str],
    *,
    directed: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """Return nodes and links in our own attributes, and where they are from; figures that are not known are missing.

    Args:
        nodes, links: with the attributes of the file, as texts.
        about: attributes of the graph.
        directed: links are parallel only if they go the same way.
    """
    labels = Counter(str(node.get("label", "")).strip() for node in nodes)
    name_of = {}
    for node in nodes:
        label = str(node.get("label", "")).strip()
        unique = label and labels[label] == 1
        name_of[str(node["id"])] = label if unique else f"{label} {node['id']}".strip()
    if len(set(name_of.values())) < len(name_of):
        name_of = {node_id: node_id for node_id in name_of}
    routers = []
    for node in nodes:
        router: dict[str, Any] = {"id": name_of[str(node["id"])], "kind": "router"}
        place = [_number(node.get(key)) for key in _PLACES]
        if None not in place:
            router["latitude"], router["longitude"] = place
        routers.append(router)
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for link in links:
        # An end that is no node stays as it is, for the error that names it.
        ends = [name_of.get(str(link[end]), str(link[end])) for end in ("source", "target")]
        if ends[0] == ends[1]:
            continue
        key = (ends[0], ends[1]) if directed else (min(ends), max(ends))
        bits = _bits_per_second(link)
        own = merged.setdefault(key, {"source": ends[0], "target": ends[1]})
        if bits is not None:
            own[_OWN] = own.get(_OWN, 0.0) + bits / 8
    told = [about.get(key, "").strip() for key in ("Network", "NetworkDate", "Source")]
    figures = "Internet Topology Zoo: " + ", ".join(text for text in told if text)
    return routers, list(merged.values()), figures


def _bits_per_second(link: Mapping[str, Any]) -> float | None:
    raw = _number(link.get("LinkSpeedRaw"))
    if raw is not None and raw > 0:
        return raw
    units = str(link.get("LinkSpeedUnits", "")).strip()
    if link.get("LinkSpeed") and units[:1] in _PREFIXES and units:
        first = re.search(r"\d+(?:\.\d+)?", str(link["LinkSpeed"]))
        if first is not None and float(first[0]) > 0:
            return float(first[0]) * _PREFIXES[units[0]]
    for key in ("LinkLabel", "LinkNote", "LinkType"):
        bits = _spoken(str(link.get(key, "")))
        if bits is not None:
            return bits
    return None


def _spoken(text: str) -> float | None:
    """Return the bits per second that a label tells."""
    optical = _OPTICAL.search(text)
    if optical is not None and int(optical[2]) > 0:
        return _OPTICAL_BITS[optical[1].upper()] * int(optical[2])
    speed = _SPEED.search(text)
    if speed is not None and float(speed[1]) > 0:
        return float(speed[1]) * _PREFIXES[speed[2]]
    return None


def _number(text: object) -> float | None:
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
