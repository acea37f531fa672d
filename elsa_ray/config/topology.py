"""The ``topology`` section: a generator's parameters, a file, or a packaged network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from elsa_ray.config.section import Section
from elsa_ray.config.units import Bandwidth, Seconds


class HierarchicalTopology(Section):
    """Clients at access routers, one router and edge server a cell, a metro core between the cells, and a cloud."""

    kind: Literal["hierarchical"] = "hierarchical"
    clients: int = Field(default=24, ge=1)
    edges: int = Field(default=3, ge=1)
    access_up: Bandwidth = 10e6 / 8
    """Client to router; the median over clients."""
    access_down: Bandwidth = 40e6 / 8
    """Router to client; the median over clients."""
    access_latency: Seconds = 0.015
    """One way, client to router; the median over clients."""
    spread: float = Field(default=0.5, ge=0)
    """Standard deviation of the logarithm of the clients' bandwidths and latencies; 0 makes all equal."""
    edge_bandwidth: Bandwidth = 1e9 / 8
    """Router to edge server."""
    edge_latency: Seconds = 0.001
    core_bandwidth: Bandwidth = 1e9 / 8
    """Router to metro core, and metro core to cloud."""
    core_latency: Seconds = 0.005
    """Router to metro core."""
    cloud_latency: Seconds = 0.02
    """Metro core to cloud."""


class FileTopology(Section):
    """A topology file: YAML as in ``topologies/``, GraphML, or networkx node-link JSON."""

    file: str


class NamedTopology(Section):
    """A network that comes with the package; ``elsa-ray topology list`` names them."""

    name: str


# The tags are no keys of a section: pydantic puts them into the path of a mistake, where they must not pass for one.
def _topology_kind(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if keys is None:
        return None
    return next((f"{key} topology" for key in ("file", "name") if key in keys), "kind topology")


TopologyConfig = Annotated[
    Annotated[HierarchicalTopology, Tag("kind topology")]
    | Annotated[FileTopology, Tag("file topology")]
    | Annotated[NamedTopology, Tag("name topology")],
    Discriminator(
        _topology_kind,
        custom_error_type="topology_kind",
        custom_error_message="{kind: hierarchical, clients: N, edges: K}, {file: PATH}, or {name: NAME}",
    ),
]
