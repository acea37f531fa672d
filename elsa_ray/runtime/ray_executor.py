"""The Ray executor: one cloud, one edge server per edge group, a few client pools."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import ray
from transformers import PreTrainedModel

from elsa_ray.config.runtime import ActorResources
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.protocols.protocol import RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.runtime.actors import HOST_KINDS, WATCHING, HostActor, PoolActor, WorkerSettings, answer_of
from elsa_ray.runtime.cluster import Cluster, join_cluster
from elsa_ray.runtime.conductor import Workers, all_of
from elsa_ray.runtime.executor import ConductedExecutor
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, WorkerLostError
from elsa_ray.runtime.jobs import CLOUD, host_names, pool_name
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.runtime.shared import Shared
from elsa_ray.runtime.watch import Watch, trained_cohort
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

    def _run_to_end(self, coroutine: Coroutine[Any, Any, RoundResults]) -> RoundResults:
        assert self._workers is not None
        return super()._run_to_end(_watched(coroutine, self._workers.watch))


async def _watched(coroutine: Coroutine[Any, Any, RoundResults], watch: Watch) -> RoundResults:
    looking = asyncio.ensure_future(watch.look_forever())
    try:
        return await coroutine
    finally:
        looking.cancel()


class _RayWorkers(Workers):
    """Handles of the actors."""

    def __init__(self, setting: Setting, model: PreTrainedModel, recipe: Recipe, status: Status) -> None:
        config = setting.config
        self.in_flight = config.runtime.in_flight
        self.num_pools = num_pools(setting)
        self.num_pieces = len(evaluation_pieces(setting.task.test))
        self.watch = Watch(status)
        self._status = status
        self._config = config.runtime
        self._timeout_seconds = config.runtime.timeout_seconds
        self._hosts: dict[str, Any] = {}
        self._pools: dict[int, Any] = {}
        self._working: set[int] = set()
        self._settings = WorkerSettings(
            recipe=recipe,
            shape=setting.shape,
            layout=setting.layout,
            device=str(config.numerics.device),
            threads=config.runtime.threads,
            timeout_seconds=self._timeout_seconds,
        )
        self._packed = Shared(lambda: pack_model(model, causal_lm=setting.task.kind == "causal_lm"))
        self._task = Shared(lambda: setting.task)
        self._shares = _Shares(setting, self.num_pools)
        # Names are for people who watch the cluster; several runs may share it.
        self._run_name = f"{config.name}-{secrets.token_hex(4)}"
        self._num_started: Counter[str] = Counter()
        for name in [CLOUD, *host_names(setting)]:
            self._start_host(name)
        for pool in range(self.num_pools):
            self._start_pool(pool)
        self._wait_until_ready(config.runtime.startup_timeout_seconds, status)
        self._working.update(self._pools)

    def _start_host(self, name: str) -> None:
        is_cloud = name == CLOUD
        asked = self._config.cloud_resources if is_cloud else self._config.edge_resources
        options = {"name": self._actor_name(name), **self._shares.of(asked)}
        actor: Any = ray.remote(HostActor).options(**options)
        self._hosts[name] = actor.remote(HOST_KINDS[is_cloud], self._settings, self._packed.reference)

    def _start_pool(self, pool: int) -> None:
        options = {"name": self._actor_name(pool_name(pool)), "max_concurrency": self.in_flight}
        asked = self._shares.of(self._config.pool_resources)
        remote: Any = ray.remote
        actor = remote(concurrency_groups={WATCHING: 1})(PoolActor).options(**options, **asked)
        self._pools[pool] = actor.remote(self._settings, self._packed.reference, self._task.reference)

    def _actor_name(self, name: str) -> str:
        """Return a name that no actor of this run has had."""
        self._num_started[name] += 1
        again = f"-again-{self._num_started[name] - 1}" if self._num_started[name] > 1 else ""
        return f"{self._run_name}/{name}{again}"

    def tell(self, text: str, details: str = "") -> None:
        super().tell(text, details)
        self._status(text)

    def is_working(self, pool: int) -> bool:
        return pool in self._working

    def replace_pool(self, pool: int) -> None:
        self._working.discard(pool)
        ray.kill(self._pools[pool])
        self._renew_shared()
        self._start_pool(pool)

    async def revive(self, pool: int) -> None:
        name, patience = pool_name(pool), self._config.startup_timeout_seconds
        with self.watch.waiting(f"room for {name}"):
            await answer_of(self._pools[pool].ready.remote(), patience, f"room for {name}", name)
        self._working.add(pool)

    async def recover(self, loss: WorkerLostError) -> None:
        self._renew_shared()
        await all_of(self._recover_host(name, is_lost=name == loss.worker) for name in self._hosts)
        await all_of(self._recover_pool(pool) for pool in sorted(self._working))

    async def _recover_host(self, name: str, *, is_lost: bool) -> None:
        if not is_lost:
            try:
                await self._call(self._hosts[name].ready.remote(), f"{name} to answer", name)
                return
            except WorkerLostError as loss:
                self.tell(f"{loss}; it is replaced")
        ray.kill(self._hosts[name])
        self._start_host(name)
        with self.watch.waiting(f"room for {name}"):
            patience = self._config.startup_timeout_seconds
            await answer_of(self._hosts[name].ready.remote(), patience, f"room for {name}", name)

    async def _recover_pool(self, pool: int) -> None:
        name = pool_name(pool)
        try:
            await self._call(self._pools[pool].alive.remote(), f"{name} to answer", name)
        except WorkerLostError as loss:
            self.tell(f"{loss}; it is replaced")
            self.replace_pool(pool)

    def _renew_shared(self) -> None:
        self._packed.renew()
        self._task.renew()

    async def _call(self, reference: Any, what: str, worker: str) -> Any:
        with self.watch.waiting(what):
            return await answer_of(reference, self._timeout_seconds, what, worker)

    async def call_host(self, host: str, method: str, *arguments: Any) -> Any:
        return await self._call(self._hosts[host].call.remote(method, *arguments), f"{host} to do {method}", host)

    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: list[bytes | None], memories: list[ClientMemory]
    ) -> TrainedCohort:
        actor, name = self._pools[pool], pool_name(pool)
        reference = actor.train.remote(cohort, self._hosts[host], host, adapter_down, memories)
        # Each step may wait for its edge as long as any wait; the pool's other cohorts may take as long again.
        patience = self._timeout_seconds * (1 + cohort.num_steps) * self.in_flight
        limits = {"timeout_seconds": self._timeout_seconds, "patience_seconds": patience}
        try:
            with self.watch.waiting(f"{name} to train cohort {cohort.name}") as wait:
                return await trained_cohort(actor, name, cohort, reference, **limits, wait=wait)
        except asyncio.CancelledError:
            # Nobody wants it any more: the pool shall have room for what comes next.
            ray.cancel(reference)
            raise

    async def score(self, pool: int, adapters: Any, piece: int, split: Split | None) -> Score:
        name = pool_name(pool)
        what = f"{name} to score piece {piece} of the test set"
        patience = self._timeout_seconds * self.in_flight
        with self.watch.waiting(what):
            score: Score = await answer_of(self._pools[pool].score.remote(adapters, piece, split), patience, what, name)
        return score

    def share(self, adapters: Adapters) -> Any:
        return ray.put(adapters)

    def end(self) -> None:
        """Kill all actors."""
        for actor in [*self._pools.values(), *self._hosts.values()]:
            ray.kill(actor)

    def peak_memory_bytes(self) -> int:
        actors = [*(self._pools[pool] for pool in sorted(self._working)), *self._hosts.values()]
        answers, _ = ray.wait(
            [actor.peak_memory_bytes.remote() for actor in actors],
            num_returns=len(actors),
            timeout=self._timeout_seconds,
        )
        total = 0
        for answer in answers:
            # Who has died since it was last needed is no reason to fail at the very end.
            with suppress(ray.exceptions.RayError):
                total += ray.get(answer)
        return total

    def _wait_until_ready(self, timeout_seconds: float, status: Status) -> None:
        waiting: dict[Any, str] = {actor.ready.remote(): name for name, actor in self._hosts.items()}
        waiting |= {actor.ready.remote(): pool_name(pool) for pool, actor in self._pools.items()}
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
