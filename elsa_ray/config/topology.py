"""The ``topology`` section: a generator's parameters, a file, or a packaged network, and who is attached to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from elsa_ray.config.errors import unknown_name
from elsa_ray.config.section import Section
from elsa_ray.config.shares import Shares, check_whole
from elsa_ray.config.units import Bandwidth, Seconds

MOST_NODES = 10_000_000
"""Of a kind: more would fill the memory of most machines before the first line of a run is written."""


class AccessMix(Section):
    """Access of several kinds: the share of the clients that has each profile."""

    mix: Shares
    """Share by profile name; the shares sum to 1."""

    @field_validator("mix")
    @classmethod
    def _whole(cls, value: Shares) -> Shares:
        return check_whole(value, "shares of access profiles that sum to 1, such as {lte: 0.5, wifi: 0.5}")


# The tags are no keys of a section: pydantic puts them into the path of a mistake, where they must not pass for one.
def _access_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "access name"
    return "access mix" if isinstance(value, dict | AccessMix) else None


AccessChoice = Annotated[
    Annotated[str, Tag("access name")] | Annotated[AccessMix, Tag("access mix")],
    Discriminator(
        _access_kind,
        custom_error_type="access_kind",
        custom_error_message="a profile's name, or {mix: {NAME: SHARE}}",
    ),
]


class Figures(Section):
    """The links of clients, edge servers and the cloud, and of routers whose own figures are not stated."""

    access: AccessChoice | None = None
    """A profile's name, or shares of profiles, in place of the three ``access_…`` figures."""
    access_up: Bandwidth = 10e6 / 8
    """Client to router; the median over clients."""
    access_down: Bandwidth = 40e6 / 8
    """Router to client; the median over clients."""
    access_latency: Seconds = 0.015
    """One way, client to router; the median over clients."""
    spread: float = Field(default=0.5, ge=0)
    """Standard deviation of the logarithm of the clients' bandwidths and latencies; 0 makes all equal."""
    cell_clients: int | None = Field(default=None, ge=1)
    """Most clients of one cell or access point, with ``access``; none: those of one router and profile are one cell."""
    edge_bandwidth: Bandwidth = 1e9 / 8
    """Router to edge server."""
    edge_latency: Seconds = 0.001
    core_bandwidth: Bandwidth = 1e9 / 8
    """Between routers, and to the cloud."""
    core_latency: Seconds = 0.005
    """Between routers."""
    cloud_latency: Seconds = 0.02
    """Router to cloud."""

    @model_validator(mode="after")
    def _one_access(self) -> Self:
        """Refuse a profile beside figures of one's own, of which one would be ignored."""
        names = ("access_up", "access_down", "access_latency")
        stated = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.access is not None and stated:
            raise ValueError(f"access, or {stated[0]} without access")
        return self


class Attachment(Figures):
    """Who is attached to the routers of a file or a packaged network."""

    clients: int = Field(ge=1, le=MOST_NODES)
    edges: int | None = Field(default=None, ge=1, le=MOST_NODES)
    """Edge servers, far from each other; none keeps those of the network."""
    sites: list[str] | None = Field(default=None, min_length=1)
    """Routers that get clients, in turn, and edge servers; none: all of them."""
    cloud_at: str | None = None
    """Router of the cloud, for a network without one; none: the router with most links."""


class GeneratedTopology(Figures):
    """What all generators have."""

    kind: str
    clients: int = Field(default=24, ge=1, le=MOST_NODES)
    edges: int = Field(default=3, ge=1, le=MOST_NODES)


class HierarchicalTopology(GeneratedTopology):
    """Clients at access routers, one router and edge server a cell, a metro core between the cells, and a cloud."""

    kind: Literal["hierarchical"] = "hierarchical"


class StarTopology(GeneratedTopology):
    """One router: clients, edge servers and the cloud around it."""

    kind: Literal["star"]


class RoutedTopology(GeneratedTopology):
    """Routers in some form; clients are dealt to them in turn, edge servers stand far from each other."""

    routers: int | None = Field(default=None, ge=1, le=MOST_NODES)
    """None: one an edge server."""


class RingTopology(RoutedTopology):
    """Routers in a ring."""

    kind: Literal["ring"]


class GridTopology(RoutedTopology):
    """Routers in a grid that is as square as it can be; its last row may be shorter."""

    kind: Literal["grid"]


class BarabasiAlbertTopology(RoutedTopology):
    """Routers that have joined one by one, each with links to those that had many (Barabási and Albert 1999)."""

    kind: Literal["barabasi_albert"]
    links_per_router: int = Field(default=2, ge=1)
    """Links of a router that joins; there must be more routers."""


class WaxmanTopology(RoutedTopology):
    """Routers at random places in a square, near ones linked more likely (Waxman 1988).

    Two routers at the distance d are linked with the probability beta exp(-d / (alpha L)), L the longest distance.
    Separate parts are then joined by the shortest link between them. Light in glass makes a link's latency.
    """

    kind: Literal["waxman"]
    alpha: float = Field(default=0.4, gt=0)
    beta: float = Field(default=0.6, gt=0, le=1)
    side_kilometres: float = Field(default=200.0, gt=0)
    """Of the square."""


class Attachments(Section):
    """Who is attached: one group or a list of them."""

    attach: list[Attachment] = []
    """Clients, and edge servers if their number is given, in the place of the network's own."""

    @field_validator("attach", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict | Attachment) else value


class FileTopology(Attachments):
    """A topology file: YAML as in ``topologies/``, GraphML, or networkx node-link JSON."""

    file: str


class NamedTopology(Attachments):
    """A network that comes with the package; ``elsa-ray topology list`` names them."""

    name: str


GENERATORS: dict[str, type[GeneratedTopology]] = {
    "hierarchical": HierarchicalTopology,
    "star": StarTopology,
    "ring": RingTopology,
    "grid": GridTopology,
    "barabasi_albert": BarabasiAlbertTopology,
    "waxman": WaxmanTopology,
}


# The tags are no keys of a section: pydantic puts them into the path of a mistake, where they must not pass for one.
def _topology_kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        value = getattr(value, "__dict__", None)
        if value is None:
            return None
    for key in ("file", "name"):
        if key in value:
            return f"{key} topology"
    kind = value.get("kind", "hierarchical")
    if kind not in GENERATORS:
        raise unknown_name("topology.kind", str(kind), GENERATORS)
    return f"{kind} topology"


TopologyConfig = Annotated[
    Annotated[HierarchicalTopology, Tag("hierarchical topology")]
    | Annotated[StarTopology, Tag("star topology")]
    | Annotated[RingTopology, Tag("ring topology")]
    | Annotated[GridTopology, Tag("grid topology")]
    | Annotated[BarabasiAlbertTopology, Tag("barabasi_albert topology")]
    | Annotated[WaxmanTopology, Tag("waxman topology")]
    | Annotated[FileTopology, Tag("file topology")]
    | Annotated[NamedTopology, Tag("name topology")],
    Discriminator(
        _topology_kind,
        custom_error_type="topology_kind",
        custom_error_message="{kind: hierarchical, clients: N, edges: K}, {file: PATH}, or {name: NAME}",
    ),
]
