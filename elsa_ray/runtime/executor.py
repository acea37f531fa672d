"""What carries a round's work out: the interface, the in-process executor, and the one that only plans."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.protocol import ProtocolState, RoundReport, RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.wall_time import DRIVER, WallSeconds, WallStage
from elsa_ray.runtime.cloud import Cloud
from elsa_ray.runtime.conductor import Conductor, Workers
from elsa_ray.runtime.edge_server import EdgeServer
from elsa_ray.runtime.failure import naming
from elsa_ray.runtime.fingerprint import ALONE, NumericFingerprint, this_process
from elsa_ray.runtime.host import ModelHost
from elsa_ray.runtime.jobs import CLOUD, host_names, host_of_node, pool_name, round_job
from elsa_ray.runtime.pool import ClientPool, TrainedCohort, Uploads
from elsa_ray.runtime.stopwatch import Stopwatch
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.evaluation import Score
from elsa_ray.training.memory import ClientMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.plan import Plan
from elsa_ray.world.timeline import Timeline


class Executor(ABC):
    """Trains what a timeline says has survived. Use it as a context manager: it may hold workers."""

    name: str

    def __init__(self, watch: Stopwatch | None = None) -> None:
        self._watch = watch if watch is not None else Stopwatch(WallStage.COMPUTE, alone=True)

    @abstractmethod
    def run(self, plan: Plan, timeline: Timeline, state: ProtocolState, *, evaluate: bool) -> RoundResults:
        """Do a round's work and return its results."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all workers."""
        return None

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory of workers outside of this process."""
        return 0

    def fingerprints(self) -> Mapping[str, Sequence[NumericFingerprint]]:
        """Return the workers' numeric fingerprints by kind; none where nothing is computed.

        The lists grow as long as the executor lives, by those of workers that others were replaced by.
        """
        return {}

    def take_wall_seconds(self) -> Mapping[str, WallSeconds]:
        """Return what each actor has spent its wall time on since this was called last: this process first.

        An actor that has been started since, or does not answer, has less than the time that has passed.
        """
        return {DRIVER: self._watch.take()}

    def observe(self, report: RoundReport, results: RoundResults, wall_seconds: Mapping[str, float]) -> None:
        """Hear of a finished round, for whoever watches the workers."""
        return None


class NoExecutor(Executor):
    """Timing only: nothing is trained, no weight is loaded."""

    name = "none"

    def run(self, plan: Plan, timeline: Timeline, state: ProtocolState, *, evaluate: bool) -> RoundResults:
        """Return no results."""
        return RoundResults()


class ConductedExecutor(Executor):
    """Runs the conductor's rounds on workers of some kind."""

    def __init__(self, setting: Setting, workers: Workers, watch: Stopwatch | None = None) -> None:
        super().__init__(watch)
        self._setting, self._take_of_workers = setting, workers.take_wall_seconds
        self._conductor = Conductor(workers, setting)
        # One event loop for all rounds: making one is not safe against a Ctrl-C that comes in between.
        self._loop = asyncio.Runner()

    def run(self, plan: Plan, timeline: Timeline, state: ProtocolState, *, evaluate: bool) -> RoundResults:
        """Train, aggregate and, if asked, evaluate."""
        assert state.adapters is not None, "a run that trains starts from adapters"
        job = round_job(self._setting, plan, timeline)
        hosts = {version: host_of_node(self._setting, version.node) for version in state.versions}
        with self._watch.conducting():
            return self._run_to_end(self._conductor.run_round(job, state, hosts, evaluate=evaluate))

    def take_wall_seconds(self) -> Mapping[str, WallSeconds]:
        """Return what this process and all workers have spent their time on."""
        return {**super().take_wall_seconds(), **self._take_of_workers()}

    def close(self) -> None:
        """End the event loop."""
        self._loop.close()

    def _run_to_end(self, coroutine: Coroutine[Any, Any, RoundResults]) -> RoundResults:
        """Run a coroutine from synchronous code, also inside of a notebook, whose thread has a loop already."""
        results: list[RoundResults] = []

        async def keep() -> None:
            # Not returned: restoring the handler of Ctrl-C, asyncio has the task's result turned into text, and that
            # of all clients' tensors takes as long as their training.
            results.append(await coroutine)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._run_here(keep())
        else:
            with ThreadPoolExecutor(1, thread_name_prefix="elsa-ray-conductor") as thread:
                thread.submit(self._loop.run, keep()).result()
        return results[0]

    def _run_here(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            self._loop.run(coroutine)
        except asyncio.CancelledError:
            # Nobody else cancels it: a Ctrl-C came while the loop began, which then starts to count them.
            raise KeyboardInterrupt from None


class InlineExecutor(ConductedExecutor):
    """Everything in this process, one thing after the other: for debugging and tests.

    Args:
        setting: the run's circumstances.
        model: the frozen backbone.
        recipe: seed, optimiser, chains.
    """

    name = "inline"

    def __init__(self, setting: Setting, model: TripartiteModel, recipe: Recipe) -> None:
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(setting.config.runtime.threads)
        watch = Stopwatch(WallStage.COMPUTE, alone=False)
        super().__init__(setting, InlineWorkers(setting, model, recipe, watch), watch)

    def fingerprints(self) -> Mapping[str, Sequence[NumericFingerprint]]:
        """Return this process's."""
        return {ALONE: [this_process(str(self._setting.config.numerics.device))]}

    def close(self) -> None:
        """Give this process its threads back."""
        super().close()
        torch.set_num_threads(self._threads_before)


class InlineWorkers(Workers):
    """Plain objects, called directly."""

    num_pools = 1
    in_flight = 1

    def __init__(
        self, setting: Setting, model: TripartiteModel, recipe: Recipe, driver: Stopwatch | None = None
    ) -> None:
        self._driver = driver if driver is not None else Stopwatch(WallStage.COMPUTE, alone=False)
        self._pool = ClientPool(model, recipe, setting.task)
        self._hosts: dict[str, ModelHost] = {name: EdgeServer(model, recipe) for name in host_names(setting)}
        self._hosts[CLOUD] = Cloud(model, recipe)
        self.num_pieces = self._pool.num_pieces

    async def call_host(self, host: str, method: str, *arguments: Any) -> Any:
        """Call it here and now."""
        own = self._hosts[host]
        with naming(f"{host}: {method}", ()), self._driver_waits(), own.watch.spend(WallStage.COMPUTE):
            return getattr(own, method)(*arguments)

    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: list[bytes | None], memories: list[ClientMemory]
    ) -> tuple[TrainedCohort, Uploads]:
        """Train a cohort here and now."""

        async def ask_edge(request: EdgeRequest) -> Payloads:
            own = self._hosts[host]
            with own.watch.spend(WallStage.COMPUTE):
                return own.answer(cohort.ticket, request)

        with self._driver_waits():
            # Nothing in it gives way to anything else: the edge answers at once.
            return await self._pool.train(cohort, adapter_down, memories, ask_edge)

    async def score(self, pool: int, adapters: Adapters, piece: int, split: Split | None) -> Score:
        """Score a piece here and now."""
        with self._driver_waits():
            return self._pool.score(adapters, piece, split)

    def take_wall_seconds(self) -> Mapping[str, WallSeconds]:
        """Return what each has spent while it was its turn; waiting is the turns of others."""
        watches = {**{name: host.watch for name, host in self._hosts.items()}, pool_name(0): self._pool.watch}
        return {name: watch.take() for name, watch in watches.items()}

    def _driver_waits(self) -> AbstractContextManager[None]:
        return self._driver.spend(WallStage.WAITING)
