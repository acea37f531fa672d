"""Devices: how fast they train, how much memory training may use there, and what it costs in energy.

The figures of the built-in profiles are rounded assumptions: effective training rates, far below data-sheet peaks, and
the part of the memory that system and other programs leave; they are told in each run's summary. A device of one's own
states its figures in the config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from elsa_ray.config.errors import unknown_name
from elsa_ray.config.world import DeviceMix, DeviceSpec
from elsa_ray.network.shares import dealt
from elsa_ray.tasks.seeds import numpy_generator


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        name: of the profile.
        flops_per_second: effective rate of one slot.
        active_watts: power above idle while it computes.
        radio_joules_per_byte: energy to send or receive one byte.
        memory_bytes: what training may use; infinite where there is no limit.
    """

    name: str
    flops_per_second: float
    active_watts: float
    radio_joules_per_byte: float
    memory_bytes: float = math.inf


PROFILES = {
    device.name: device
    for device in (
        Device("phone", 2e10, 3.0, 1e-7, 2e9),
        Device("raspberry_pi", 5e9, 4.0, 5e-8, 3e9),
        Device("laptop", 1e11, 20.0, 5e-8, 8e9),
        Device("edge_server", 1e12, 150.0, 0.0, 6e10),
        Device("edge_gpu", 2e13, 250.0, 0.0, 2e10),
    )
}


def find_device(spec: str | DeviceSpec, where: str) -> Device:
    """Return the device of a config field.

    Raises:
        InputError: no profile has that name.
    """
    if isinstance(spec, DeviceSpec):
        memory_bytes = math.inf if spec.memory_bytes is None else spec.memory_bytes
        return Device(
            "custom", spec.flops_per_second, spec.active_watts, spec.radio_joules_per_byte, memory_bytes=memory_bytes
        )
    if spec not in PROFILES:
        raise unknown_name(where, spec, PROFILES)
    return PROFILES[spec]


def devices_of_clients(
    spec: str | DeviceSpec | DeviceMix, num_clients: int, seed: int, where: str
) -> tuple[Device, ...]:
    """Return each client's device.

    A mix is dealt exactly: every profile gets the whole part of its share, the clients left over go to the largest
    fractions (of equal ones to the first in alphabetical order), and then all are shuffled. The order in which the
    config lists the profiles does not matter.

    Args:
        spec: one device for all, or a mix.
        num_clients: N.
        seed: the run's seed.
        where: the config field, for the error.

    Raises:
        InputError: no profile has a name that is asked for.
    """
    if not isinstance(spec, DeviceMix):
        return (find_device(spec, where),) * num_clients
    names = sorted(spec.mix)
    devices = [find_device(name, f"{where}.mix.{name}") for name in names]
    counts = dealt([spec.mix[name] for name in names], num_clients)
    kind_N = np.repeat(np.arange(len(names)), counts)
    return tuple(devices[kind] for kind in numpy_generator(seed, "devices").permutation(kind_N).tolist())
