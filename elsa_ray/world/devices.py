"""Devices: how fast they train, how much memory training may use there, and what it costs in energy.

The profiles that come with the package are in ``devices.yaml``, each figure with its source. A device of one's own
states its figures in the config, or in a file of the same form, such as ``elsa-ray device measure`` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.load import read_yaml
from elsa_ray.config.validate import validate_file
from elsa_ray.config.world import DeviceFile, DeviceMix, DeviceSpec, is_device_file
from elsa_ray.network.shares import dealt
from elsa_ray.network.text_files import read_text
from elsa_ray.tasks.seeds import numpy_generator


@dataclass(frozen=True)
class StepSize:
    """The size of a training step of a whole model.

    Attributes:
        flops: of its matrix products.
        states: numbers of its hidden states: tokens times width times blocks.
        blocks: of the model.
    """

    flops: float
    states: float
    blocks: int


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        name: of the profile.
        flops_per_second: effective rate of one slot, on matrices so large that nothing else takes time.
        active_watts: power above idle while it computes.
        radio_joules_per_byte: energy to send or receive one byte.
        memory_bytes: what training may use; infinite where there is no limit.
        idle_watts: power while it is on.
        states_per_second: numbers of hidden states a block, a second, in all that is no matrix product; infinite where
            that takes no time.
        block_seconds: time that starting the operations of a block takes in a step, whatever their size.
    """

    name: str
    flops_per_second: float
    active_watts: float
    radio_joules_per_byte: float
    memory_bytes: float = math.inf
    idle_watts: float = 0.0
    states_per_second: float = math.inf
    block_seconds: float = 0.0

    def step_seconds(self, step: StepSize) -> float:
        """Return how long the device makes a step of the whole model: products, everything else, and starting it.

        Embedding and head together start as one block does.
        """
        starts = self.block_seconds * (step.blocks + 1)
        return step.flops / self.flops_per_second + step.states / self.states_per_second + starts

    def training(self, step: StepSize) -> Device:
        """Return the device at the rate that it has in steps of such a size, the same for all computations."""
        if math.isinf(self.states_per_second) and self.block_seconds == 0:
            return self
        rate = step.flops / self.step_seconds(step)
        return replace(self, flops_per_second=rate, states_per_second=math.inf, block_seconds=0.0)


@dataclass(frozen=True)
class Profile:
    """A device as a file tells of it.

    Attributes:
        device: the figures.
        about: what it is.
        sources: of each figure, by its name; a figure that is not stated has none.
    """

    device: Device
    about: str
    sources: Mapping[str, str]


@cache
def profiles() -> dict[str, Profile]:
    """Return the profiles that come with the package, by name."""
    text = resources.files("elsa_ray.world").joinpath("devices.yaml").read_text(encoding="utf-8")
    return {name: _profile(name, raw, f"devices.yaml: {name}") for name, raw in read_yaml(text, "devices.yaml").items()}


def read_profile(path: str | Path) -> Profile:
    """Read a device's file: its figures, each a value or ``{value: …, source: …}``, with ``name`` and ``about``.

    Raises:
        InputError: the file is missing or unreadable, or a figure is wrong.
    """
    where = str(path)
    raw = read_yaml(read_text(Path(path), where), where)
    if not isinstance(raw, dict):
        raise InputError(where, "no mapping", "a mapping of a device's figures, as elsa-ray device measure writes")
    return _profile(str(raw.get("name", Path(path).stem)), raw, where)


def _profile(name: str, raw: Mapping[str, Any], where: str) -> Profile:
    figures = {key: value for key, value in raw.items() if key not in ("name", "about")}
    sources = {}
    for key, figure in figures.items():
        if isinstance(figure, dict):
            if set(figure) != {"value", "source"}:
                raise InputError(f"{where}: {key}", figure, "a value, or {value: VALUE, source: TEXT}")
            figures[key], sources[key] = figure["value"], str(figure["source"])
    return Profile(_device(name, validate_file(DeviceSpec, figures, where)), str(raw.get("about", "")), sources)


def _device(name: str, spec: DeviceSpec) -> Device:
    figures = spec.model_dump()
    for key in ("memory_bytes", "states_per_second"):
        if figures[key] is None:
            figures[key] = math.inf
    return Device(name, **figures)


def find_device(spec: str | DeviceSpec | DeviceFile, where: str) -> Device:
    """Return the device of a config field: figures, a file, or the name of a profile or file.

    Raises:
        InputError: no profile has that name, or the file is wrong.
    """
    if isinstance(spec, DeviceSpec):
        return _device("custom", spec)
    return find_profile(spec.file if isinstance(spec, DeviceFile) else spec, where).device


def find_profile(name: str, where: str) -> Profile:
    """Return the profile of that name, or the one in the file of that name.

    Raises:
        InputError: there is neither, or the file is wrong.
    """
    if is_device_file(name):
        return read_profile(name)
    if name not in profiles():
        raise unknown_name(where, name, profiles())
    return profiles()[name]


def devices_of_clients(
    spec: str | DeviceSpec | DeviceFile | DeviceMix, num_clients: int, seed: int, where: str
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
