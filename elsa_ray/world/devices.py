"""Devices: how fast they train, and what that costs in energy.

The figures of the built-in profiles are rounded assumptions for effective training rates, far below data-sheet peaks;
they are told in each run's summary. A device of one's own states its figures in the config.
"""

from __future__ import annotations

from dataclasses import dataclass

from elsa_ray.config.errors import unknown_name
from elsa_ray.config.world import DeviceSpec


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        name: of the profile.
        flops_per_second: effective rate of one slot.
        active_watts: power above idle while it computes.
        radio_joules_per_byte: energy to send or receive one byte.
    """

    name: str
    flops_per_second: float
    active_watts: float
    radio_joules_per_byte: float


PROFILES = {
    device.name: device
    for device in (
        Device("phone", 2e10, 3.0, 1e-7),
        Device("raspberry_pi", 5e9, 4.0, 5e-8),
        Device("laptop", 1e11, 20.0, 5e-8),
        Device("edge_server", 1e12, 150.0, 0.0),
        Device("edge_gpu", 2e13, 250.0, 0.0),
    )
}


def find_device(spec: str | DeviceSpec, where: str) -> Device:
    """Return the device of a config field.

    Raises:
        InputError: no profile has that name.
    """
    if isinstance(spec, DeviceSpec):
        return Device("custom", spec.flops_per_second, spec.active_watts, spec.radio_joules_per_byte)
    if spec not in PROFILES:
        raise unknown_name(where, spec, PROFILES)
    return PROFILES[spec]
