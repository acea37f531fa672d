"""Conducts a round: who does what, in which order, whatever carries the calls. One meaning for every executor.

Hosts go on by themselves: an edge group starts its next edge round when its own gathers are done. A pool trains a
bounded number of cohorts at once, so that it has work while one of them is at its edge.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from elsa_ray.clustering.trust import TrustState
from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import Split
from elsa_ray.protocols.protocol import DRIVER, ProtocolState, RoundResults, Stage, StageSeconds
from elsa_ray.runtime.host import HostReport
from elsa_ray.runtime.jobs import CLOUD, HostJob, RoundJob, StageJob
from elsa_ray.runtime.pool import TrainedCohort
from elsa_ray.training.cohort import ByteMeter, Cohort, VersionKey
from elsa_ray.training.evaluation import Score
from elsa_ray.training.evidence import stricter
from elsa_ray.training.memory import NOTHING, ClientMemory, Memories
from elsa_ray.world.plan import WorkKey


class Workers(ABC):
    """Carries calls to hosts and pools."""

    num_pools: int
    in_flight: int
    num_pieces: int

    @abstractmethod
    async def call_host(self, host: str, method: str, *arguments: Any) -> Any:
        """Call a method of a host (``cloud`` or an edge group) and return what it returns."""

    @abstractmethod
    async def train(
        self, pool: int, cohort: Cohort, host: str, adapter_down: list[bytes], memories: list[ClientMemory]
    ) -> TrainedCohort:
        """Let a pool train a cohort against its host; see ClientPool.train."""

    @abstractmethod
    async def score(self, pool: int, adapters: Any, piece: int, split: Split | None) -> Score:
        """Let a pool score a piece of the test set; see ClientPool.score."""

    @abstractmethod
    async def take_seconds(self) -> dict[str, StageSeconds]:
        """Return what each actor has spent on each stage since the last time, waiting left out."""

    def share(self, adapters: Adapters) -> Any:
        """Return a handle to adapters that are given to many calls."""
        return adapters


@dataclass
class _RoundBooks:
    losses: dict[WorkKey, float]
    meter: ByteMeter
    memories: dict[int, Memories]
    cohort_sizes: dict[str, int]
    turns: _Turns


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

    Args:
        workers: carries the calls.
        cloud_node: node index of the cloud.
    """

    def __init__(self, workers: Workers, cloud_node: int) -> None:
        self._workers, self._cloud_node = workers, cloud_node

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
        """
        begin = perf_counter()
        results = await self._run_round(job, state, host_of_version, evaluate=evaluate)
        spent = {DRIVER: {}, **await self._workers.take_seconds()}
        total = perf_counter() - begin
        for stages in spent.values():
            stages[Stage.WAITING] = max(0.0, total - sum(stages.values()))
        return replace(results, wall_seconds=spent)

    async def _run_round(
        self,
        job: RoundJob,
        state: ProtocolState,
        host_of_version: Mapping[VersionKey, str],
        *,
        evaluate: bool,
    ) -> RoundResults:
        free_pools: asyncio.Queue[int] = asyncio.Queue()
        for place in range(self._workers.num_pools * self._workers.in_flight):
            free_pools.put_nowait(place % self._workers.num_pools)
        turns = _Turns(cohort for host in job.hosts for stage in host.stages for cohort in stage.cohorts)
        books = _RoundBooks({}, ByteMeter(), dict(state.memories), {}, turns)
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
        await _all(self._run_edge_group(host, job, books, free_pools) for host in groups)
        # In order, for two edges may tell of one client: where it is now, and where late work of it has arrived.
        for host in groups:
            await self._tell_cloud(host, job.round_index)
        for host in job.hosts:
            if host.host == CLOUD:
                await self._run_stages(host, job, books, free_pools)
        model: Adapters = await self._workers.call_host(CLOUD, "global_model")
        kept = {host.host: host.kept_versions for host in job.hosts}
        reports = [await self._workers.call_host(name, "report", kept.get(name, ())) for name in names]
        results = _results(model, reports, books)
        if not evaluate:
            return results
        score = await self._evaluate(model, free_pools, None)
        over_cuts = None if job.tested_split is None else await self._evaluate(model, free_pools, job.tested_split)
        return replace(results, score=score, score_over_cuts=over_cuts)

    async def _run_edge_group(
        self, host: HostJob, job: RoundJob, books: _RoundBooks, free_pools: asyncio.Queue[int]
    ) -> None:
        for node in host.nodes:
            payload = await self._workers.call_host(CLOUD, "send_model", node, job.trunk_bytes)
            await self._workers.call_host(host.host, "receive_model", job.round_index, node, payload)
        await self._run_stages(host, job, books, free_pools)
        for node in host.nodes:
            payload, weight = await self._workers.call_host(
                host.host, "send_model", job.round_index, node, job.trunk_bytes
            )
            await self._workers.call_host(CLOUD, "receive_model", node, payload, weight)

    async def _tell_cloud(self, host: HostJob, round_index: int) -> None:
        for table in host.tables:
            payloads = await self._workers.call_host(host.host, "send_tables", round_index, table)
            await self._workers.call_host(CLOUD, "receive_tables", round_index, table, *payloads)

    async def _run_stages(
        self, host: HostJob, job: RoundJob, books: _RoundBooks, free_pools: asyncio.Queue[int]
    ) -> None:
        for stage in host.stages:
            await _all(self._run_cohort(cohort, host.host, books, free_pools) for cohort in stage.cohorts)
            await self._gather(host, job.round_index, stage)

    async def _gather(self, host: HostJob, round_index: int, stage: StageJob) -> None:
        for gather in stage.gathers:
            takes_edges = gather.node == self._cloud_node and not gather.arrivals
            if not takes_edges:
                await self._workers.call_host(host.host, "gather", round_index, gather)

    async def _run_cohort(self, cohort: Cohort, host: str, books: _RoundBooks, free_pools: asyncio.Queue[int]) -> None:
        await books.turns.wait(cohort)
        pool = await free_pools.get()
        try:
            clients = [member.key.client for member in cohort.members]
            before = [books.memories.get(client, NOTHING) for client in clients]
            adapter_down = await self._workers.call_host(
                host, "start_cohort", cohort, [memory.edge for memory in before]
            )
            trained = await self._workers.train(pool, cohort, host, adapter_down, [m.client for m in before])
            at_edge = await self._workers.call_host(
                host, "finish_cohort", cohort.name, trained.uploads, trained.reports
            )
        finally:
            free_pools.put_nowait(pool)
        for client, at_client, own_edge in zip(clients, trained.memories, at_edge, strict=True):
            books.memories[client] = Memories(at_client, own_edge)
        books.turns.end(cohort)
        books.cohort_sizes[cohort.name] = len(cohort.members)
        books.losses.update(trained.losses)
        books.meter.merge(trained.meter)

    async def _evaluate(self, model: Adapters, free_pools: asyncio.Queue[int], split: Split | None) -> Score:
        shared = self._workers.share(model)

        async def score(piece: int) -> Score:
            pool = await free_pools.get()
            try:
                return await self._workers.score(pool, shared, piece, split)
            finally:
                free_pools.put_nowait(pool)

        scores = await _all(score(piece) for piece in range(self._workers.num_pieces))
        total = scores[0]
        for piece_score in scores[1:]:
            total = total + piece_score
        return total


async def _all(coroutines: Any) -> list[Any]:
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
    )


def _stricter(before: Mapping[int, TrustState], verdicts: Mapping[int, TrustState]) -> dict[int, TrustState]:
    return {client: stricter(before.get(client, state), state) for client, state in verdicts.items()}
