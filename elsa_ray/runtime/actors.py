"""The Ray actors: thin shells around pools and hosts."""

from __future__ import annotations

import asyncio
import resource
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from elsa_ray.model.adapters import AdapterLayout, Adapters
from elsa_ray.model.families import family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.wall_time import WallSeconds, WallStage
from elsa_ray.runtime.cloud import Cloud
from elsa_ray.runtime.edge_server import EdgeServer
from elsa_ray.runtime.failure import NO_WORKER, WaitTimeoutError, WorkerError, WorkerLostError, naming
from elsa_ray.runtime.fingerprint import NumericFingerprint, this_process
from elsa_ray.runtime.gpu_memory import hold_to
from elsa_ray.runtime.heap import keep_freed_memory
from elsa_ray.runtime.host import ModelHost
from elsa_ray.runtime.jobs import CLOUD
from elsa_ray.runtime.metrics import WorkerMetrics
from elsa_ray.runtime.pool import ClientPool, TrainedCohort, Uploads
from elsa_ray.runtime.stopwatch import Stopwatch
from elsa_ray.runtime.weights import PackedModel, unpack_model
from elsa_ray.tasks.task import Task
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.evaluation import Score
from elsa_ray.training.failure import Doing, NamedError
from elsa_ray.training.memory import ClientMemory, CutMemory
from elsa_ray.training.messages import Payloads
from elsa_ray.training.recipe import Recipe


@dataclass(frozen=True)
class WorkerSettings:
    """What every actor starts from.

    Attributes:
        recipe: seed, optimiser, chains.
        shape, layout: of the model.
        device: cpu or cuda.
        threads: of each actor's matrix products; fixed, so that the numbers are.
        timeout_seconds: longest wait for another actor's answer.
        gpu_memory_bytes: most that the actor may take of its GPU, context included; None for no limit.
        gpu_context_bytes: of the context.
        run: the run's name, for its metrics.
    """

    recipe: Recipe
    shape: ModelShape
    layout: AdapterLayout
    device: str
    threads: int
    timeout_seconds: float
    gpu_memory_bytes: int | None = None
    gpu_context_bytes: int = 0
    run: str = ""

    def build_model(self, packed: PackedModel) -> TripartiteModel:
        """Return the cohort's backbone around the shared weights."""
        torch.set_num_threads(self.threads)
        keep_freed_memory()
        if self.gpu_memory_bytes is not None and self.device == "cuda":
            hold_to(self.gpu_memory_bytes, self.gpu_context_bytes)
        model = unpack_model(packed).to(self.device)
        return TripartiteModel(model, family_of(model.config), self.shape, self.layout)


@dataclass(frozen=True)
class WorkerFacts:
    """What an actor tells of where it runs.

    Attributes:
        node_id: Ray's.
        fingerprint: of its arithmetic.
    """

    node_id: str
    fingerprint: NumericFingerprint


class _Actor:
    """What all actors can tell of themselves."""

    _device: str

    def ready(self) -> WorkerFacts:
        """Answer once the actor is built."""
        return WorkerFacts(ray.get_runtime_context().get_node_id(), this_process(self._device))

    def peak_memory_bytes(self) -> int:
        """Return the most resident memory that this process had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class HostAddress:
    """Where a host can be called.

    Attributes:
        host: its name.
        worker: the name of the actor that carries it.
        actor: this actor's handle.
    """

    host: str
    worker: str
    actor: Any


class HostActor(_Actor):
    """Carries the cloud, or edge groups around one copy of the frozen weights."""

    def __init__(self, hosts: Sequence[str], settings: WorkerSettings, packed: PackedModel) -> None:
        self._device = settings.device
        is_cloud = CLOUD in hosts
        self._metrics = WorkerMetrics(settings.run, "cloud" if is_cloud else "edge")
        model = settings.build_model(packed)
        self._watch = Stopwatch(alone=True)
        kind: type[ModelHost] = Cloud if is_cloud else EdgeServer
        self._hosts = {name: kind(model, settings.recipe, self._watch) for name in hosts}

    def call(self, host: str, method: str, *arguments: Any) -> Any:
        """Call a method of a host."""
        with self._metrics.timed(method), naming(method, ()), self._watch.spend(WallStage.COMPUTE):
            return getattr(self._hosts[host], method)(*arguments)

    @ray.method(num_returns=2)
    def start_cohort(self, host: str, cohort: Cohort, memories: Sequence[CutMemory]) -> tuple[None, list[bytes | None]]:
        """Let a host start a cohort. The second value goes to a pool as it lies; the first says that it is there."""
        return None, self.call(host, "start_cohort", cohort, memories)

    def take_wall_seconds(self) -> WallSeconds:
        """Return what this actor has spent its time on since it was asked last."""
        return self._watch.take()


WATCHING = "watching"
"""The concurrency group of what a pool answers at any time, also while it computes: it has a thread of its own."""


class PoolActor(_Actor):
    """Carries a client pool. Asynchronous: while one cohort waits for its edge, another one trains."""

    def __init__(self, settings: WorkerSettings, packed: PackedModel, task: Task) -> None:
        self._device = settings.device
        self._metrics = WorkerMetrics(settings.run, "pool")
        self._timeout_seconds = settings.timeout_seconds
        self._thread: int | None = None
        model = settings.build_model(packed)
        self._watch = Stopwatch(alone=True)
        self._pool = ClientPool(model, settings.recipe, task, self._watch)

    @ray.method(num_returns=2)
    async def train(
        self,
        cohort: Cohort,
        address: HostAddress,
        adapter_down: Sequence[bytes | None],
        memories: Sequence[ClientMemory],
    ) -> tuple[TrainedCohort, Uploads]:
        """Train a cohort against its host; see ClientPool.train. The second value goes to the host as it lies."""
        self._thread = threading.get_ident()

        async def ask_edge(request: EdgeRequest) -> Payloads:
            what = f"{address.host} to answer {request.call.value} of step {request.step} of cohort {cohort.name}"
            reference = address.actor.call.remote(address.host, "answer", cohort.ticket, request)
            with self._metrics.timed("wait_for_edge"):
                payloads: Payloads = await answer_of(reference, self._timeout_seconds, what, address.worker)
            return payloads

        with self._metrics.timed("train"):
            return await self._pool.train(cohort, adapter_down, memories, ask_edge)

    async def score(self, adapters: Adapters, piece: int, split: Split | None) -> Score:
        """Score a piece of the test set."""
        with self._metrics.timed("score"):
            return self._pool.score(adapters, piece, split)

    @ray.method(concurrency_group=WATCHING)
    async def alive(self) -> bool:
        """Answer."""
        return True

    @ray.method(concurrency_group=WATCHING)
    async def take_wall_seconds(self) -> WallSeconds:
        """Return what this pool has spent its time on since it was asked last."""
        return self._watch.take()

    @ray.method(concurrency_group=WATCHING)
    async def doing(self, ticket: tuple[str, int]) -> tuple[Doing, str] | None:
        """Return what a cohort is doing right now, and where in the code this pool is; None if it is not here."""
        doing = self._pool.doing(ticket)
        frame = sys._current_frames().get(self._thread) if self._thread is not None else None
        return (doing, "".join(traceback.format_stack(frame))) if doing is not None else None


_LOST = (RayActorError, NodeDiedError, ObjectLostError, WorkerCrashedError, OutOfMemoryError)


async def answer_of(reference: Any, timeout_seconds: float, what: str, worker: str = "") -> Any:
    """Wait for a call's result, at most so long.

    Args:
        reference: of the result.
        timeout_seconds: so long.
        what: is waited for, in words.
        worker: who was called.

    Raises:
        WaitTimeoutError: the deadline passed; the message says what was waited for.
        WorkerLostError: the worker died, or the result was lost.
        WorkerError: the call failed.
        ClientError: the computation of a client failed.
    """

    async def wait() -> Any:
        return await reference

    try:
        return await asyncio.wait_for(wait(), timeout_seconds)
    except TimeoutError:
        raise WaitTimeoutError(f"waited {timeout_seconds:g} s for {what}") from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, NamedError):
            raise cause from None
        if isinstance(cause, _LOST):
            # Who was called is alive, to say so: it has not got what it was called with.
            who = NO_WORKER if isinstance(cause, ObjectLostError) else worker
            raise WorkerLostError(f"{what}: {_reason(cause)}", who, str(error)) from None
        raise WorkerError(f"{what}: {type(cause).__name__}: {cause}", str(error)) from None
    except _LOST as error:
        raise WorkerLostError(f"{what}: {_reason(error)}", worker, str(error)) from None
    except RayError as error:
        raise WorkerError(f"{what}: {_reason(error)}", str(error)) from None


def _reason(error: RayError) -> str:
    """Return in one line why Ray says that something was lost."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    because = [line for line in lines if line.startswith("The actor is dead because")]
    line = (because or lines or [""])[0].partition(" Some common causes")[0]
    return f"{type(error).__name__}: {line}"
