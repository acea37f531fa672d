"""Joules of a timeline: computing devices above idle, the clients' radios, and devices that are on.

Shapes: V nodes of the network.
"""

from __future__ import annotations

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import ActivityKind, Floats
from elsa_ray.world.timeline import Timeline


def energy_joules(timeline: Timeline, network: Network, fleet: Fleet) -> float:
    """Return watts times busy seconds of clients and edges, radio energy of each byte of a client, and idle energy.

    Counts what ended in this timeline, so that rounds add up; for the idle energy see ``idle_joules``.
    """
    is_transfer = timeline.activities.kind == ActivityKind.TRANSFER
    computing = float(compute_joules(timeline, network, fleet).sum())
    idle = float(idle_joules(timeline, network, fleet).sum())
    return computing + float(radio_joules(timeline, network, fleet)[is_transfer].sum()) + idle


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


def idle_joules(timeline: Timeline, network: Network, fleet: Fleet) -> Floats:
    """Return the idle power [V] of each client and edge times the length of the round, if it took part.

    Who took part: whose computation, transfer or gather has begun by the round's end, in it or earlier and not ended
    before it. Who was not asked draws nothing here: its power is not this round's cost.
    """
    activities = timeline.activities
    began = np.isfinite(timeline.start_seconds)
    took_part = np.zeros(len(network.node_kinds), bool)
    took_part[activities.source[began]] = True
    took_part[activities.target[began]] = True
    seconds = timeline.end_seconds - timeline.begin_seconds
    joules: Floats = fleet.idle_watts(network) * took_part * seconds
    return joules
