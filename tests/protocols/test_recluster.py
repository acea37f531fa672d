"""Clusters in whole runs: who gets which edge, when, and what becomes of clients that no edge can take.

Shapes: N clients, K edges.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elsa_ray.clustering.assignment import PARKED, default_capacity
from elsa_ray.clustering.trust import TrustState
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.prepare import Prepared, prepare
from elsa_ray.protocols.elsa import ElsaState
from elsa_ray.protocols.estimates import compute_seconds, round_trips, usual_step
from elsa_ray.protocols.protocol import RoundReport, RoundResults
from elsa_ray.runtime.jobs import RoundJob, round_job
from elsa_ray.world.plan import Floats, Plan

from ..helpers import run_config, write_texts
from ..stepwise import Stepwise, planted_rows, write_towns

CLIENTS, EDGES, DIMENSIONS = 9, 3, 4
LAND = ["river", "mountain", "valley", "forest", "desert", "ocean"]
MUSIC = ["violin", "trumpet", "piano", "drum", "guitar", "painter"]


class Untrained:
    """A run whose clients' fingerprints are given, round by round, and in which nothing else is computed."""

    def __init__(self, config: ExperimentConfig) -> None:
        self.prepared: Prepared = prepare(config)
        state = self.prepared.protocol.start(None)
        assert isinstance(state, ElsaState)
        self.state, self._world_state = state, self.prepared.world.start()
        self.jobs: list[RoundJob] = []

    def round(self, fingerprints: dict[int, Any]) -> tuple[Plan, RoundReport]:
        protocol = self.prepared.protocol
        plan = protocol.plan(self.state, self._world_state)
        timeline, self._world_state = self.prepared.world.play(plan, self._world_state)
        self.jobs.append(round_job(self.prepared.setting, plan, timeline))
        results = RoundResults(fingerprints=fingerprints)
        after, report = protocol.conclude(self.state, results, plan, timeline)
        assert isinstance(after, ElsaState)
        self.state = after
        return plan, report

    @property
    def edge_of_client(self) -> list[int]:
        """Positions of the clients' edges."""
        edges = self.prepared.setting.network.edges.tolist()
        return [edges.index(node) if node != PARKED else PARKED for node in self.state.edge_of_client]

    def latency_NK(self) -> Floats:
        """What a training step of each client takes through each edge."""
        setting, config = self.prepared.setting, self.prepared.config.protocol
        step = usual_step(setting, config)
        computing_N = compute_seconds(setting, step, self.state.splits)
        return round_trips(setting, step).seconds(slice(None)) + computing_N[:, None]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=72)


def make(
    dataset: dict[str, str], clustering: dict[str, Any], *, participation: float = 1.0, **sections: Any
) -> ExperimentConfig:
    sections = {"topology": {"clients": CLIENTS, "edges": EDGES}, **sections}
    config: ExperimentConfig = run_config(
        dataset,
        task={"probes": {"kind": "dataset", "count": 10}},
        protocol={
            "rounds": 12,
            "local_steps": 1,
            "participation": participation,
            "clustering": {"dimensions": DIMENSIONS, **clustering},
        },
        **sections,
    )
    return config


def groups(seed: int) -> dict[int, int]:
    """Three groups of three, dealt at random."""
    order = np.random.default_rng(seed).permutation(CLIENTS).tolist()
    return {client: order[client] % EDGES for client in range(CLIENTS)}


@pytest.mark.parametrize("capacity", [None, 3])
def test_without_behaviour_clients_get_the_edges_of_least_latency_under_capacity(
    dataset: dict[str, str], tmp_path: Path, capacity: int | None
) -> None:
    """Oracle 4 of methods.md 1.16, against all assignments there are: at the start, and whatever they have learned."""
    draw = np.random.default_rng(1)
    # Most are nearest to the first edge, which cannot take them all.
    ways = [
        {edge: (1e6, 1e6, float(draw.uniform(0.01, 0.02) * (1 + edge))) for edge in range(EDGES)}
        for _ in range(CLIENTS)
    ]
    topology = write_towns(tmp_path, ways, [(1e9, 1.0)] * EDGES)
    run = Untrained(
        make(dataset, {"behaviour_weight": 0.0}, topology=topology, world={"edges": {"capacity": capacity}})
    )
    latency_NK, places = run.latency_NK(), capacity or default_capacity(CLIENTS, EDGES)
    all_NA = np.array(list(itertools.product(range(EDGES), repeat=CLIENTS)))
    fits = np.stack([(all_NA == edge).sum(axis=1) for edge in range(EDGES)]).max(axis=0) <= places
    totals = latency_NK[np.arange(CLIENTS), all_NA[fits]].sum(axis=1)
    best = all_NA[fits][np.argmin(totals)].tolist()
    assert (totals <= totals.min() * (1 + 1e-9)).sum() == 1, "one best assignment"
    assert best != np.argmin(latency_NK, axis=1).tolist(), "capacity binds"
    assert run.edge_of_client == best
    nodes, first = run.prepared.setting.network.edges, run.state
    for seed in (0, 1):
        elsewhere = tuple(int(nodes[client % EDGES]) for client in range(CLIENTS))
        run.state = replace(first, edge_of_client=elsewhere)
        _, report = run.round(planted_rows(groups(seed), DIMENSIONS))
        assert run.edge_of_client == best and report.moved


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_meet_at_one_edge_each(dataset: dict[str, str], seed: int) -> None:
    run = Untrained(make(dataset, {"latency_weight": 0.0}))
    before, planted = run.edge_of_client, groups(seed)
    _, report = run.round(planted_rows(planted, DIMENSIONS))
    edges_of_group = [{run.edge_of_client[c] for c, group in planted.items() if group == own} for own in range(EDGES)]
    assert [len(edges) for edges in edges_of_group] == [1] * EDGES
    assert len(set.union(*edges_of_group)) == EDGES
    nodes = run.prepared.setting.network.edges
    changes = [(c, now) for c, (was, now) in enumerate(zip(before, run.edge_of_client, strict=True)) if was != now]
    assert report.moved == tuple((client, int(nodes[edge])) for client, edge in changes) != ()
    assert run.state.untold == {client for client, _ in changes}
    plan, _ = run.round({})
    assert {int(c): int(e) for c, e in zip(plan.work.client, plan.work.edge, strict=True)} == {
        client: int(nodes[edge]) for client, edge in enumerate(run.edge_of_client)
    }


def test_clients_that_have_trained_on_the_same_topic_are_grouped(tmp_path: Path) -> None:
    """For real: two topics with labels of their own, one round of training, fingerprints as the cloud was told them."""
    draw, rows = np.random.default_rng(0), []
    for client in range(8):
        words, first_label = (LAND, 0) if client % 2 else (MUSIC, 2)
        for _ in range(16):
            text, label = " ".join(draw.choice(words, size=6)), first_label + int(draw.integers(2))
            rows.append({"text": text, "label": f"label{label}", "client": f"client{client}"})
    dataset = {}
    for name, own in (("train", rows), ("test", rows[::9])):
        dataset[name] = str(tmp_path / f"{name}.jsonl")
        Path(dataset[name]).write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    config = run_config(
        dataset,
        task={"partition": {"kind": "by_column", "column": "client"}, "probes": {"kind": "dataset", "count": 24}},
        topology={"clients": 8, "edges": 2},
        protocol={
            "local_steps": 4,
            "optimizer": {"kind": "adamw", "learning_rate": 1e-2},
            "clustering": {"dimensions": DIMENSIONS, "latency_weight": 0.0},
        },
    )
    with Stepwise(config) as run:
        run.round()
        task = run.prepared.setting.task
        assert task.train.labels is not None
        topics = [{task.label_names[label] < "label2" for label in task.train.labels[own]} for own in task.partition]
        assert {len(topic) for topic in topics} == {1}
        edges = {frozenset(topic): set() for topic in topics}
        for topic, edge in zip(topics, run.state.edge_of_client, strict=True):
            edges[frozenset(topic)].add(edge)
        first, second = edges.values()
        assert len(first) == len(second) == 1 and first != second


FAR_AWAY = 3.0
"""Seconds to the last client; its links are so long that deadlines pass on the way."""


def far_client(dataset: dict[str, str], folder: Path, late: str) -> Untrained:
    """Six clients with links to two edges; the first three begin at the first one, with the last."""
    ways = [{edge: (1e7, 1e7, 0.01 if client < 5 else FAR_AWAY) for edge in (0, 1)} for client in range(6)]
    topology = write_towns(folder, ways, [(1e9, 0.01)] * 2)
    policy = {"round_policy": {"deadline_seconds": 0.4 * FAR_AWAY, "late": late}}
    run = Untrained(make(dataset, {"latency_weight": 0.0}, topology=topology, world=policy))
    first, second = (int(node) for node in run.prepared.setting.network.edges)
    run.state = replace(run.state, edge_of_client=(first, first, first, second, second, first))
    return run


def test_who_could_not_be_told_in_time_is_told_again(dataset: dict[str, str], tmp_path: Path) -> None:
    run = far_client(dataset, tmp_path, "drop")
    run.round(planted_rows({0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 1}, DIMENSIONS))
    assert run.state.untold == {2, 5}
    for told in ([(2,)], [], []):
        run.round({})
        assert run.state.untold == {5}
        assert [job.clients for job in run.jobs[-1].notices if job.new_edge is not None] == told


def test_late_word_of_an_edge_that_was_left_since_is_no_news(dataset: dict[str, str], tmp_path: Path) -> None:
    run = far_client(dataset, tmp_path, "keep")
    run.state = replace(run.state, untold=frozenset({5}))
    run.round({})
    assert not run.jobs[-1].notices, "word of the first edge is under way"
    elsewhere = (*run.state.edge_of_client[:5], run.state.edge_of_client[4])
    run.state = replace(run.state, edge_of_client=elsewhere)
    while not any(job.clients == (5,) for job in run.jobs[-1].notices):
        run.round({})
    assert run.state.untold == {5}


class TestParked:
    def test_who_reaches_no_edge_in_time_never_takes_part_and_is_told_of(self, dataset: dict[str, str]) -> None:
        nearest_N = np.sort(Untrained(make(dataset, {})).latency_NK().min(axis=1))
        limit = float(nearest_N[-2:].mean())
        # So many as can take part, and no place is kept for who cannot.
        run = Untrained(make(dataset, {"max_latency_seconds": limit}, participation=(CLIENTS - 1) / CLIENTS))
        (slowest,) = np.flatnonzero(run.latency_NK().min(axis=1) > limit).tolist()
        for _ in range(3):
            plan, report = run.round(planted_rows(groups(0), DIMENSIONS))
            assert plan.parked_clients == (slowest,)
            assert slowest not in plan.work.client and slowest not in plan.activities.client
            assert set(report.participated) == set(range(CLIENTS)) - {slowest}
            assert run.edge_of_client[slowest] == PARKED and run.edge_of_client.count(PARKED) == 1
            assert slowest not in run.state.untold

    def test_where_places_are_scarce_as_many_are_parked_as_must_be(self, dataset: dict[str, str]) -> None:
        """Who is distrusted gives way at the next clustering, and who then gets a place takes part."""
        config = make(
            dataset, {"every": 1, "behaviour_weight": 0.0, "trust_weight": 1.0}, world={"edges": {"capacity": 2}}
        )
        run = Untrained(config)
        first = {client for client, edge in enumerate(run.edge_of_client) if edge == PARKED}
        assert len(first) == CLIENTS - 2 * EDGES
        plan, _ = run.round(planted_rows(groups(0), DIMENSIONS))
        assert set(plan.parked_clients) == first and not first & set(plan.work.client.tolist())
        assert all(run.edge_of_client.count(edge) == 2 for edge in range(EDGES))
        seated = next(client for client, edge in enumerate(run.edge_of_client) if edge != PARKED)
        run.state = replace(run.state, trust={seated: TrustState(0.0)})
        before = {client for client, edge in enumerate(run.edge_of_client) if edge == PARKED}
        _, report = run.round({})
        (newcomer,) = before - {client for client, edge in enumerate(run.edge_of_client) if edge == PARKED}
        assert (seated, PARKED) in report.moved and newcomer in dict(report.moved)
        plan, report = run.round({})
        assert newcomer in report.participated and seated not in report.participated
        assert seated in plan.parked_clients


class TestWhen:
    """After the first round, whose training is the warm-up; then as often as configured, or when many come or go."""

    def rounds_of_clustering(self, run: Untrained, known: list[dict[int, Any]]) -> list[int]:
        found = []
        for index, fingerprints in enumerate(known):
            run.round(fingerprints)
            if run.state.clustered_round == index + 1:
                found.append(index)
        return found

    def test_every_so_many_rounds(self, dataset: dict[str, str]) -> None:
        everybody = planted_rows(groups(0), DIMENSIONS)
        run = Untrained(make(dataset, {"every": 3}))
        assert self.rounds_of_clustering(run, [everybody] * 8) == [0, 3, 6]

    def test_not_before_anybody_is_known(self, dataset: dict[str, str]) -> None:
        everybody = planted_rows(groups(0), DIMENSIONS)
        run = Untrained(make(dataset, {"every": 3}))
        assert self.rounds_of_clustering(run, [{}, {}, everybody, {}, {}, {}]) == [2, 5]

    def test_earlier_when_membership_has_moved(self, dataset: dict[str, str]) -> None:
        """More than a fifth of nine clients are two; one that is known anew is not enough, nor is news of the same."""
        rows = planted_rows(groups(0), DIMENSIONS)
        known = [{client: rows[client] for client in clients} for clients in ([0, 1, 2], [0, 1], [3], [4], [5], [6, 7])]
        run = Untrained(make(dataset, {"every": 9, "moved": 0.2}))
        assert self.rounds_of_clustering(run, known) == [0, 3, 5]
        assert run.state.clustered == set(range(8))

    def test_earlier_when_many_have_left_or_come_back(self, dataset: dict[str, str], tmp_path: Path) -> None:
        """Three of nine go in the first round, and have left once they were missed at the end of four rounds on end."""
        rows, trace = planted_rows(groups(0), DIMENSIONS), tmp_path / "there.csv"

        def run_with(back_seconds: float) -> tuple[Untrained, list[int], list[float]]:
            there = [(client, 0.0, 1e9) for client in range(6)]
            there += [(client, *span) for client in (6, 7, 8) for span in ((0.0, 1e-3), (back_seconds, 1e9))]
            lines = [",".join(map(str, own)) for own in there]
            trace.write_text("\n".join(["client,start_seconds,end_seconds", *lines]))
            world = {"availability": {"kind": "trace", "file": str(trace)}}
            run, ends, members = Untrained(make(dataset, {"every": 4, "moved": 0.2}, world=world)), [], []
            for _ in range(7):
                run.round(rows)
                ends.append(run.state.simulated_seconds)
                members.append(len(run.state.clustered))
            return run, members, ends

        run, members, ends = run_with(back_seconds=1e8)
        assert members == [9, 9, 9, 6, 6, 6, 6]
        assert run.state.away_since == {6: 0, 7: 0, 8: 0}
        assert PARKED not in run.state.edge_of_client, "places are kept for them"
        run, members, _ = run_with(back_seconds=(ends[4] + ends[5]) / 2)
        assert members == [9, 9, 9, 6, 6, 9, 9]
        assert not run.state.away_since and run.state.clustered_round == 6
