"""Joules of a timeline: computing devices above idle, and the clients' radios."""

from __future__ import annotations

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.devices import Device
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.timeline import Timeline


def energy_joules(timeline: Timeline, network: Network, client_device: Device, edge_device: Device) -> float:
    """Return watts times busy seconds of clients and edges, plus radio energy of each byte that a client sent or got.

    Counts what ended in this timeline, so that rounds add up.
    """
    activities = timeline.activities
    ended = np.isfinite(timeline.finish_seconds)
    computes = (activities.kind == ActivityKind.COMPUTE) & ended & np.isfinite(timeline.start_seconds)
    seconds = np.where(computes, timeline.finish_seconds - timeline.start_seconds, 0.0)
    is_client = np.isin(activities.source, network.clients) | np.isin(activities.target, network.clients)
    is_edge = np.isin(activities.source, network.edges)
    at_client, at_edge = computes & is_client, computes & is_edge
    computing = (
        seconds[at_client].sum() * client_device.active_watts + seconds[at_edge].sum() * edge_device.active_watts
    )
    radio_bytes = timeline.carried_bytes[(activities.kind == ActivityKind.TRANSFER) & is_client].sum()
    return float(computing + radio_bytes * client_device.radio_joules_per_byte)
