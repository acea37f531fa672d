"""One finished round, as the loop hands it to whoever records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from elsa_ray.protocols.protocol import ProtocolState, RoundReport, RoundResults
from elsa_ray.world.plan import Plan
from elsa_ray.world.timeline import Timeline, WorldState


@dataclass(frozen=True)
class Round:
    """A round, whole.

    Attributes:
        plan, timeline, results, report: of the round.
        state: the protocol's after it.
        world_state: the world's after it.
        stop_reason: why the run is over after this round; None while it goes on.
        wall_seconds: the host's own time for each step of the loop: plan, play, train, conclude.
    """

    plan: Plan
    timeline: Timeline
    results: RoundResults
    report: RoundReport
    state: ProtocolState
    world_state: WorldState
    stop_reason: str | None
    wall_seconds: Mapping[str, float]
