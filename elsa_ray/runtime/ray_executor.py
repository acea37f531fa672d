"""The Ray executor: one cloud, actors with the edge groups, a few client pools."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from transformers import PreTrainedModel

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.protocols.protocol import RoundReport, RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.wall_time import WallSeconds
from elsa_ray.runtime.actors import (
    WATCHING,
    HostActor,
    HostAddress,
    PoolActor,
    WorkerFacts,
    WorkerSettings,
    answer_of,
)
from elsa_ray.runtime.cluster import Cluster, join_cluster
from elsa_ray.runtime.conductor import Workers, all_of
from elsa_ray.runtime.demand import place_run
from elsa_ray.runtime.executor import ConductedExecutor
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, WorkerLostError
from elsa_ray.runtime.fingerprint import FingerprintLog, NumericFingerprint, differences
from elsa_ray.runtime.jobs import CLOUD, pool_name
from elsa_ray.runtime.metrics import RunMetrics
from elsa_ray.runtime.placement import PlacedActor, Placement, device_of
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.runtime.ray_placement import Reservation, cluster_nodes, is_alive, nodes_at, resources_of
from elsa_ray.runtime.shared import Shared
from elsa_ray.runtime.watch import Watch, trained_cohort
from elsa_ray.runtime.weights import pack_model
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.evaluation import Score, evaluation_pieces
from elsa_ray.training.memory import ClientMemory, CutMemory
from elsa_ray.training.recipe import Recipe

Status = Callable[[str], None]

_NODE_LOOK_SECONDS = 5.0
_PROFILE_SECONDS = 5.0


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
            for line in self._workers.new_differences():
                announce(line)
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
        """Return those of all actors; the lists grow where an actor gives way to an unlike one."""
        return self._workers.fingerprints() if self._workers is not None else {}

    def _run_to_end(self, coroutine: Coroutine[Any, Any, RoundResults]) -> RoundResults:
        assert self._workers is not None
        return super()._run_to_end(_watched(coroutine, self._workers.watch))


async def _watched(coroutine: Coroutine[Any, Any, RoundResults], watch: Watch) -> RoundResults:
    looking = asyncio.ensure_future(watch.look_forever())
    try:
        return await coroutine
    finally:
        looking.cancel()


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
        self.metrics.workers(Counter(_kind_name(own) for own in placement.actors))
        self.watch = Watch(status)
        self._device_of_client = [device.name for device in setting.fleet.clients]
        self._status = status
        self._config = config.runtime
        self._timeout_seconds = config.runtime.timeout_seconds
        self._host_actors: dict[str, Any] = {}
        self._actor_of_host = {host: own.name for own in placement.hosts for host in own.hosts}
        self._pools: dict[int, Any] = {}
        self._working: set[int] = set()
        self._settings = WorkerSettings(
            recipe=recipe,
            shape=setting.shape,
            layout=setting.layout,
            device=str(config.numerics.device),
            threads=config.runtime.threads,
            timeout_seconds=self._timeout_seconds,
            gpu_context_bytes=int(config.runtime.gpu_context),
            run=config.name,
        )
        self._packed = Shared(lambda: pack_model(model, causal_lm=setting.task.kind == "causal_lm"))
        self._task = Shared(lambda: setting.task)
        self._placed = {own.name: own for own in placement.actors}
        self._fingerprints = FingerprintLog(_kind_name(own) for own in placement.actors)
        self._known_differences: set[str] = set()
        # Names are for people who watch the cluster; several runs may share it.
        self._run_name = f"{config.name}-{secrets.token_hex(4)}"
        self._num_started: Counter[str] = Counter()
        self._moved: set[str] = set()
        self._reservation = Reservation(placement, self._run_name)
        try:
            for placed in placement.hosts:
                self._start_host_actor(placed.name)
            for pool in range(self.num_pools):
                self._start_pool(pool)
            self._wait_until_ready(config.runtime.startup_timeout_seconds, status)
        except BaseException:
            self.end()
            raise
        self._working.update(self._pools)

    def _start_host_actor(self, name: str) -> None:
        placed = self._placed[name]
        actor: Any = ray.remote(HostActor).options(**self._options(placed))
        self._host_actors[name] = actor.remote(placed.hosts, self._settings_of(placed), self._packed.reference)

    def _start_pool(self, pool: int) -> None:
        placed = self.placement.pools[pool]
        remote: Any = ray.remote
        actor = remote(concurrency_groups={WATCHING: 1})(PoolActor).options(
            max_concurrency=self.in_flight, **self._options(placed)
        )
        self._pools[pool] = actor.remote(self._settings_of(placed), self._packed.reference, self._task.reference)

    def _options(self, placed: PlacedActor) -> dict[str, Any]:
        """Return Ray's options for an actor: where its room is reserved, or, if that node is gone, anywhere else."""
        self._num_started[placed.name] += 1
        number = self._num_started[placed.name] - 1
        if number and not is_alive(placed.node_id):
            self._moved.add(placed.name)
        asked = resources_of(placed) if placed.name in self._moved else self._reservation.options(placed)
        # A name that no actor of this run has had.
        return {"name": f"{self._run_name}/{placed.name}{f'-again-{number}' if number else ''}", **asked}

    def _settings_of(self, placed: PlacedActor) -> WorkerSettings:
        device = device_of(placed, self._settings.device)
        return replace(self._settings, device=device, gpu_memory_bytes=placed.need.gpu_memory_bytes)

    def pools_for(self, cohort: Cohort) -> Sequence[int]:
        """Return the pools of the device that most members have."""
        return self.placement.pools_for([self._device_of_client[member.key.client] for member in cohort.members])

    def cohorts_changed(self, waiting: int, in_pools: int) -> None:
        """Tell the cluster's monitoring."""
        self.metrics.waiting(waiting, in_pools)

    def fingerprints(self) -> Mapping[str, Sequence[NumericFingerprint]]:
        """Return the numeric fingerprints by kind of all actors so far."""
        return self._fingerprints.by_kind

    def _learn(self, name: str, facts: WorkerFacts) -> None:
        self.facts[name] = facts
        self._fingerprints.add(_kind_name(self._placed[name]), name, facts.fingerprint)

    def new_differences(self) -> list[str]:
        """Return what makes the workers' numbers differ, as far as it was not returned before."""
        new = [line for line in differences(self.fingerprints()) if line not in self._known_differences]
        self._known_differences.update(new)
        return [f"not bit-reproducible: {line}" for line in new]

    def tell(self, text: str, details: str = "") -> None:
        super().tell(text, details)
        self._status(text)

    def is_working(self, pool: int) -> bool:
        return pool in self._working

    def replace_pool(self, pool: int) -> None:
        self._working.discard(pool)
        self.metrics.failed("pool")
        ray.kill(self._pools[pool])
        self._renew_shared()
        self._start_pool(pool)

    async def revive(self, pool: int) -> None:
        await self._until_ready(pool_name(pool), lambda: self._pools[pool], lambda: self._start_pool(pool))
        self._working.add(pool)

    async def _until_ready(self, name: str, actor: Callable[[], Any], start: Callable[[], None]) -> None:
        """Wait for an actor that was started again. Ray may learn only then that its node is gone."""
        what, patience = f"room for {name}", self._config.startup_timeout_seconds
        with self.watch.waiting(what):
            answer = asyncio.ensure_future(answer_of(actor().ready.remote(), patience, what, name))
            try:
                while not (await asyncio.wait({answer}, timeout=_NODE_LOOK_SECONDS))[0]:
                    if name not in self._moved and not is_alive(self._placed[name].node_id):
                        answer.cancel()
                        ray.kill(actor())
                        start()
                        answer = asyncio.ensure_future(answer_of(actor().ready.remote(), patience, what, name))
                self._learn(name, answer.result())
            finally:
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)
        for line in self.new_differences():
            self.tell(line)

    async def recover(self, loss: WorkerLostError) -> None:
        self.metrics.failed("round")
        self._renew_shared()
        await all_of(self._recover_host_actor(name, is_lost=name == loss.worker) for name in self._host_actors)
        await all_of(self._recover_pool(pool) for pool in sorted(self._working))

    async def _recover_host_actor(self, name: str, *, is_lost: bool) -> None:
        if not is_lost:
            try:
                await self._call(self._host_actors[name].ready.remote(), f"{name} to answer", name)
                return
            except WorkerLostError as loss:
                self.tell(f"{loss}; it is replaced")
        self.metrics.failed("cloud" if name == CLOUD else "edge")
        ray.kill(self._host_actors[name])
        self._start_host_actor(name)
        await self._until_ready(name, lambda: self._host_actors[name], lambda: self._start_host_actor(name))

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
        address = self._address_of(host)
        reference = address.actor.call.remote(host, method, *arguments)
        return await self._call(reference, f"{host} to do {method}", address.worker)

    def _address_of(self, host: str) -> HostAddress:
        worker = self._actor_of_host[host]
        return HostAddress(host, worker, self._host_actors[worker])

    async def start_cohort(self, host: str, cohort: Cohort, memories: list[CutMemory]) -> Any:
        # Payloads are many bytes, and of no use here: they are passed on unread, and large ones stay where they lie.
        address = self._address_of(host)
        started, adapter_down = address.actor.start_cohort.remote(host, cohort, memories)
        await self._call(started, f"{host} to do start_cohort", address.worker)
        return adapter_down

    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: Any, memories: list[ClientMemory]
    ) -> tuple[TrainedCohort, Any]:
        actor, name = self._pools[pool], pool_name(pool)
        reference, uploads = actor.train.remote(cohort, self._address_of(host), adapter_down, memories)
        # Each step may wait for its edge as long as any wait; the pool's other cohorts may take as long again.
        patience = self._timeout_seconds * (1 + cohort.num_steps) * self.in_flight
        limits = {"timeout_seconds": self._timeout_seconds, "patience_seconds": patience}
        try:
            with self.watch.waiting(f"{name} to train cohort {cohort.name}") as wait:
                return await trained_cohort(actor, name, cohort, reference, **limits, wait=wait), uploads
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
        """Kill all actors and give their room back."""
        for actor in [*self._pools.values(), *self._host_actors.values()]:
            ray.kill(actor)
        self._reservation.end()

    def take_wall_seconds(self) -> Mapping[str, WallSeconds]:
        actors = {**self._host_actors, **{pool_name(pool): self._pools[pool] for pool in sorted(self._working)}}
        waiting = {actor.take_wall_seconds.remote(): name for name, actor in actors.items()}
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_PROFILE_SECONDS)
        taken: dict[str, WallSeconds] = {}
        for answer in done:
            # Who has died is found out when it is needed; a profile is no reason to fail.
            with suppress(ray.exceptions.RayError):
                taken[waiting[answer]] = ray.get(answer)
        return {name: taken[name] for name in actors if name in taken}

    def peak_memory_bytes(self) -> int:
        actors = [*(self._pools[pool] for pool in sorted(self._working)), *self._host_actors.values()]
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
        waiting: dict[Any, str] = {actor.ready.remote(): name for name, actor in self._host_actors.items()}
        waiting |= {actor.ready.remote(): pool_name(pool) for pool, actor in self._pools.items()}
        deadline, total = time.monotonic() + timeout_seconds, len(waiting)
        while waiting:
            status(f"starting Ray actors: {total - len(waiting)} of {total} ready")
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for reference in done:
                name = waiting.pop(reference)
                try:
                    self._learn(name, ray.get(reference))
                except ray.exceptions.RayError as error:
                    raise WorkerError(f"starting {name}: {str(error).strip().splitlines()[-1]}", str(error)) from None
            if waiting and time.monotonic() > deadline:
                names, free = ", ".join(sorted(waiting.values())), ray.available_resources()
                room = {key: value for key, value in free.items() if not key.startswith("node:")}
                raise WaitTimeoutError(
                    f"waited {timeout_seconds:g} s for room for {names}; free in the cluster: {room}"
                )


def _kind_name(placed: PlacedActor) -> str:
    """Return what a worker counts as where pools of all devices are one kind."""
    return "pools" if placed.name.startswith("pool-") else placed.kind


def _limits_gpu_memory(setting: Setting) -> bool:
    runtime = setting.config.runtime
    asked = (runtime.cloud_resources, runtime.edge_resources, runtime.pool_resources, *runtime.pools_by_device.values())
    return setting.config.numerics.device == "cuda" and any(own.gpu_memory is not None for own in asked)
