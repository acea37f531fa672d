"""The ``world`` section: how fast devices are, who is there, what breaks, when a round closes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from elsa_ray.config.availability import Always, AvailabilityConfig
from elsa_ray.config.capacities import FedScaleCapacities
from elsa_ray.config.faults import FaultsConfig
from elsa_ray.config.misbehaviour import MisbehaviourConfig
from elsa_ray.config.round_policy import RoundPolicy
from elsa_ray.config.section import PositiveInt, Section
from elsa_ray.config.shares import Shares, check_whole
from elsa_ray.config.units import FlopsPerSecond, NumBytes, Seconds, Watts


class DeviceSpec(Section):
    """A device of the user's own."""

    flops_per_second: FlopsPerSecond = Field(gt=0)
    """Effective rate in training, not the data sheet's peak."""
    active_watts: Watts = 0.0
    """Power above idle while it computes."""
    idle_watts: Watts = 0.0
    """Power while it is on and takes part."""
    radio_joules_per_byte: float = Field(default=0.0, ge=0)
    """Energy to send or receive one byte."""
    memory_bytes: Annotated[NumBytes, Field(gt=0)] | None = None
    """What training may use; none means no limit."""
    states_per_second: Annotated[float, Field(gt=0)] | None = None
    """Numbers of hidden states a block, a second, in all that is no matrix product; none: that takes no time."""
    block_seconds: Seconds = 0.0
    """Time that starting the operations of a block takes in a step, whatever their size."""


class DeviceFile(Section):
    """A device whose figures are in a file."""

    file: str


def is_device_file(name: str) -> bool:
    """Tell whether the name of a device is that of a file."""
    return name.endswith((".yaml", ".yml"))


class DeviceMix(Section):
    """Devices of several kinds: the share of the clients that has each profile."""

    mix: Shares
    """Share by the name of a profile or file; the shares sum to 1."""

    @field_validator("mix")
    @classmethod
    def _whole(cls, value: Shares) -> Shares:
        return check_whole(value, "shares of device profiles that sum to 1, such as {phone: 0.7, laptop: 0.3}")


# The tags are no keys of a section: pydantic puts them into the path of a mistake, where they must not pass for one.
def _device_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "device name"
    keys = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if keys is None:
        return None
    return next((f"device {key}" for key in ("mix", "file") if key in keys), "device figures")


ClientDevice = Annotated[
    Annotated[str, Tag("device name")]
    | Annotated[DeviceSpec, Tag("device figures")]
    | Annotated[DeviceFile, Tag("device file")]
    | Annotated[DeviceMix, Tag("device mix")],
    Discriminator(
        _device_kind,
        custom_error_type="device_kind",
        custom_error_message="a valid string or a mapping: NAME, {flops_per_second: RATE}, or {mix: {NAME: SHARE}}",
    ),
]


EdgeDevice = Annotated[
    Annotated[str, Tag("device name")]
    | Annotated[DeviceSpec, Tag("device figures")]
    | Annotated[DeviceFile, Tag("device file")],
    Discriminator(
        lambda value: "device figures" if (kind := _device_kind(value)) == "device mix" else kind,
        custom_error_type="device_kind",
        custom_error_message="a valid string or a mapping: NAME, {flops_per_second: RATE}, or {file: PATH}",
    ),
]


class ClientsConfig(Section):
    """The clients' devices."""

    device: ClientDevice = "phone"
    """A profile's name, a device's figures, a file, or shares of profiles."""
    capacities: FedScaleCapacities | None = None
    """Speeds and bandwidths from a file; they replace those of ``device`` and of the topology."""


class EdgesConfig(Section):
    """The edge servers."""

    device: EdgeDevice = "edge_server"
    """A profile's name, a device's figures, or a file."""
    slots: PositiveInt = 4
    """Requests an edge computes at once; each slot runs at the device's full rate."""
    capacity: PositiveInt | None = None
    """Most clients of one edge; none means no limit."""


class WorldConfig(Section):
    """The simulated field."""

    network: Literal["fluid", "tcp"] = "fluid"
    """How transfers share links: as equals after their latency, or as a flow-level model of TCP has it."""
    clients: ClientsConfig = ClientsConfig()
    edges: EdgesConfig = EdgesConfig()
    availability: AvailabilityConfig = Always()
    faults: FaultsConfig = FaultsConfig()
    round_policy: RoundPolicy = RoundPolicy()
    misbehaviour: list[MisbehaviourConfig] = []
    """Clients that are broken or hostile, and what they do."""
