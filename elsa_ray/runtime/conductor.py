"""Conducts a round: who does what, in which order, whatever carries the calls. One meaning for every executor.

Hosts go on by themselves: an edge group starts its next edge round when its own gathers are done. A pool trains a
bounded number of cohorts at once, so that it has work while one of them is at its edge.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elsa_ray.clustering.trust import TrustState
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.protocols.protocol import ProtocolState, RoundResults
from elsa_ray.protocols.setting import Setting
from elsa_ray.protocols.wall_time import WallSeconds
from elsa_ray.runtime.attempts import MEMORY_HINT, Attempts
from elsa_ray.runtime.failure import WorkerError, WorkerLostError, times
from elsa_ray.runtime.host import HostReport
from elsa_ray.runtime.jobs import CLOUD, HostJob, RoundJob, StageJob, pool_name
from elsa_ray.runtime.places import Place, Places, Pools
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.training.cohort import ByteMeter, Cohort, VersionKey
from elsa_ray.training.evaluation import Score
from elsa_ray.training.evidence import stricter
from elsa_ray.training.failure import ClientError, ClientFailure, ClientHangError
from elsa_ray.training.memory import NOTHING, ClientMemory, CutMemory, Memories
from elsa_ray.world.plan import WorkKey

_LOGGER = logging.getLogger("elsa_ray")


class Workers(Pools):
    """Carries calls to hosts and pools.

    A call that ends in a WorkerLostError has to be made again: of a pool to any pool, of a host after ``recover``.
    """

    num_pieces: int
    near: Mapping[str, Collection[int]] = {}
    """For each host the pools that are close to it."""

    def pools_for(self, cohort: Cohort) -> Sequence[int]:
        """Return the pools that may train a cohort; it decides where it is computed, and nothing else."""
        return range(self.num_pools)

    async def recover(self, loss: WorkerLostError) -> None:
        """Replace the host that was lost, and whoever else was, so that a round can begin."""
        raise loss

    def tell(self, text: str, details: str = "") -> None:
        """Tell the user what went wrong and what is done about it; the details go into the log only."""
        _LOGGER.warning("%s", f"{text}\n{details}" if details else text)

    @abstractmethod
    async def call_host(self, host: str, method: str, *arguments: Any) -> Any:
        """Call a method of a host (``cloud`` or an edge group) and return what it returns."""

    async def start_cohort(self, host: str, cohort: Cohort, memories: list[CutMemory]) -> Any:
        """Let a host start a cohort; returns the members' adapter_down payloads, or a handle to them for ``train``."""
        return await self.call_host(host, "start_cohort", cohort, memories)

    @abstractmethod
    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: Any, memories: list[ClientMemory]
    ) -> tuple[TrainedCohort, Any]:
        """Let a pool train a cohort against its host; see ClientPool.train.

        Returns:
            What came of it, and the members' adapter_up payloads, or a handle to them for the host.
        """

    @abstractmethod
    async def score(self, pool: int, adapters: Any, piece: int, split: Split | None) -> Score:
        """Let a pool score a piece of the test set; see ClientPool.score."""

    def take_wall_seconds(self) -> Mapping[str, WallSeconds]:
        """Return what each worker has spent its wall time on since this was called last; who is silent is left out."""
        return {}

    def share(self, adapters: Adapters) -> Any:
        """Return a handle to adapters that are given to many calls."""
        return adapters


@dataclass
class _RoundBooks:
    """What comes together in one attempt at a round. Only what is finished stands here, so nothing counts twice."""

    losses: dict[WorkKey, float]
    meter: ByteMeter
    memories: dict[int, Memories]
    cohort_sizes: dict[str, int]
    turns: _Turns
    failures: dict[WorkKey, ClientFailure]


class _PlaceGoneError(Exception):
    """The pool was lost before it got the cohort."""


class _Turns:
    """Lets a client's work items be trained in their order: what it remembers passes from each to the next.

    A client has two in one round where the first had arrived after its gather. That one lies at its edge when the round
    begins, so it is of a first stage, and no wait for it is in vain.

    Args:
        cohorts: of all hosts.
    """

    def __init__(self, cohorts: Iterable[Cohort]) -> None:
        self._trained: dict[WorkKey, asyncio.Event] = {}
        self._before: dict[WorkKey, WorkKey] = {}
        last: dict[int, WorkKey] = {}
        for key in sorted(member.key for cohort in cohorts for member in cohort.members):
            if key.client in last:
                self._before[key] = last[key.client]
                self._trained[last[key.client]] = asyncio.Event()
            last[key.client] = key

    async def wait(self, cohort: Cohort) -> None:
        """Wait until all earlier work of the members is trained."""
        for member in cohort.members:
            if member.key in self._before:
                await self._trained[self._before[member.key]].wait()

    def end(self, cohort: Cohort) -> None:
        """Let later work of the members begin."""
        for member in cohort.members:
            if member.key in self._trained:
                self._trained[member.key].set()


class Conductor:
    """Runs rounds on workers.

    A round is made of values only, so it can be done again after a loss: a cohort whose pool died is trained by another
    one; when a host died, which holds what its clients have sent, the whole round is done again from its state.

    Args:
        workers: carries the calls.
        setting: tells the cloud's node, and what is done about failures.
    """

    def __init__(self, workers: Workers, setting: Setting) -> None:
        self._workers, self._cloud_node = workers, setting.cloud
        self._policy, self._retries = setting.config.protocol.client_failure, setting.config.runtime.retries
        self._attempts = itertools.count()

    async def run_round(
        self,
        job: RoundJob,
        state: ProtocolState,
        host_of_version: Mapping[VersionKey, str],
        *,
        evaluate: bool,
    ) -> RoundResults:
        """Do the work of a round and return its results.

        Args:
            job: what survives of the plan.
            state: the global model that the round starts from, older ones that late work has started from, what clients
                remember, and their standings.
            host_of_version: which host needs each older model.
            evaluate: score the new global model on the test set.

        Raises:
            WorkerError: a worker or a client failed, and what the config allows to do about it did not help.
        """
        losses: list[WorkerLostError] = []
        while True:
            try:
                if losses:
                    await self._workers.recover(losses[-1])
                async with Places(self._workers, self._retries) as places:
                    return await self._attempt_round(job, state, host_of_version, places, evaluate=evaluate)
            except WorkerLostError as loss:
                losses.append(loss)
                if len(losses) > self._retries:
                    raise _given_up(job.round_index, losses, self._retries) from None
                number = f"{len(losses)} of {self._retries}"
                self._workers.tell(f"{loss}; round {job.round_index} is done again from its start ({number})")

    async def _attempt_round(
        self,
        job: RoundJob,
        state: ProtocolState,
        host_of_version: Mapping[VersionKey, str],
        places: Places,
        *,
        evaluate: bool,
    ) -> RoundResults:
        turns = _Turns(cohort for host in job.hosts for stage in host.stages for cohort in stage.cohorts)
        books = _RoundBooks({}, ByteMeter(), dict(state.memories), {}, turns, {})
        names = list(dict.fromkeys([CLOUD, *(host.host for host in job.hosts)]))
        for name in names:
            own = {version: model for version, model in state.versions.items() if host_of_version[version] == name}
            await self._workers.call_host(name, "begin_round", own, state.trust)
        await self._workers.call_host(CLOUD, "begin_global_round", job.round_index, self._cloud_node, state.adapters)
        for frozen in job.frozen:
            await self._workers.call_host(CLOUD, "send_frozen", frozen)
        for probes in job.probes:
            await self._workers.call_host(CLOUD, "send_probes", job.round_index, probes.num_bytes, probes.count)
        for notice in job.notices:
            await self._workers.call_host(CLOUD, "send_notice", job.round_index, notice)
        groups = [host for host in job.hosts if host.host != CLOUD]
        await all_of(self._run_edge_group(host, job, books, places) for host in groups)
        # In order, for two edges may tell of one client: where it is now, and where late work of it has arrived.
        for host in groups:
            await self._tell_cloud(host, job.round_index)
        for host in job.hosts:
            if host.host == CLOUD:
                await self._run_stages(host, job, books, places)
        model: Adapters = await self._workers.call_host(CLOUD, "global_model")
        kept = {host.host: host.kept_versions for host in job.hosts}
        reports = [await self._workers.call_host(name, "report", kept.get(name, ())) for name in names]
        results = _results(model, reports, books)
        if not evaluate:
            return results
        score = await self._evaluate(model, places, None)
        over_cuts = None if job.tested_split is None else await self._evaluate(model, places, job.tested_split)
        return replace(results, score=score, score_over_cuts=over_cuts)

    async def _run_edge_group(self, host: HostJob, job: RoundJob, books: _RoundBooks, places: Places) -> None:
        for node in host.nodes:
            payload = await self._workers.call_host(CLOUD, "send_model", node, job.trunk_bytes)
            await self._workers.call_host(host.host, "receive_model", job.round_index, node, payload)
        await self._run_stages(host, job, books, places)
        for node in host.nodes:
            payload, weight = await self._workers.call_host(
                host.host, "send_model", job.round_index, node, job.trunk_bytes
            )
            await self._workers.call_host(CLOUD, "receive_model", node, payload, weight)

    async def _tell_cloud(self, host: HostJob, round_index: int) -> None:
        for table in host.tables:
            payloads = await self._workers.call_host(host.host, "send_tables", round_index, table)
            await self._workers.call_host(CLOUD, "receive_tables", round_index, table, *payloads)

    async def _run_stages(self, host: HostJob, job: RoundJob, books: _RoundBooks, places: Places) -> None:
        for stage in host.stages:
            await all_of(self._run_cohort(cohort, host.host, books, places) for cohort in stage.cohorts)
            await self._gather(host, job.round_index, stage)

    async def _gather(self, host: HostJob, round_index: int, stage: StageJob) -> None:
        for gather in stage.gathers:
            takes_edges = gather.node == self._cloud_node and not gather.arrivals
            if not takes_edges:
                await self._workers.call_host(host.host, "gather", round_index, gather)

    async def _run_cohort(self, cohort: Cohort, host: str, books: _RoundBooks, places: Places) -> None:
        await books.turns.wait(cohort)
        attempts = Attempts(cohort, self._policy, self._retries, {key.client for key in books.failures})
        while True:
            suitable, near = self._workers.pools_for(cohort), self._workers.near.get(host, ())
            place = await places.take(suitable, near, alone=attempts.wants_to_be_alone)
            attempt = replace(cohort, failed=attempts.failed, attempt=next(self._attempts))
            try:
                trained, at_edge = await self._train(attempt, place, places, host, books)
            except _PlaceGoneError:
                continue
            except ClientError as error:
                # A pool that hangs is of no use any more.
                (places.end if isinstance(error, ClientHangError) else places.give)(place)
                self._workers.tell(attempts.after_client(error), error.cause_traceback)
            except WorkerLostError as loss:
                if loss.worker != pool_name(place.pool):
                    raise
                if not places.was_ended(place):
                    places.lose(place)
                    was_alone = place.alone or self._workers.in_flight == 1
                    self._workers.tell(attempts.after_death(loss, was_alone=was_alone))
            except BaseException:
                places.give(place)
                raise
            else:
                places.give(place)
                break
        attempts.after_divergence(trained.diverged)
        for member, at_client, own_edge in zip(cohort.members, trained.memories, at_edge, strict=True):
            if member.key not in attempts.failed:
                books.memories[member.key.client] = Memories(at_client, own_edge)
        books.turns.end(cohort)
        books.cohort_sizes[cohort.name] = len(cohort.members)
        books.losses.update({key: loss for key, loss in trained.losses.items() if key not in trained.diverged})
        books.meter.merge(trained.meter)
        books.failures.update(attempts.failures)

    async def _train(
        self, cohort: Cohort, place: Place, places: Places, host: str, books: _RoundBooks
    ) -> tuple[TrainedCohort, list[CutMemory]]:
        """Train a cohort, or attempt it; nothing of it counts before it has come to its end."""
        before = [books.memories.get(member.key.client, NOTHING) for member in cohort.members]
        adapter_down = await self._workers.start_cohort(host, cohort, [memory.edge for memory in before])
        at_clients = [memory.client for memory in before]
        nothing: list[None] = [None] * len(cohort.members)
        trained, uploads = TrainedCohort([*nothing], {}, at_clients, ByteMeter()), [*nothing]
        if not places.is_there(place):
            raise _PlaceGoneError
        if cohort.active_keys:
            trained, uploads = await self._workers.train(place.pool, cohort, host, adapter_down, at_clients)
        at_edge = await self._workers.call_host(
            host, "finish_cohort", cohort.ticket, uploads, trained.reports, trained.diverged
        )
        return trained, at_edge

    async def _evaluate(self, model: Adapters, places: Places, split: Split | None) -> Score:
        shared = self._workers.share(model)

        async def score(piece: int) -> Score:
            nonlocal shared
            for deaths in itertools.count(1):
                place = await places.take()
                try:
                    found = await self._workers.score(place.pool, shared, piece, split)
                except WorkerLostError as loss:
                    places.lose(place)
                    if deaths > self._retries:
                        raise WorkerError(
                            f"{loss}; {times(deaths)} in a row; {MEMORY_HINT}", loss.cause_traceback
                        ) from None
                    shared = self._workers.share(model)
                    self._workers.tell(f"{loss}; its work is done again ({deaths} of {self._retries})")
                except BaseException:
                    places.give(place)
                    raise
                else:
                    places.give(place)
                    return found
            raise AssertionError("the count has no end")

        scores = await all_of(score(piece) for piece in range(self._workers.num_pieces))
        total = scores[0]
        for piece_score in scores[1:]:
            total = total + piece_score
        return total


async def all_of(coroutines: Any) -> list[Any]:
    """Wait for all; if one fails, cancel the others and raise its error, not a group of errors."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _results(model: Adapters, reports: list[HostReport], books: _RoundBooks) -> RoundResults:
    encoded: Counter[str] = Counter(books.meter.num_bytes)
    cloud = reports[0]
    results = RoundResults(model, losses=books.losses)
    for report in reports:
        encoded.update(report.meter.num_bytes)
        results = replace(
            results,
            versions={**results.versions, **report.versions},
            failed=tuple(sorted([*results.failed, *report.failed])),
            trust={**results.trust, **_stricter(results.trust, report.trust)},
            decisions=(*results.decisions, *report.decisions),
            # What an edge knows reaches the protocol only by the table that it has sent.
            fingerprints=cloud.fingerprints,
        )
    memories = {client: memory for client, memory in sorted(books.memories.items()) if not memory.is_empty}
    return replace(
        results,
        memories=memories,
        encoded_bytes=dict(sorted(encoded.items())),
        cohort_sizes=tuple(size for _, size in sorted(books.cohort_sizes.items())),
        failures=tuple(own for _, own in sorted(books.failures.items())),
    )


def _given_up(round_index: int, losses: Sequence[WorkerLostError], retries: int) -> WorkerError:
    """Return the error of a round that could not be finished: who died, how often, and what may help."""
    counts = Counter(loss.worker for loss in losses)
    who = ", ".join(f"{worker} {times(count)}" for worker, count in counts.items())
    text = (
        f"round {round_index} was given up after {len(losses)} attempts (runtime.retries: {retries}); lost: {who}; "
        f"the last time: {losses[-1]}; finished rounds are kept; {MEMORY_HINT}"
    )
    return WorkerError(text, losses[-1].cause_traceback)


def _stricter(before: Mapping[int, TrustState], verdicts: Mapping[int, TrustState]) -> dict[int, TrustState]:
    return {client: stricter(before.get(client, state), state) for client, state in verdicts.items()}
