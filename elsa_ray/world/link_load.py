"""How busy links are over a round: the busiest of those that several clients share, with their use over time.

Each transfer's bytes are spread evenly over the time in which they flowed (from the end of its latency to its finish).
Its real rate varies while others come and go, so a profile shows the load and not each change of rate; the sums are
exact, but for transfers that span rounds: these are counted in the round in which they end, for the part of their time
that lies in it. A transfer that is broken off or goes on counts what it has carried, when it ends.

Shapes: T transfers, P pairs of nodes, X crossings of a capacity by a pair's path, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.plan import Floats, Ints
from elsa_ray.world.timeline import Timeline
from elsa_ray.world.transfer_parts import TransferParts

NUM_BINS = 48
MOST_LINKS = 6


@dataclass(frozen=True)
class LinkLoad:
    """One direction of a link, or a shared medium, over a round.

    Attributes:
        name: ``source → target``, or ``a ↔ b`` for a medium that both directions share.
        num_bytes: that it carried in the round.
        utilisation: of its capacity over the whole round, 0 to 1.
        profile_B: the same for each of equal slices of the round.
    """

    name: str
    num_bytes: float
    utilisation: float
    profile_B: Floats


def busiest_links(timeline: Timeline, parts: TransferParts, network: Network) -> list[LinkLoad]:
    """Return the links with the greatest utilisation, busiest first: shared ones, or all if no link is shared."""
    span = timeline.end_seconds - timeline.begin_seconds
    if span <= 0 or not len(parts.rows_T):
        return []
    flows = _Flows(timeline, parts)
    pair_X, capacity_X = parts.paths.crossings()
    num_capacities = len(network.capacity_bytes_per_second)
    num_pairs = len(parts.paths) + 1  # the last is a node and itself
    bytes_P = np.bincount(parts.pair_T, weights=flows.in_round_T, minlength=num_pairs)
    used_X = bytes_P[pair_X] > 0
    pair_X, capacity_X = pair_X[used_X], capacity_X[used_X]
    bytes_C = np.bincount(capacity_X, weights=bytes_P[pair_X], minlength=num_capacities)
    utilisation_C = bytes_C / (network.capacity_bytes_per_second * span)
    shared_C = ~_touches_a_client(network)
    candidates = np.flatnonzero(shared_C & (bytes_C > 0)) if np.any(bytes_C[shared_C]) else np.flatnonzero(bytes_C)
    busiest = candidates[np.argsort(-utilisation_C[candidates], kind="stable")][:MOST_LINKS]
    loads = []
    for capacity in busiest.tolist():
        is_on_P = np.zeros(num_pairs, bool)
        is_on_P[pair_X[capacity_X == capacity]] = True
        binned_B = flows.bytes_by_bin(is_on_P[parts.pair_T])
        room = float(network.capacity_bytes_per_second[capacity]) * span / NUM_BINS
        name = _name(network, capacity)
        loads.append(LinkLoad(name, float(bytes_C[capacity]), float(utilisation_C[capacity]), binned_B / room))
    return loads


class _Flows:
    """When the bytes of each transfer flowed."""

    def __init__(self, timeline: Timeline, parts: TransferParts) -> None:
        finish_T = timeline.finish_seconds[parts.rows_T]
        begin_T = np.minimum(timeline.start_seconds[parts.rows_T] + parts.seconds_T3[:, 0], finish_T)
        carried_T = timeline.carried_bytes[parts.rows_T].astype(np.float64)
        self._from_T = np.maximum(begin_T, timeline.begin_seconds) - timeline.begin_seconds
        self._to_T = finish_T - timeline.begin_seconds
        whole_T = finish_T - begin_T
        share_T = np.divide(self._to_T - self._from_T, whole_T, out=np.ones_like(whole_T), where=whole_T > 0)
        self.in_round_T = carried_T * share_T
        self._span = timeline.end_seconds - timeline.begin_seconds

    def bytes_by_bin(self, chosen_T: np.ndarray) -> Floats:
        """Return the bytes [B] of the chosen transfers in each slice of the round."""
        num_bytes, begin, end = (column[chosen_T] for column in (self.in_round_T, self._from_T, self._to_T))
        edges = np.linspace(0.0, self._span, NUM_BINS + 1)
        length = end - begin
        # What is over within a tiny part of a bin goes into that bin whole: its rate would drown the others' digits.
        is_short = length <= 1e-6 * edges[1]
        bins = np.zeros(NUM_BINS)
        short_bin = np.clip(np.searchsorted(edges, end[is_short], side="left") - 1, 0, NUM_BINS - 1)
        np.add.at(bins, short_bin, num_bytes[is_short])
        rate, begin, end = num_bytes[~is_short] / length[~is_short], begin[~is_short], end[~is_short]
        # Cumulative bytes by time t: the sum of rate * (t - begin) over what has begun, less that over what has ended.
        cumulative = _ramps(edges, begin, rate) - _ramps(edges, end, rate)
        return bins + np.diff(cumulative)


def _ramps(edges: Floats, at: Floats, rate: Floats) -> Floats:
    """Return at each edge t the sum of rate * (t - at) over what lies before t."""
    first_edge = np.searchsorted(edges, at, side="left")
    rates = np.cumsum(np.bincount(first_edge, weights=rate, minlength=len(edges))[: len(edges)])
    moments = np.cumsum(np.bincount(first_edge, weights=rate * at, minlength=len(edges))[: len(edges)])
    return edges * rates - moments


def _touches_a_client(network: Network) -> np.ndarray:
    """Return which capacities belong to a link that ends at a client: nobody else's transfers cross it."""
    is_client = np.array(network.node_kinds) == "client"
    touches = np.zeros(len(network.capacity_bytes_per_second), bool)
    touches[network.link_capacity[is_client[network.link_source] | is_client[network.link_target]]] = True
    return touches


def _name(network: Network, capacity: int) -> str:
    links: Ints = np.flatnonzero(network.link_capacity == capacity)
    source, target = (network.node_names[ends[links[0]]] for ends in (network.link_source, network.link_target))
    return f"{source} {'↔' if len(links) > 1 else '→'} {target}"
