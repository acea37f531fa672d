"""Faults of links, edges and the cloud: what they hit, and from when to when.

A crashed edge is a server that is down. Its switch goes on: traffic of others still passes the node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.faults import FaultsConfig, LinkFault
from elsa_ray.network.graph import Network
from elsa_ray.network.schedule import Steps
from elsa_ray.world.draws import uniforms

FaultBegins = tuple[tuple[int, float], ...]
"""Which faults of those that count from a global round have begun, and when, in absolute seconds."""


class Target(IntEnum):
    """What a fault hits."""

    LINKS = 0
    EDGE = 1
    CLOUD = 2


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        target: what it hits.
        node: the edge or the cloud; -1 for links.
        capacities: indices of the capacities that it changes.
        factor: what is left of them.
        round_index: the global round from whose start it counts; None for the start of the run.
        start_seconds, duration_seconds: when.
        name: what it hits, in records.
    """

    target: Target
    node: int
    capacities: tuple[int, ...]
    factor: float
    round_index: int | None
    start_seconds: float
    duration_seconds: float
    name: str


@dataclass(frozen=True)
class Spell:
    """A fault at its time, in absolute seconds; it holds from ``begin_seconds`` on, and no more at ``end_seconds``.

    ``is_new`` marks one that has become known with the round that is played, so that it may begin at its very start.
    """

    fault: Fault
    begin_seconds: float
    end_seconds: float
    is_new: bool


def make_faults(config: FaultsConfig, network: Network, seed: int) -> tuple[Fault, ...]:
    """Return the faults of links, edges and the cloud on a network.

    Raises:
        InputError: a node or a link that is named does not exist.
    """
    faults = []
    for position, link in enumerate(config.links):
        rows = _rows_of_link(link, network, position, seed)
        capacities = tuple(sorted({int(network.link_capacity[row]) for row in rows}))
        ends = sorted({tuple(sorted((network.link_source[row], network.link_target[row]))) for row in rows})
        name = ", ".join(f"{network.node_names[one]}-{network.node_names[other]}" for one, other in ends[:3])
        more = f" and {len(ends) - 3} more" if len(ends) > 3 else ""
        span = (link.round, link.start_seconds, link.duration_seconds)
        faults.append(Fault(Target.LINKS, -1, capacities, link.factor, *span, f"{name}{more}"))
    for position, crash in enumerate(config.edges):
        names = [network.node_names[edge] for edge in network.edges.tolist()]
        if crash.edge not in names:
            raise unknown_name(f"world.faults.edges.{position}.edge", crash.edge, names)
        span = (crash.round, crash.start_seconds, crash.duration_seconds)
        faults.append(Fault(Target.EDGE, network.index(crash.edge), (), 1.0, *span, crash.edge))
    if config.cloud:
        cloud = int(network.clouds[0])
        at_cloud = (network.link_source == cloud) | (network.link_target == cloud)
        capacities = tuple(sorted(set(network.link_capacity[at_cloud].tolist())))
        for outage in config.cloud:
            span = (outage.round, outage.start_seconds, outage.duration_seconds)
            faults.append(Fault(Target.CLOUD, cloud, capacities, 0.0, *span, network.node_names[cloud]))
    return tuple(faults)


def begins_in_round(
    faults: Sequence[Fault], before: FaultBegins, round_index: int, clock_seconds: float
) -> FaultBegins:
    """Return which faults have begun with this round's start too, those that count from it."""
    new = [
        (number, clock_seconds + fault.start_seconds)
        for number, fault in enumerate(faults)
        if fault.round_index == round_index
    ]
    return (*before, *new)


def spells_of(faults: Sequence[Fault], begins: FaultBegins, round_index: int) -> tuple[Spell, ...]:
    """Return the faults whose time is known: those that count from the start of the run, and those that have begun.

    Args:
        faults: all.
        begins: of those that count from a round.
        round_index: of the round that is played.
    """
    known = [(number, fault.start_seconds) for number, fault in enumerate(faults) if fault.round_index is None]
    timed = [(faults[number], begin) for number, begin in sorted([*known, *begins])]
    return tuple(
        Spell(fault, begin, begin + fault.duration_seconds, fault.round_index == round_index) for fault, begin in timed
    )


def down_nodes(spells: Iterable[Spell], seconds: float) -> tuple[int, ...]:
    """Return the edges that are down at an instant, in order."""
    down = {spell.fault.node for spell in spells if spell.fault.target is Target.EDGE and _holds(spell, seconds)}
    return tuple(sorted(down))


def next_recovery(spells: Iterable[Spell], seconds: float) -> float:
    """Return when the next edge that is down at an instant is up again; infinite if none is down."""
    ends = (spell.end_seconds for spell in spells if spell.fault.target is Target.EDGE and _holds(spell, seconds))
    return min(ends, default=math.inf)


def capacity_factors(spells: Iterable[Spell]) -> dict[int, list[Steps]]:
    """Return what is left of each capacity that is hit, over time; faults that hold at one time multiply."""
    factors: dict[int, list[Steps]] = {}
    for spell in spells:
        begin, end, factor = spell.begin_seconds, spell.end_seconds, spell.fault.factor
        steps = Steps((0.0, begin, end), (1.0, factor, 1.0)) if begin > 0 else Steps((0.0, end), (factor, 1.0))
        for capacity in spell.fault.capacities:
            factors.setdefault(capacity, []).append(steps)
    return factors


def _holds(spell: Spell, seconds: float) -> bool:
    return spell.begin_seconds <= seconds < spell.end_seconds


def _rows_of_link(config: LinkFault, network: Network, position: int, seed: int) -> list[int]:
    """Return the directed links that a fault hits: both directions of each."""
    where = f"world.faults.links.{position}"
    source, target = network.link_source, network.link_target
    if config.link is not None:
        for end, name in enumerate(config.link):
            if name not in network:
                raise unknown_name(f"{where}.link.{end}", name, network.node_names)
        one, other = (network.index(name) for name in config.link)
        rows = np.flatnonzero(((source == one) & (target == other)) | ((source == other) & (target == one)))
        if not len(rows):
            near = sorted({network.node_names[node] for node in target[source == one]})
            raise InputError(f"{where}.link", "-".join(config.link), f"a link; {config.link[0]} has one to {near}")
        return [int(row) for row in rows]
    is_client = np.array(network.node_kinds) == "client"
    of_client = is_client[source] | is_client[target]
    wanted = {"all": np.ones_like(of_client), "clients": of_client, "backbone": ~of_client}[config.among]
    pairs = np.stack([np.minimum(source, target), np.maximum(source, target)], axis=1)
    links = np.unique(pairs[wanted], axis=0)
    if not len(links):
        raise InputError(f"{where}.among", config.among, "links of which there are any")
    assert config.share is not None
    # Rounded, because 0.1 * 30 is more than 3 in binary.
    count = math.ceil(round(config.share * len(links), 9))
    drawn = links[np.argsort(uniforms(np.arange(len(links)), seed, "links", position), kind="stable")[:count]]
    hit = {tuple(link) for link in drawn.tolist()}
    return [row for row, pair in enumerate(pairs.tolist()) if tuple(pair) in hit]
