"""Joules of a timeline: computing devices above idle, and the clients' radios."""

from __future__ import annotations

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.timeline import Timeline


def energy_joules(timeline: Timeline, network: Network, fleet: Fleet) -> float:
    """Return watts times busy seconds of clients and edges, plus radio energy of each byte that a client sent or got.

    Counts what ended in this timeline, so that rounds add up.
    """
    activities = timeline.activities
    ended = np.isfinite(timeline.finish_seconds)
    computes = (activities.kind == ActivityKind.COMPUTE) & ended & np.isfinite(timeline.start_seconds)
    seconds = np.where(computes, timeline.finish_seconds - timeline.start_seconds, 0.0)
    computing = float((seconds * fleet.active_watts(network)[activities.source]).sum())
    joules_per_byte = fleet.radio_joules_per_byte(network)
    is_transfer = activities.kind == ActivityKind.TRANSFER
    radio = joules_per_byte[activities.source] + joules_per_byte[activities.target]
    return computing + float((timeline.carried_bytes * radio)[is_transfer].sum())
