"""The Ray actors: thin shells around pools and hosts."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ray.exceptions import RayError, RayTaskError

from elsa_ray.model.adapters import AdapterLayout, Adapters
from elsa_ray.model.families import family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.protocols.protocol import Stage, StageSeconds
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, naming
from elsa_ray.runtime.host import Cloud, EdgeServer, ModelHost
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
    """

    recipe: Recipe
    shape: ModelShape
    layout: AdapterLayout
    device: str
    threads: int
    timeout_seconds: float

    def build_model(self, packed: PackedModel) -> TripartiteModel:
        """Return the cohort's backbone around the shared weights."""
        torch.set_num_threads(self.threads)
        model = unpack_model(packed).to(self.device)
        return TripartiteModel(model, family_of(model.config), self.shape, self.layout)


class _Actor:
    """What all actors can tell of themselves."""

    def ready(self) -> bool:
        """Answer once the actor is built."""
        return True

    def peak_memory_bytes(self) -> int:
        """Return the most resident memory that this process had."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class HostActor(_Actor):
    """Carries the cloud or an edge group."""

    def __init__(self, kind: type[ModelHost], settings: WorkerSettings, packed: PackedModel) -> None:
        self._host = kind(settings.build_model(packed), settings.recipe)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the host."""
        with naming(method, ()):
            return self._host.timed(method, *arguments)

    def take_seconds(self) -> StageSeconds:
        """See ModelHost.take_seconds."""
        return self._host.take_seconds()


class PoolActor(_Actor):
    """Carries a client pool. Asynchronous: while one cohort waits for its edge, another one trains."""

    def __init__(self, settings: WorkerSettings, packed: PackedModel, task: Task) -> None:
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
            with self._pool.watch.spend(Stage.MESSAGES):
                reference = host.call.remote("answer", cohort.name, request)
            payloads: Payloads = await answer_of(reference, self._timeout_seconds, what)
            return payloads

        return await self._pool.train(cohort, adapter_down, memories, ask_edge)

    async def score(self, adapters: Adapters, piece: int, split: Split | None) -> Score:
        """Score a piece of the test set."""
        return self._pool.score(adapters, piece, split)

    async def take_seconds(self) -> StageSeconds:
        """Return the seconds of the round's work, by stage; once a round."""
        return self._pool.watch.take()


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
