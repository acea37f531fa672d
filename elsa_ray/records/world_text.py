"""The world of a run in words: figures of links, when rounds close, what goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from elsa_ray.config.availability import Always
from elsa_ray.config.faults import FaultsConfig
from elsa_ray.config.round_policy import RoundPolicy
from elsa_ray.config.world import WorldConfig
from elsa_ray.network.graph import Network
from elsa_ray.records.human import human_bandwidth, human_seconds


def network_text(network: Network) -> str:
    """Return the least, median and greatest bandwidths and latencies of a network's links in one line."""
    is_client = np.array(network.node_kinds) == "client"
    up, down = is_client[network.link_source], is_client[network.link_target]
    bandwidth, latency = network.link_bandwidth_bytes_per_second, network.link_latency_seconds
    parts = [
        f"clients' links {_spread(bandwidth[up], human_bandwidth)} up and {_spread(bandwidth[down], human_bandwidth)} "
        f"down at {_spread(latency[up | down], human_seconds)}"
    ]
    others = ~(up | down)
    if others.any():
        parts.append(
            f"other links {_spread(bandwidth[others], human_bandwidth)} at {_spread(latency[others], human_seconds)}"
        )
    if network.bandwidths:
        parts.append(f"{len(network.bandwidths)} of them by a schedule over time")
    return ", ".join(parts)


def policy_text(policy: RoundPolicy) -> str:
    """Return when an edge round closes, and what becomes of who is late."""
    ends = []
    if policy.deadline_seconds is not None:
        ends.append(f"{human_seconds(policy.deadline_seconds)} after it has opened")
    if policy.quorum is None and policy.over_sample is None:
        ends.append("when all have arrived")
    if policy.quorum is not None:
        ends.append(f"when {100 * policy.quorum:g} % have arrived")
    if policy.over_sample is not None:
        ends.append(f"when as many have arrived as are wanted, of {policy.over_sample:g} times as many")
    late = "is dropped" if policy.late == "drop" else "arrives later"
    can_be_late = policy.quorum is not None or policy.over_sample is not None or policy.deadline_seconds is not None
    return f"closes {' or '.join(ends)}" + (f"; what is late {late}" if can_be_late else "")


def adversity_text(world: WorldConfig) -> str | None:
    """Return which faults and absences there are, by name; None where nothing goes wrong."""
    told = [] if isinstance(world.availability, Always) else [f"availability {world.availability.kind}"]
    default = FaultsConfig()
    told += [name for name in FaultsConfig.model_fields if getattr(world.faults, name) != getattr(default, name)]
    told += [f"{len(world.misbehaviour)} kinds of misbehaviour"] if world.misbehaviour else []
    return ", ".join(told) or None


def _spread(values: npt.NDArray[np.float64], text: Callable[[float], str]) -> str:
    if not len(values):
        return "–"
    least, middle, most = (float(value) for value in (values.min(), np.median(values), values.max()))
    return text(least) if least == most else f"{text(least)} to {text(most)} (median {text(middle)})"
