"""The devices of a run: which client computes on what, and the edges' servers.

Shapes: V nodes of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from elsa_ray.network.graph import Network
from elsa_ray.world.devices import Device, StepSize
from elsa_ray.world.plan import Floats


@dataclass(frozen=True)
class Fleet:
    """Devices by role.

    Attributes:
        clients: of each client, by its index.
        edge: of every edge.
    """

    clients: tuple[Device, ...]
    edge: Device

    def training(self, step: StepSize) -> Fleet:
        """Return the devices at the rates that they have in steps of such a size; see ``Device.training``."""
        # By identity: clients of one kind share one object, and equal ones may be told apart without harm.
        kinds = {id(device): device for device in (*self.clients, self.edge)}
        training = {key: device.training(step) for key, device in kinds.items()}
        return Fleet(tuple(training[id(device)] for device in self.clients), training[id(self.edge)])

    def with_flops_per_second(self, rate_N: Floats) -> Fleet:
        """Return the fleet with each client's device at a rate [N] of its own."""
        pairs = zip(self.clients, rate_N.tolist(), strict=True)
        return replace(self, clients=tuple(replace(device, flops_per_second=rate) for device, rate in pairs))

    def flops_per_second(self, network: Network) -> Floats:
        """Return the rate [V] of one slot of each node; infinite at routers and the cloud."""
        return self._by_node(network, lambda device: device.flops_per_second, elsewhere=np.inf)

    def active_watts(self, network: Network) -> Floats:
        """Return the power above idle [V] of each node while it computes."""
        return self._by_node(network, lambda device: device.active_watts, elsewhere=0.0)

    def idle_watts(self, network: Network) -> Floats:
        """Return the power [V] of each client and edge while it is on."""
        return self._by_node(network, lambda device: device.idle_watts, elsewhere=0.0)

    def radio_joules_per_byte(self, network: Network) -> Floats:
        """Return the energy [V] of each client's byte sent or received; 0 elsewhere: servers are wired."""
        figures = self._by_node(network, lambda device: device.radio_joules_per_byte, elsewhere=0.0)
        figures[network.edges] = 0.0
        return figures

    def kinds(self) -> dict[Device, int]:
        """Return the clients' distinct devices with their numbers, in order of first use."""
        counts: dict[Device, int] = {}
        for device in self.clients:
            counts[device] = counts.get(device, 0) + 1
        return counts

    def _by_node(self, network: Network, figure: Callable[[Device], float], *, elsewhere: float) -> Floats:
        figures = np.full(len(network.node_kinds), elsewhere, np.float64)
        figures[network.clients] = [figure(device) for device in self.clients]
        figures[network.edges] = figure(self.edge)
        return figures
