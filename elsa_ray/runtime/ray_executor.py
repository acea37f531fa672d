"""The Ray executor: one cloud, one edge server per edge group, a few client pools."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from typing import Any

import ray
from transformers import PreTrainedModel

from elsa_ray.config.runtime import ActorResources
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.protocols.protocol import DRIVER, Stage, StageSeconds
from elsa_ray.protocols.setting import Setting
from elsa_ray.runtime.actors import HOST_KINDS, HostActor, PoolActor, WorkerSettings, answer_of
from elsa_ray.runtime.cluster import Cluster, join_cluster
from elsa_ray.runtime.conductor import Workers
from elsa_ray.runtime.executor import ConductedExecutor
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError
from elsa_ray.runtime.jobs import CLOUD, host_names
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.runtime.stopwatch import Stopwatch
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

    Raises:
        InputError: nothing answers at the address.
        WaitTimeoutError: the cluster did not find room for the actors in time.
    """

    name = "ray"

    def __init__(
        self, setting: Setting, model: PreTrainedModel, recipe: Recipe, *, address: str | None, status: Status
    ) -> None:
        self._cluster: Cluster = join_cluster(address)
        self._workers: _RayWorkers | None = None
        try:
            self._workers = _RayWorkers(setting, model, recipe, status)
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


class _RayWorkers(Workers):
    """Handles of the actors."""

    def __init__(self, setting: Setting, model: PreTrainedModel, recipe: Recipe, status: Status) -> None:
        config = setting.config
        self.in_flight = config.runtime.in_flight
        self.num_pools = num_pools(setting)
        self.num_pieces = len(evaluation_pieces(setting.task.test))
        self._timeout_seconds = config.runtime.timeout_seconds
        self._watch = Stopwatch()
        self._hosts: dict[str, Any] = {}
        self._pools: list[Any] = []
        settings = WorkerSettings(
            recipe=recipe,
            shape=setting.shape,
            layout=setting.layout,
            device=str(config.numerics.device),
            threads=config.runtime.threads,
            timeout_seconds=self._timeout_seconds,
        )
        packed = ray.put(pack_model(model, causal_lm=setting.task.kind == "causal_lm"))
        task = ray.put(setting.task)
        shares = _Shares(setting, self.num_pools)
        # Names are for people who watch the cluster; several runs may share it.
        run_name = f"{config.name}-{secrets.token_hex(4)}"
        for name in [CLOUD, *host_names(setting)]:
            is_cloud = name == CLOUD
            asked = config.runtime.cloud_resources if is_cloud else config.runtime.edge_resources
            actor: Any = ray.remote(HostActor).options(name=f"{run_name}/{name}", **shares.of(asked))
            self._hosts[name] = actor.remote(HOST_KINDS[is_cloud], settings, packed)
        for position in range(self.num_pools):
            options = {"name": f"{run_name}/pool-{position}", "max_concurrency": self.in_flight}
            actor = ray.remote(PoolActor).options(**options, **shares.of(config.runtime.pool_resources))
            self._pools.append(actor.remote(settings, packed, task))
        self._wait_until_ready(config.runtime.startup_timeout_seconds, status)

    async def call_host(self, host: str, method: str, *arguments: Any) -> Any:
        with self._watch.spend(Stage.MESSAGES):
            reference = self._hosts[host].call.remote(method, *arguments)
        return await answer_of(reference, self._timeout_seconds, f"{host} to do {method}")

    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: list[bytes], memories: list[ClientMemory]
    ) -> TrainedCohort:
        with self._watch.spend(Stage.MESSAGES):
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

    async def take_seconds(self) -> dict[str, StageSeconds]:
        actors = {**{f"pool-{number}": pool for number, pool in enumerate(self._pools)}, **self._hosts}
        references = {name: actor.take_seconds.remote() for name, actor in actors.items()}
        each = [
            await answer_of(reference, self._timeout_seconds, f"{name} to tell what it has spent time on")
            for name, reference in references.items()
        ]
        return {DRIVER: self._watch.take(), **dict(zip(references, each, strict=True))}

    def share(self, adapters: Adapters) -> Any:
        return ray.put(adapters)

    def end(self) -> None:
        """Kill all actors."""
        for actor in [*self._pools, *self._hosts.values()]:
            ray.kill(actor)

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
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    raise WorkerError(f"starting {name}: {str(error).strip().splitlines()[-1]}", str(error)) from None
            if waiting and time.monotonic() > deadline:
                names, free = ", ".join(sorted(waiting.values())), ray.available_resources()
                room = {key: value for key, value in free.items() if not key.startswith("node:")}
                raise WaitTimeoutError(
                    f"waited {timeout_seconds:g} s for room for {names}; free in the cluster: {room}"
                )


class _Shares:
    """Turns the config's resources into Ray options, with ``auto`` decided from what the cluster has."""

    def __init__(self, setting: Setting, pools: int) -> None:
        total = ray.cluster_resources()
        actors = pools + len(host_names(setting)) + 1
        on_gpu = setting.config.numerics.device == "cuda"
        self._num_cpus = min(1.0, _rounded_down(total.get("CPU", 1.0) / pools))
        self._num_gpus = _rounded_down(total.get("GPU", 0.0) / actors) if on_gpu else 0.0

    def of(self, asked: ActorResources) -> dict[str, Any]:
        """Return the options of an actor."""
        return {
            "num_cpus": self._num_cpus if asked.num_cpus == "auto" else asked.num_cpus,
            "num_gpus": self._num_gpus if asked.num_gpus == "auto" else asked.num_gpus,
            "resources": dict(asked.custom),
        }


def num_pools(setting: Setting) -> int:
    """Return the number of client pools: as configured, by clients a pool, or one a CPU of the cluster."""
    runtime = setting.config.runtime
    if runtime.clients_per_pool is not None:
        return math.ceil(setting.num_clients / runtime.clients_per_pool)
    if runtime.pools == "auto":
        return max(1, min(int(ray.cluster_resources().get("CPU", 1)), setting.num_clients))
    return runtime.pools


def _rounded_down(share: float) -> float:
    """Ray counts resources in ten-thousandths."""
    return math.floor(share * 10_000) / 10_000
