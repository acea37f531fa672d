"""Tables of device profiles, for the command line."""

from __future__ import annotations

import math

from rich.table import Table

from elsa_ray.records.human import human_bytes, human_flops, human_seconds
from elsa_ray.world.devices import Device, find_profile, profiles


def device_table() -> Table:
    """Return all packaged profiles with their figures; what each of them is, ``figure_table`` tells."""
    table = Table(box=None, pad_edge=False)
    for title in ("device", "FLOP/s", "memory", "idle, W", "active, W", "radio, nJ/B"):
        table.add_column(title, justify="left" if title == "device" else "right", no_wrap=True)
    for name, profile in profiles().items():
        device = profile.device
        table.add_row(
            name,
            human_flops(device.flops_per_second),
            human_bytes(device.memory_bytes),
            f"{device.idle_watts:g}",
            f"{device.active_watts:g}",
            f"{device.radio_joules_per_byte * 1e9:g}",
        )
    return table


def figure_table(name: str) -> Table:
    """Return the figures of one device, each with its source.

    Args:
        name: of a profile, or of a file.

    Raises:
        InputError: there is neither, or the file is wrong.
    """
    profile = find_profile(name, "D")
    table = Table(title=f"{profile.device.name}: {profile.about}", title_justify="left", box=None, pad_edge=False)
    table.add_column("figure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("source")
    for figure, value in _values(profile.device).items():
        table.add_row(figure, value, profile.sources.get(figure, "not stated"))
    return table


def _values(device: Device) -> dict[str, str]:
    values = {
        "flops_per_second": human_flops(device.flops_per_second),
        "memory_bytes": "no limit" if math.isinf(device.memory_bytes) else human_bytes(device.memory_bytes),
        "idle_watts": f"{device.idle_watts:g} W",
        "active_watts": f"{device.active_watts:g} W",
        "radio_joules_per_byte": f"{device.radio_joules_per_byte * 1e9:g} nJ",
    }
    if math.isfinite(device.states_per_second):
        values["states_per_second"] = f"{device.states_per_second:,.0f}"
    if device.block_seconds:
        values["block_seconds"] = human_seconds(device.block_seconds)
    return values
