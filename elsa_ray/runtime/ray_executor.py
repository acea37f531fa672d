"""The Ray executor: one cloud, one edge server per edge group, a few client pools."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from transformers import PreTrainedModel

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.protocols.protocol import RoundReport, RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.runtime.actors import HOST_KINDS, HostActor, PoolActor, WorkerFacts, WorkerSettings, answer_of
from elsa_ray.runtime.cluster import Cluster, join_cluster
from elsa_ray.runtime.conductor import Workers
from elsa_ray.runtime.demand import place_run
from elsa_ray.runtime.executor import ConductedExecutor
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError
from elsa_ray.runtime.fingerprint import NumericFingerprint, differences
from elsa_ray.runtime.jobs import CLOUD
from elsa_ray.runtime.metrics import RunMetrics
from elsa_ray.runtime.placement import PlacedActor, Placement
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.runtime.ray_placement import Reservation, cluster_nodes, nodes_at
from elsa_ray.runtime.weights import pack_model
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.evaluation import Score, evaluation_pieces
from elsa_ray.training.memory import ClientMemory
from elsa_ray.training.recipe import Recipe

Status = Callable[[str], None]


class RayExecutor(ConductedExecutor):
    """Trains on Ray actors, with the same numbers as inline.

    Args:
        setting: the run's circumstances.
        model: the frozen backbone on the CPU, in the run's precision.
        recipe: seed, optimiser, chains.
        address: of a running cluster; None for RAY_ADDRESS, else a local Ray.
        status: told what is waited for.
        announce: told what a reader of the run must know: where it is computed, and whether its bits can be had again.

    Raises:
        InputError: nothing answers at the address, or the actors ask for what no node can give.
        WaitTimeoutError: the cluster did not find room for the actors in time.
    """

    name = "ray"

    def __init__(
        self,
        setting: Setting,
        model: PreTrainedModel,
        recipe: Recipe,
        *,
        address: str | None,
        status: Status,
        announce: Status = lambda text: None,
    ) -> None:
        self._cluster: Cluster = join_cluster(address)
        self._workers: _RayWorkers | None = None
        try:
            placement = place_run(setting, cluster_nodes(with_gpu_memory=_limits_gpu_memory(setting)))
            for line in placement.lines():
                announce(line)
            self._workers = _RayWorkers(setting, model, recipe, placement, status)
            for line in differences(self._workers.fingerprints()):
                announce(f"not bit-reproducible: {line}")
        except BaseException:
            self._leave()
            raise
        super().__init__(setting, self._workers)

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        self._leave()
        super().close()

    def _leave(self) -> None:
        if self._workers is not None:
            self._workers.end()
            self._workers = None
        self._cluster.leave()

    def peak_memory_bytes(self) -> int:
        """Return the summed peaks of all actors' resident memory; shared pages count in each."""
        return self._workers.peak_memory_bytes() if self._workers is not None else 0

    def observe(self, report: RoundReport, results: RoundResults, wall_seconds: Mapping[str, float]) -> None:
        """Tell the cluster's monitoring of a finished round."""
        if self._workers is not None:
            self._workers.metrics.round(report, results, wall_seconds)

    def nodes_of_actors(self) -> dict[str, str]:
        """Return Ray's id of the node of each actor by the actor's name."""
        facts = self._workers.facts if self._workers is not None else {}
        return {name: own.node_id for name, own in facts.items()}

    def fingerprints(self) -> Mapping[str, Sequence[NumericFingerprint]]:
        """Return those of all actors."""
        return self._workers.fingerprints() if self._workers is not None else {}


def planned_placement(setting: Setting, address: str | None) -> Placement:
    """Return where the actors of a run would go now, without starting anything.

    Raises:
        InputError: nothing answers at the address, or the actors ask for what no node can give.
    """
    return place_run(setting, nodes_at(address, with_gpu_memory=_limits_gpu_memory(setting)))


class _RayWorkers(Workers):
    """Handles of the actors."""

    def __init__(
        self, setting: Setting, model: PreTrainedModel, recipe: Recipe, placement: Placement, status: Status
    ) -> None:
        config = setting.config
        self.in_flight = config.runtime.in_flight
        self.num_pools = len(placement.pools)
        self.num_pieces = len(evaluation_pieces(setting.task.test))
        self.near = placement.near()
        self.placement = placement
        self.facts: dict[str, WorkerFacts] = {}
        self.metrics = RunMetrics(config.name)
        self.metrics.workers(Counter("pools" if own.name.startswith("pool-") else own.kind for own in placement.actors))
        self._device_of_client = [device.name for device in setting.fleet.clients]
        self._timeout_seconds = config.runtime.timeout_seconds
        self._hosts: dict[str, Any] = {}
        self._pools: list[Any] = []
        settings = WorkerSettings(
            recipe=recipe,
            shape=setting.shape,
            layout=setting.layout,
            device=str(config.numerics.device),
            threads=config.runtime.threads,
            timeout_seconds=self._timeout_seconds,
            gpu_context_bytes=int(config.runtime.gpu_context),
            run=config.name,
        )
        packed = ray.put(pack_model(model, causal_lm=setting.task.kind == "causal_lm"))
        task = ray.put(setting.task)
        # Names are for people who watch the cluster; several runs may share it.
        run_name = f"{config.name}-{secrets.token_hex(4)}"
        self._reservation = Reservation(placement, run_name)
        try:
            for placed in placement.hosts:
                actor: Any = ray.remote(HostActor).options(**self._options(run_name, placed))
                kind = HOST_KINDS[placed.name == CLOUD]
                self._hosts[placed.name] = actor.remote(kind, _own(settings, placed), packed)
            for placed in placement.pools:
                actor = ray.remote(PoolActor).options(max_concurrency=self.in_flight, **self._options(run_name, placed))
                self._pools.append(actor.remote(_own(settings, placed), packed, task))
            self._wait_until_ready(config.runtime.startup_timeout_seconds, status)
        except BaseException:
            self.end()
            raise

    def _options(self, run_name: str, placed: PlacedActor) -> dict[str, Any]:
        return {"name": f"{run_name}/{placed.name}", **self._reservation.options(placed)}

    def pools_for(self, cohort: Cohort) -> Sequence[int]:
        """Return the pools of the device that most members have."""
        return self.placement.pools_for([self._device_of_client[member.key.client] for member in cohort.members])

    def cohorts_changed(self, waiting: int, in_pools: int) -> None:
        """Tell the cluster's monitoring."""
        self.metrics.waiting(waiting, in_pools)

    def fingerprints(self) -> dict[str, list[NumericFingerprint]]:
        """Return the actors' numeric fingerprints by kind."""
        by_kind: dict[str, list[NumericFingerprint]] = {}
        for placed in self.placement.actors:
            kind = "pools" if placed.name.startswith("pool-") else placed.kind
            by_kind.setdefault(kind, []).append(self.facts[placed.name].fingerprint)
        return by_kind

    async def call_host(self, host: str, method: str, *arguments: Any) -> Any:
        reference = self._hosts[host].call.remote(method, *arguments)
        return await answer_of(reference, self._timeout_seconds, f"{host} to do {method}")

    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: list[bytes], memories: list[ClientMemory]
    ) -> TrainedCohort:
        reference = self._pools[pool].train.remote(cohort, self._hosts[host], host, adapter_down, memories)
        # Each step may wait for its edge as long as any wait; the pool's other cohorts may take as long again.
        patience = self._timeout_seconds * (1 + cohort.num_steps) * self.in_flight
        trained: TrainedCohort = await answer_of(reference, patience, f"pool-{pool} to train cohort {cohort.name}")
        return trained

    async def score(self, pool: int, adapters: Any, piece: int, split: Split | None) -> Score:
        reference = self._pools[pool].score.remote(adapters, piece, split)
        patience = self._timeout_seconds * self.in_flight
        score: Score = await answer_of(reference, patience, f"pool-{pool} to score piece {piece} of the test set")
        return score

    def share(self, adapters: Adapters) -> Any:
        return ray.put(adapters)

    def end(self) -> None:
        """Kill all actors and give their room back."""
        for actor in [*self._pools, *self._hosts.values()]:
            ray.kill(actor)
        self._reservation.end()

    def peak_memory_bytes(self) -> int:
        references = [actor.peak_memory_bytes.remote() for actor in [*self._pools, *self._hosts.values()]]
        return sum(ray.get(references, timeout=self._timeout_seconds))

    def _wait_until_ready(self, timeout_seconds: float, status: Status) -> None:
        waiting: dict[Any, str] = {actor.ready.remote(): name for name, actor in self._hosts.items()}
        waiting |= {actor.ready.remote(): f"pool-{i}" for i, actor in enumerate(self._pools)}
        deadline, total = time.monotonic() + timeout_seconds, len(waiting)
        while waiting:
            status(f"starting Ray actors: {total - len(waiting)} of {total} ready")
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for reference in done:
                name = waiting.pop(reference)
                try:
                    self.facts[name] = ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise WorkerError(f"starting {name}: {str(error).strip().splitlines()[-1]}", str(error)) from None
            if waiting and time.monotonic() > deadline:
                names, free = ", ".join(sorted(waiting.values())), ray.available_resources()
                room = {key: value for key, value in free.items() if not key.startswith("node:")}
                raise WaitTimeoutError(
                    f"waited {timeout_seconds:g} s for room for {names}; free in the cluster: {room}"
                )


def _own(settings: WorkerSettings, placed: PlacedActor) -> WorkerSettings:
    return replace(settings, gpu_memory_bytes=placed.need.gpu_memory_bytes)


def _limits_gpu_memory(setting: Setting) -> bool:
    runtime = setting.config.runtime
    asked = (runtime.cloud_resources, runtime.edge_resources, runtime.pool_resources, *runtime.pools_by_device.values())
    return setting.config.numerics.device == "cuda" and any(own.gpu_memory is not None for own in asked)
