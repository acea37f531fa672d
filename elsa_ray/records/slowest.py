"""The clients whose work took longest, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.records.work_time import TIME_KINDS, ArrivedWork, WorkTimes
from elsa_ray.world.timeline import Timeline
from elsa_ray.world.transfer_parts import PARTS

MOST_CLIENTS = 10

REASONS = ("client_compute", "edge_compute", "queueing", "latency", "bandwidth", "sharing", "waiting_for_model")
"""``queueing``: for the client's device and for a slot of the edge. They add up to the item's time, from the opening of
its edge round until it has arrived or was dropped; what it then waited for the others is no part of it."""


def slowest_clients(arrived: ArrivedWork, timeline: Timeline, network: Network) -> list[dict[str, Any]]:
    """Return the clients with the longest work items of a round, slowest first, each with that item's time.

    Args:
        arrived: the round's work that is over.
        timeline: of the round.
        network: the topology.
    """
    causes = [cause.label for cause in timeline.causes]
    on_time = _entries(arrived, [None] * len(arrived.keys), timeline, network)
    return merged_slowest([*on_time, *_entries(arrived.dropped, causes, timeline, network)])


def merged_slowest(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the slowest of several lists: of each client its slowest item, the longest first; at most ten."""
    worst: dict[int, Mapping[str, Any]] = {}
    for entry in sorted(entries, key=_by_slowness):
        worst.setdefault(entry["client"], entry)
    return [dict(entry) for entry in list(worst.values())[:MOST_CLIENTS]]


def _by_slowness(entry: Mapping[str, Any]) -> tuple[float, int, int, int]:
    return -entry["seconds"], entry["client"], entry["round"], entry["edge_round"]


def reasons(seconds_K: np.ndarray, transfer_seconds_3: np.ndarray) -> dict[str, float]:
    """Return seconds by REASONS of an item, or of several together.

    Args:
        seconds_K: in the order of TIME_KINDS.
        transfer_seconds_3: in the order of PARTS.
    """
    kinds = dict(zip(TIME_KINDS, seconds_K.tolist(), strict=True))
    kinds |= dict(zip(PARTS, transfer_seconds_3.tolist(), strict=True))
    kinds["queueing"] = kinds["client_queue"] + kinds["edge_queue"]
    return {reason: kinds[reason] for reason in REASONS}


def _entries(
    times: WorkTimes, dropped_because: Sequence[str | None], timeline: Timeline, network: Network
) -> list[dict[str, Any]]:
    work = timeline.work
    active_W, client_W = times.active_seconds, work.client[times.rows]
    order = np.lexsort((client_W, -active_W))
    # A client's first place in the order is its slowest item.
    _, first = np.unique(client_W[order], return_index=True)
    chosen = order[np.sort(first)][:MOST_CLIENTS]
    return [
        {
            "client": int(client_W[item]),
            "name": network.node_names[network.clients[client_W[item]]],
            "round": times.keys[item].round_index,
            "edge_round": times.keys[item].edge_round,
            "edge": network.node_names[edge] if (edge := int(work.edge[times.rows[item]])) >= 0 else None,
            "dropped_because": dropped_because[item],
            "seconds": float(active_W[item]),
            **reasons(times.seconds_WK[item], times.transfer_seconds_W3[item]),
        }
        for item in chosen.tolist()
    ]
