"""The world of a run: network and devices, fixed; it plays plans on top of a state that goes on."""

from __future__ import annotations

from functools import cache

from elsa_ray.config.errors import InputError
from elsa_ray.network.graph import Network
from elsa_ray.network.routes import Router
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import Plan
from elsa_ray.world.player import Field, Path, initial_state, play
from elsa_ray.world.timeline import Timeline, WorldState


class World:
    """Plays plans. Stateless: the state is given and returned.

    Args:
        network: the topology.
        router: of that network.
        fleet: the devices; a client computes one thing at a time.
        edge_slots: computations that an edge makes at once, each at the device's rate.
    """

    def __init__(self, network: Network, router: Router, *, fleet: Fleet, edge_slots: int) -> None:
        kinds = network.node_kinds

        @cache
        def find_path(source: int, target: int) -> Path:
            route = router.route(source, target)
            if route is None:
                pair = f"{network.node_names[source]} to {network.node_names[target]}"
                raise InputError(network.where, f"no way from {pair}", "a path that does not lead through a client")
            return route

        self._field = Field(
            find_path=find_path,
            capacity_bytes_per_second=network.capacity_bytes_per_second.tolist(),
            flops_per_second=fleet.flops_per_second(network).tolist(),
            slots=[edge_slots if kind == "edge" else 1 for kind in kinds],
        )

    def start(self) -> WorldState:
        """Return the state at time zero."""
        return initial_state()

    def play(self, plan: Plan, state: WorldState) -> tuple[Timeline, WorldState]:
        """Say when each planned activity happens; see ``player.play``."""
        return play(plan, state, self._field)
