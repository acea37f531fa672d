"""Fills in what a topology file leaves out: latencies by coordinates, and stated defaults for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elsa_ray.config.topology import Figures
from elsa_ray.network.geography import distance_metres, fibre_seconds
from elsa_ray.network.links import read_coordinates

_LATENCY, _BANDWIDTH = "latency_seconds", "bandwidth_bytes_per_second"


def with_fibre_latencies(
    nodes: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]], where: str
) -> list[dict[str, Any]]:
    """Return the links, with a latency where they have none and both ends say where they are.

    Raises:
        InputError: a node's coordinates are wrong.
    """
    places = {str(node.get("id")): read_coordinates(node, f"{where}: node {node.get('id')}") for node in nodes}
    filled = []
    for link in links:
        ends = [places.get(str(link.get(end))) for end in ("source", "target")]
        if link.get(_LATENCY) is None and ends[0] is not None and ends[1] is not None:
            link = {**link, _LATENCY: fibre_seconds(distance_metres(ends[0], ends[1]))}
        filled.append(dict(link))
    return filled


def without_gaps(links: Sequence[Mapping[str, Any]], figures: Figures) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the links with the figures of the core where they have none, and a sentence on each such figure."""
    defaults = {_BANDWIDTH: figures.core_bandwidth, _LATENCY: figures.core_latency}
    missing = {key: sum(link.get(key) is None for link in links) for key in defaults}
    told = [
        f"{count} of {len(links)} links without a {key.split('_')[0]}: {text} assumed."
        for (key, count), text in zip(
            missing.items(),
            (f"{8 * figures.core_bandwidth / 1e6:g} Mbit/s", f"{1000 * figures.core_latency:g} ms"),
            strict=True,
        )
        if count
    ]
    return [{**defaults, **link} for link in links], told
