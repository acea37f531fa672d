"""The loop of an experiment, and only that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from elsa_ray.prepare import Prepared
from elsa_ray.protocols.protocol import ProtocolState, RoundResults
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import Executor
from elsa_ray.world.plan import Plan
from elsa_ray.world.timeline import Timeline, WorldState


def rounds(
    prepared: Prepared, state: ProtocolState, executor: Executor, world_state: WorldState | None = None
) -> Iterator[Round]:
    """Plan, play, train and conclude round after round, until the protocol is finished.

    Args:
        prepared: the run's parts.
        state: the protocol's, at the start or after some rounds.
        executor: trains.
        world_state: the world's after the same rounds; None at the start.
    """
    protocol, world = prepared.protocol, prepared.world
    world_state = world.start() if world_state is None else world_state
    stop_reason = protocol.finished(state)
    while stop_reason is None:
        wall_seconds: dict[str, float] = {}
        with _timed(wall_seconds, "plan"):
            plan, world_state = _plan(prepared, state, world_state)
        with _timed(wall_seconds, "play"):
            timeline, world_state = world.play(plan, world_state)
        with _timed(wall_seconds, "train"):
            evaluate = _is_evaluated(prepared, state, plan, timeline)
            results = executor.run(plan, timeline, state, evaluate=evaluate)
        with _timed(wall_seconds, "conclude"):
            state, report = protocol.conclude(state, results, plan, timeline)
        stop_reason = protocol.finished(state)
        yield Round(plan, timeline, results, report, state, world_state, stop_reason, wall_seconds)


def _plan(prepared: Prepared, state: ProtocolState, world_state: WorldState) -> tuple[Plan, WorldState]:
    """Plan a round; where nobody can take part and nothing is under way, when the next client or edge comes."""
    plan = prepared.protocol.plan(state, world_state)
    # Those who come may be parked or excluded for good; when many times as many have come as there are, nobody will do.
    for _ in range(10 * prepared.setting.num_clients + 100):
        if len(plan.work) or len(world_state.work):
            break
        later = prepared.world.wait(world_state, state.round_index)
        if later is None:
            break
        world_state = later
        plan = prepared.protocol.plan(state, world_state)
    return plan, world_state


def _is_evaluated(prepared: Prepared, state: ProtocolState, plan: Plan, timeline: Timeline) -> bool:
    """Whether the round's model is tested: as often as configured, and always the last one.

    Time and bytes are known before the training, so whether a budget ends the run here is known too.
    """
    foreseen, _ = prepared.protocol.conclude(state, RoundResults(), plan, timeline)
    is_last = prepared.protocol.finished(foreseen) is not None
    return is_last or foreseen.round_index % prepared.config.evaluation.every == 0


@contextmanager
def _timed(wall_seconds: dict[str, float], step: str) -> Iterator[None]:
    begin = perf_counter()
    yield
    wall_seconds[step] = perf_counter() - begin
