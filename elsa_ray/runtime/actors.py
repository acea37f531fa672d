"""The Ray actors: thin shells around pools and hosts."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from elsa_ray.model.adapters import AdapterLayout, Adapters
from elsa_ray.model.families import family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, naming
from elsa_ray.runtime.fingerprint import NumericFingerprint, this_process
from elsa_ray.runtime.gpu_memory import hold_to
from elsa_ray.runtime.host import Cloud, EdgeServer, ModelHost
from elsa_ray.runtime.metrics import WorkerMetrics
from elsa_ray.runtime.pool import ClientPool, TrainedCohort
from elsa_ray.runtime.weights import PackedModel, unpack_model
from elsa_ray.tasks.task import Task
from elsa_ray.training.client import EdgeRequest
from elsa_ray.training.cohort import Cohort
from elsa_ray.training.evaluation import Score
from elsa_ray.training.memory import ClientMemory
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


class HostActor(_Actor):
    """Carries the cloud or an edge group."""

    def __init__(self, kind: type[ModelHost], settings: WorkerSettings, packed: PackedModel) -> None:
        self._device = settings.device
        self._metrics = WorkerMetrics(settings.run, "cloud" if kind is Cloud else "edge")
        self._host = kind(settings.build_model(packed), settings.recipe)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the host."""
        with self._metrics.timed(method), naming(method, ()):
            return getattr(self._host, method)(*arguments)


class PoolActor(_Actor):
    """Carries a client pool. Asynchronous: while one cohort waits for its edge, another one trains."""

    def __init__(self, settings: WorkerSettings, packed: PackedModel, task: Task) -> None:
        self._device = settings.device
        self._metrics = WorkerMetrics(settings.run, "pool")
        self._timeout_seconds = settings.timeout_seconds
        self._pool = ClientPool(settings.build_model(packed), settings.recipe, task)

    async def train(
        self,
        cohort: Cohort,
        host: Any,
        host_name: str,
        adapter_down: Sequence[bytes],
        memories: Sequence[ClientMemory],
    ) -> TrainedCohort:
        """Train a cohort against its host; see ClientPool.train."""

        async def ask_edge(request: EdgeRequest) -> Payloads:
            what = f"{host_name} to answer {request.call.value} of step {request.step} of cohort {cohort.name}"
            reference = host.call.remote("answer", cohort.name, request)
            with self._metrics.timed("wait_for_edge"):
                payloads: Payloads = await answer_of(reference, self._timeout_seconds, what)
            return payloads

        with self._metrics.timed("train"):
            return await self._pool.train(cohort, adapter_down, memories, ask_edge)

    async def score(self, adapters: Adapters, piece: int, split: Split | None) -> Score:
        """Score a piece of the test set."""
        with self._metrics.timed("score"):
            return self._pool.score(adapters, piece, split)


async def answer_of(reference: Any, timeout_seconds: float, what: str) -> Any:
    """Wait for a call's result, at most so long.

    Raises:
        WaitTimeoutError: the deadline passed; the message says what was waited for.
        WorkerError: the call failed, or its actor died.
    """

    async def wait() -> Any:
        return await reference

    try:
        return await asyncio.wait_for(wait(), timeout_seconds)
    except TimeoutError:
        raise WaitTimeoutError(f"waited {timeout_seconds:g} s for {what}") from None
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, WorkerError):
            raise WorkerError(str(cause), cause.cause_traceback) from None
        raise WorkerError(f"{what}: {type(cause).__name__}: {cause}", str(error)) from None
    except RayError as error:
        raise WorkerError(f"{what}: {type(error).__name__}: {str(error).splitlines()[0]}", str(error)) from None


HOST_KINDS: dict[bool, type[ModelHost]] = {True: Cloud, False: EdgeServer}
