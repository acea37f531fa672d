"""The ``world`` section: how fast devices are, how many slots an edge has, when a round closes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elsa_ray.config.section import Section
from elsa_ray.config.units import FlopsPerSecond, Seconds, Watts

PositiveInt = Annotated[int, Field(gt=0)]


class DeviceSpec(Section):
    """A device of the user's own."""

    flops_per_second: FlopsPerSecond = Field(gt=0)
    """Effective rate in training, not the data sheet's peak."""
    active_watts: Watts = 0.0
    """Power above idle while it computes."""
    radio_joules_per_byte: float = Field(default=0.0, ge=0)
    """Energy to send or receive one byte."""


class ClientsConfig(Section):
    """The clients' devices."""

    device: str | DeviceSpec = "phone"
    """A profile's name, or a device's figures."""


class EdgesConfig(Section):
    """The edge servers."""

    device: str | DeviceSpec = "edge_server"
    slots: PositiveInt = 4
    """Requests an edge computes at once; each slot runs at the device's full rate."""
    capacity: PositiveInt | None = None
    """Most clients of one edge; none means no limit."""


class RoundPolicy(Section):
    """When an edge (in fedavg: the cloud) stops waiting for its members."""

    deadline_seconds: Seconds | None = None
    """Counted from the opening of the edge round; none waits for all."""
    late: Literal["drop", "keep"] = "drop"
    """``drop`` abandons the work that is late; ``keep`` lets it finish and counts it in the round where it arrives."""


class WorldConfig(Section):
    """The simulated field."""

    clients: ClientsConfig = ClientsConfig()
    edges: EdgesConfig = EdgesConfig()
    round_policy: RoundPolicy = RoundPolicy()
