"""Joules of a timeline: computing devices above idle, and the clients' radios."""

from __future__ import annotations

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import ActivityKind, Floats
from elsa_ray.world.timeline import Timeline


def energy_joules(timeline: Timeline, network: Network, fleet: Fleet) -> float:
    """Return watts times busy seconds of clients and edges, plus radio energy of each byte that a client sent or got.

    Counts what ended in this timeline, so that rounds add up.
    """
    is_transfer = timeline.activities.kind == ActivityKind.TRANSFER
    computing = float(compute_joules(timeline, network, fleet).sum())
    return computing + float(radio_joules(timeline, network, fleet)[is_transfer].sum())


def compute_joules(timeline: Timeline, network: Network, fleet: Fleet) -> Floats:
    """Return the joules of each activity's computation; 0 for what computes nothing, or has not ended."""
    activities = timeline.activities
    ended = np.isfinite(timeline.finish_seconds)
    computes = (activities.kind == ActivityKind.COMPUTE) & ended & np.isfinite(timeline.start_seconds)
    seconds = np.where(computes, timeline.finish_seconds - timeline.start_seconds, 0.0)
    joules: Floats = seconds * fleet.active_watts(network)[activities.source]
    return joules


def radio_joules(timeline: Timeline, network: Network, fleet: Fleet) -> Floats:
    """Return the joules that clients' radios spent on each activity's bytes."""
    joules_per_byte = fleet.radio_joules_per_byte(network)
    radio = joules_per_byte[timeline.activities.source] + joules_per_byte[timeline.activities.target]
    joules: Floats = timeline.carried_bytes * radio
    return joules
