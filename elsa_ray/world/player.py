"""Plays a plan: a discrete-event simulation of transfers, computations and gathers.

Where a round falls apart at its edges, part after part is played, so that no more than one is at hand at a time; else
all of it at one go. What happens in time: ``Eventful``, and where nothing can be broken off ``Calm``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from elsa_ray.network.instants import SAME_INSTANT
from elsa_ray.network.schedule import CapacitySchedule
from elsa_ray.network.sharing import FluidSharing
from elsa_ray.world.calm import Calm, is_calm
from elsa_ray.world.course import SURELY, Field, Phase
from elsa_ray.world.disturbances import UNDISTURBED, Disturbances
from elsa_ray.world.eventful import Eventful
from elsa_ray.world.faults import capacity_factors
from elsa_ray.world.incidents import IncidentLog
from elsa_ray.world.parts import Part, Parts, parts_of
from elsa_ray.world.paths import Paths
from elsa_ray.world.plan import Activities, Plan, WorkItems, WorkKey
from elsa_ray.world.rows import merged_activities
from elsa_ray.world.timeline import Outcome, Timeline, WorldState
from elsa_ray.world.troubles import Cause

__all__ = ["Field", "Phase", "initial_state", "play"]


def play(
    plan: Plan, state: WorldState, field: Field, disturbances: Disturbances = UNDISTURBED
) -> tuple[Timeline, WorldState]:
    """Play one round on top of what still goes on, and stop when the plan's last gather has closed.

    Args:
        plan: of the round.
        state: of the world before it.
        field: what does not change.
        disturbances: faults and the like.

    Returns:
        The timeline of all activities of the state and the plan, and the state after the round.

    Raises:
        RuntimeError: the plan can never end (a dependency without end), which is a protocol's mistake.
    """
    paths = Paths(merged_activities(state, plan), field.find_path)
    player = _Player(plan, state, field, disturbances, paths)
    with _without_collection():
        parts = parts_of(plan, paths) if _may_fall_apart(plan, state, field, disturbances) else None
        if parts is None or not player.play_apart(parts):
            player.play_whole()
    return player.timeline, player.state


def _may_fall_apart(plan: Plan, state: WorldState, field: Field, disturbances: Disturbances) -> bool:
    """Tell whether nothing goes on from one round to the next, or befalls several edges at a time."""
    goes_on = len(state.activities) > 0 or len(state.inbox) > 0 or plan.keep_late
    return not (goes_on or field.bandwidths or disturbances.spells or disturbances.off_seconds is not None)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector out: playing makes no cycles, and millions of events would make it look for them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Player:
    """Plays one plan, whole or part after part.

    Attributes:
        timeline, state: what happened, and the world after it.
    """

    timeline: Timeline
    state: WorldState

    def __init__(self, plan: Plan, state: WorldState, field: Field, disturbances: Disturbances, paths: Paths) -> None:
        self._plan, self._before, self._disturbances, self._paths = plan, state, disturbances, paths
        self._field = replace(field, flops_per_second=np.asarray(field.flops_per_second, np.float64))
        self._schedule = CapacitySchedule(
            field.capacity_bytes_per_second,
            field.bandwidths,
            capacity_factors(disturbances.spells),
            usable_part=field.usable_part,
        )

    def play_whole(self) -> None:
        """Play all rows together until the last gather has closed.

        Raises:
            RuntimeError: nothing is under way, and it has not.
        """
        links = self._schedule.sharing(self._before.clock_seconds)
        course = self._eventful(Part(self._plan, self._paths, self._disturbances.troubles), links, IncidentLog())
        course.run()
        if not course.is_over:
            raise RuntimeError(f"round {self._plan.round_index}: nothing is under way, and the round is not over")
        self.timeline, self.state = course.timeline(), course.state()

    def play_apart(self, parts: Parts) -> bool:
        """Play each part by itself; tell whether that was right. Where it was not, all is to be played anew."""
        plan, troubles, incidents = self._plan, self._disturbances.troubles, IncidentLog()
        calm, links = is_calm(plan, troubles), self._schedule.sharing(self._before.clock_seconds)
        count = len(plan.activities)
        start, finish = np.full(count, np.nan), np.full(count, np.nan)
        outcome, carried_bytes = np.full(count, Outcome.PENDING, np.uint8), np.zeros(count, np.int64)
        arrivals: list[tuple[WorkKey, ...]] = [()] * len(plan.gathers)
        dropped: list[tuple[WorkKey, Cause, float]] = []
        for number in range(parts.behind + 1):
            part = parts.part(number, finish, troubles)
            if part is None:
                return False
            links.rewind(self._before.clock_seconds)
            course = self._calm(part, links) if calm else self._eventful(part, links, incidents)
            course.run()
            if not course.has_ended:
                return False
            own, rows = course.timeline(), parts.rows_of(number)
            start[rows], finish[rows] = own.start_seconds, own.finish_seconds
            outcome[rows], carried_bytes[rows] = own.outcome, own.carried_bytes
            for gather, keys in zip(parts.gathers_of(number).tolist(), own.arrivals, strict=True):
                arrivals[gather] = keys
            dropped += zip(own.dropped, own.causes, own.dropped_seconds.tolist(), strict=True)
        if not course.is_over or finish.max() > own.end_seconds * SURELY or not parts.never_met(start, finish):
            return False
        if np.array_equal(carried_bytes, plan.activities.num_bytes):
            carried_bytes = plan.activities.num_bytes  # one column less, where nothing was broken off or sent again
        incidents.sort()
        dropped.sort()
        self.timeline = Timeline(
            begin_seconds=self._before.clock_seconds,
            end_seconds=own.end_seconds,
            activities=plan.activities,
            start_seconds=start,
            finish_seconds=finish,
            outcome=outcome,
            carried_bytes=carried_bytes,
            work=plan.work,
            arrivals=tuple(arrivals),
            gather_seconds=finish[plan.gathers.activity],
            dropped=tuple(key for key, _, _ in dropped),
            skipped=(),
            pending=(),
            causes=tuple(cause for _, cause, _ in dropped),
            dropped_seconds=np.array([seconds for _, _, seconds in dropped], np.float64),
            incidents=incidents.incidents(),
            paths=self._paths,
        )
        settled = own.end_seconds * (1 + SAME_INSTANT)
        self.state = replace(_idle_state(own.end_seconds), settled_seconds=settled)
        return True

    def _eventful(self, part: Part, links: FluidSharing, incidents: IncidentLog) -> Eventful:
        return Eventful(
            part,
            self._before,
            self._field,
            links,
            disturbances=self._disturbances,
            changes=self._schedule.changes(self._before.clock_seconds),
            incidents=incidents,
        )

    def _calm(self, part: Part, links: FluidSharing) -> Calm:
        return Calm(part, self._before, self._field, links)


def initial_state() -> WorldState:
    """Return the world before the first round: time zero, nothing under way."""
    return _idle_state(0.0)


def _idle_state(clock_seconds: float) -> WorldState:
    """Return a world in which nothing is under way."""
    none, nothing = np.zeros(0, np.int64), np.zeros(0, np.float64)
    return WorldState(clock_seconds, Activities.empty(), none, none, none, nothing, nothing, WorkItems.empty(), ())
