"""Models of the network: what a path means for a flow over it.

All of them share capacities max-min fairly (``FluidSharing``). They differ in what of a link's bandwidth payloads can
use, how long a flow takes to start, how it weighs against others, and how fast it can be at most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from elsa_ray.config.errors import unknown_name
from elsa_ray.network.routes import Router


@dataclass(frozen=True, slots=True)
class Way:
    """What a model says of the path between two nodes.

    Attributes:
        capacities: those that a flow draws from; one that is used twice occurs twice.
        coefficients: what a byte of the flow takes of each of them; None is 1 of each.
        latency_seconds: before the first byte flows.
        weight: the flow's share of a contended capacity, relative to others'.
        bound_bytes_per_second: what the flow cannot exceed however wide its path is; inf where nothing bounds it.
        bottleneck_bytes_per_second: the rate of a flow that shares with nobody; inf from a node to itself.
    """

    capacities: tuple[int, ...]
    coefficients: tuple[float, ...] | None
    latency_seconds: float
    weight: float
    bound_bytes_per_second: float
    bottleneck_bytes_per_second: float

    def seconds_alone(self, num_bytes: float) -> float:
        """Return how long a transfer takes that shares with nobody, at the topology's own bandwidths."""
        return self.latency_seconds + num_bytes / self.bottleneck_bytes_per_second


class NetworkModel(Protocol):
    """How transfers use a network."""

    @property
    def name(self) -> str:
        """The name in configs and records."""

    @property
    def usable_part(self) -> float:
        """The part of a link's bandwidth that payloads can use."""

    @property
    def sentence(self) -> str:
        """What the model assumes, in a sentence for records."""

    def way(self, router: Router, source: int, target: int) -> Way | None:
        """Return what a flow from one node to another meets; None where no path joins them."""


@dataclass(frozen=True)
class Fluid:
    """Flows wait their path's latency, then share all bandwidth as equals."""

    @property
    def name(self) -> str:
        """The name in configs and records."""
        return "fluid"

    @property
    def usable_part(self) -> float:
        """All of it."""
        return 1.0

    @property
    def sentence(self) -> str:
        """What the model assumes, in a sentence for records."""
        return (
            "Network: fluid flows that share links max-min fairly, each after its path's latency; right for transfers "
            "much longer than a round trip, and blind to packets, losses and slow start."
        )

    def way(self, router: Router, source: int, target: int) -> Way | None:
        """Return the route as it is: full bandwidths, equal weights, no bound."""
        route = router.route(source, target)
        if route is None:
            return None
        alone = route.bottleneck_bytes_per_second
        return Way(route.capacities, None, route.latency_seconds, 1.0, math.inf, alone)


@dataclass(frozen=True)
class Tcp:
    """A flow-level model of TCP with SimGrid's LV08 figures (Velho and Legrand 2009; methods.md 3.29).

    Attributes:
        cross_traffic: each flow's acknowledgements take 0.05 of its rate on the way back.
    """

    cross_traffic: bool = False

    BANDWIDTH_PART = 0.97
    LATENCY_FACTOR = 13.01
    """Start-up delay over latency: connection and slow start together."""
    WEIGHT_BYTES = 20537.0
    """What a link's bandwidth adds to the round trip that a flow's share is inverse to, in bytes."""
    WINDOW_BYTES = 4194304.0
    CROSS_PART = 0.05

    @property
    def name(self) -> str:
        """The name in configs and records."""
        return "tcp"

    @property
    def usable_part(self) -> float:
        """Less the headers."""
        return self.BANDWIDTH_PART

    @property
    def sentence(self) -> str:
        """What the model assumes, in a sentence for records."""
        return (
            "Network: flow-level TCP (Velho and Legrand 2009, SimGrid's LV08 figures): each transfer starts after "
            "13.01 times its path's latency, shares 0.97 of each bandwidth max-min fairly in inverse ratio to its "
            "round trip, and is bounded by a window of 4 MiB; a new connection a transfer."
        )

    def way(self, router: Router, source: int, target: int) -> Way | None:
        """Return the route with TCP's delay, weight and window; and the way back, if its traffic counts."""
        route = router.route(source, target)
        if route is None:
            return None
        if not route.links:
            return Way((), None, 0.0, 1.0, math.inf, math.inf)
        capacities, coefficients = route.capacities, (1.0,) * len(route.capacities)
        if self.cross_traffic:
            back = router.route(target, source)
            if back is not None:
                capacities += back.capacities
                coefficients += (self.CROSS_PART,) * len(back.capacities)
        latency = route.latency_seconds
        bound = self.WINDOW_BYTES / (2 * latency) if latency > 0 else math.inf
        bandwidths = router.network.link_bandwidth_bytes_per_second[list(route.links)]
        round_trip = latency + math.fsum((self.WEIGHT_BYTES / bandwidths).tolist())
        alone = min(bound, self._narrowest(router, capacities, coefficients))
        kept = coefficients if self.cross_traffic else None
        return Way(capacities, kept, self.LATENCY_FACTOR * latency, 1 / round_trip, bound, alone)

    def _narrowest(self, router: Router, capacities: Sequence[int], coefficients: Sequence[float]) -> float:
        load: Counter[int] = Counter()
        for capacity, coefficient in zip(capacities, coefficients, strict=True):
            load[capacity] += coefficient  # type: ignore[assignment]
        of = router.network.capacity_bytes_per_second
        return min(self.BANDWIDTH_PART * float(of[capacity]) / times for capacity, times in load.items())


NETWORK_MODELS: dict[str, NetworkModel] = {model.name: model for model in (Fluid(), Tcp())}
"""The models that a config may name."""


def find_model(name: str, where: str) -> NetworkModel:
    """Return the model of that name.

    Raises:
        InputError: there is none; ``where`` says which field named it.
    """
    if name not in NETWORK_MODELS:
        raise unknown_name(where, name, NETWORK_MODELS)
    return NETWORK_MODELS[name]
