"""The world of a run: network, devices and what may go wrong, fixed; it plays plans on top of a state that goes on."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace

import numpy as np

from elsa_ray.config.errors import InputError
from elsa_ray.config.faults import FaultsConfig
from elsa_ray.network.graph import Network
from elsa_ray.network.models import Fluid, NetworkModel
from elsa_ray.network.routes import Router
from elsa_ray.world.availability import Availability
from elsa_ray.world.disturbances import Disturbances, slowdowns, troubles_of
from elsa_ray.world.faults import Fault, begins_in_round, down_nodes, next_recovery, spells_of
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.incidents import IncidentKind, IncidentLog, Incidents
from elsa_ray.world.paths import Path
from elsa_ray.world.plan import Floats, Plan
from elsa_ray.world.player import Field, initial_state, play
from elsa_ray.world.timeline import Timeline, WorldState

_FLUID = Fluid()


@dataclass(frozen=True)
class Adversity:
    """What may go wrong in a run, and the seed that it is drawn with.

    Attributes:
        faults: the config's section.
        spells: faults of links, edges and the cloud, on the network.
        availability: when clients are there; None where they always are.
        seed: the run's.
    """

    faults: FaultsConfig = field(default_factory=FaultsConfig)
    spells: tuple[Fault, ...] = ()
    availability: Availability | None = None
    seed: int = 0


class World:
    """Plays plans. Stateless: the state is given and returned.

    Args:
        network: the topology.
        router: of that network.
        fleet: the devices; a client computes one thing at a time.
        edge_slots: computations that an edge makes at once, each at the device's rate.
        model: how transfers use the network.
        adversity: what may go wrong; None for nothing.
    """

    def __init__(
        self,
        network: Network,
        router: Router,
        *,
        fleet: Fleet,
        edge_slots: int,
        model: NetworkModel = _FLUID,
        adversity: Adversity | None = None,
    ) -> None:
        self._network, self._adversity = network, adversity or Adversity()
        kinds = network.node_kinds

        def find_path(source: int, target: int) -> Path:
            way = model.way(router, source, target)
            if way is None:
                pair = f"{network.node_names[source]} to {network.node_names[target]}"
                raise InputError(network.where, f"no way from {pair}", "a path that does not lead through a client")
            return way

        self._field = Field(
            find_path=find_path,
            capacity_bytes_per_second=array("d", network.capacity_bytes_per_second.tobytes()),
            flops_per_second=fleet.flops_per_second(network),
            slots=[edge_slots if kind == "edge" else 1 for kind in kinds],
            client_nodes=array("i", network.clients.tobytes()),
            bandwidths=network.bandwidths,
            usable_part=model.usable_part,
        )

    def start(self) -> WorldState:
        """Return the state at time zero."""
        return self._foreseen(initial_state(), 0)

    def play(self, plan: Plan, state: WorldState) -> tuple[Timeline, WorldState]:
        """Say when each planned activity happens; see ``player.play``."""
        own, clock = self._adversity, state.clock_seconds
        begins = begins_in_round(own.spells, state.fault_begins, plan.round_index, clock)
        slowdown = None
        if own.faults.stragglers is not None:
            slowdown = slowdowns(own.faults.stragglers, len(self._network.clients), own.seed, plan.round_index)
        disturbances = Disturbances(
            troubles=troubles_of(own.faults, plan, self._network.clients.astype(np.int64), own.seed, slowdown),
            off_seconds=own.availability.off_seconds(clock) if own.availability is not None else None,
            spells=spells_of(own.spells, begins, plan.round_index),
        )
        timeline, after = play(plan, state, self._field, disturbances)
        after = self._foreseen(replace(after, fault_begins=begins), plan.round_index + 1)
        incidents = self._at_start(plan, state, slowdown)
        if len(incidents.rows):
            timeline = replace(timeline, incidents=incidents.followed_by(timeline.incidents))
        return replace(timeline, down_nodes=after.down_nodes, present=after.present), after

    def wait(self, state: WorldState, round_index: int) -> WorldState | None:
        """Return the state when the next client or edge comes that is missing; None where none will.

        Nothing may be under way.
        """
        if not math.isfinite(state.next_change_seconds):
            return None
        return self._foreseen(replace(state, clock_seconds=state.next_change_seconds), round_index)

    def _foreseen(self, state: WorldState, round_index: int) -> WorldState:
        """Return the state with what a protocol may know of the instant at which it plans this round."""
        own, clock = self._adversity, state.clock_seconds
        spells = spells_of(own.spells, state.fault_begins, round_index)
        next_change = next_recovery(spells, clock)
        present = None
        if own.availability is not None:
            present = own.availability.present(clock, round_index)
            next_change = min(next_change, own.availability.next_arrival(clock))
        return replace(state, present=present, down_nodes=down_nodes(spells, clock), next_change_seconds=next_change)

    def _at_start(self, plan: Plan, state: WorldState, slowdown: Floats | None) -> Incidents:
        """Return who is not there at the start of a round, and who of those with work is slow in it."""
        log, nodes, clock = IncidentLog(), self._network.clients.astype(np.int64), state.clock_seconds
        if state.present is not None:
            absent = np.flatnonzero(~state.present)
            log.add_clients(IncidentKind.CLIENT_UNAVAILABLE, clock, nodes[absent], absent, [""])
        if slowdown is not None:
            clients = np.unique(plan.work.client)
            clients = clients[slowdown[clients] != 1.0]
            factors = [f"{factor:.3g} times as long" for factor in slowdown[clients].tolist()]
            log.add_clients(IncidentKind.CLIENT_SLOWED, clock, nodes[clients], clients, factors)
        return log.incidents()
