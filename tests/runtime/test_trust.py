"""Trust in whole runs: who is excluded has no influence, who is trusted fully changes nothing, and late work is judged.

Late work is judged by what it was, at the gather that takes it; the clients' memory follows the order of their work.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elsa_ray.clustering.trust import Judgement, TrustState
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import prepare
from elsa_ray.protocols.protocol import RoundResults
from elsa_ray.records.round import Round
from elsa_ray.runtime import executor as executor_module
from elsa_ray.runtime import host
from elsa_ray.runtime.executor import ConductedExecutor
from elsa_ray.training.evidence import Evidence, judge_members
from elsa_ray.training.probing import answer_probes
from elsa_ray.world.plan import WorkKey
from tests.helpers import run_config, run_inline, write_texts
from tests.stepwise import Stepwise, exclude_nobody, planted_rows, rewrite_data, with_deadline, write_towns
from tests.world.test_bytes_of_runs import carried_by_role
from tests.world.test_late_updates import trained_by_hand
from tests.world.towns import DOWN, UP, TownRun, town_config

PROBES = {"probes": {"kind": "dataset", "count": 10}}
OUT = TrustState(0.1, excluded_until_round=99, probation_until_round=99)
LATE = WorkKey(0, 0, 2)


@pytest.fixture(autouse=True)
def _verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests themselves exclude clients."""
    exclude_nobody(monkeypatch)


def same(first: Adapters | None, second: Adapters | None) -> bool:
    assert first is not None and second is not None and first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=72)


class TestWithoutInfluence:
    """Oracle 11 of methods.md 1.16: all weights 0, so other data give the very same global adapters."""

    def outcome(
        self, config: ExperimentConfig, *, rewritten: bool, out_after: int, client: int, rounds: int
    ) -> list[Round]:
        prepared = prepare(config)
        if rewritten:
            rewrite_data(prepared, client)
        done = []
        with Stepwise(config, prepared) as run:
            for round_index in range(rounds):
                if round_index == out_after:
                    run.change(trust={**run.state.trust, client: OUT})
                done.append(run.round())
        return done

    @pytest.mark.parametrize("evidence", ["verified", "reported"])
    def test_an_excluded_client_is_not_even_asked(self, dataset: dict[str, str], evidence: str) -> None:
        config = run_config(dataset, task=PROBES, protocol={"trust": {"evidence": evidence}, "rounds": 2})
        runs = [self.outcome(config, rewritten=own, out_after=0, client=1, rounds=2) for own in (False, True)]
        for ours, theirs in zip(*runs, strict=True):
            assert same(ours.state.adapters, theirs.state.adapters)
            assert ours.state.trust == theirs.state.trust and ours.state.trust[1] == OUT
            assert 1 not in ours.plan.work.client
        heard = [self.outcome(config, rewritten=own, out_after=9, client=1, rounds=1)[0] for own in (False, True)]
        assert not same(heard[0].state.adapters, heard[1].state.adapters), "otherwise its data count"

    @pytest.mark.parametrize("evidence", ["verified", "reported"])
    def test_nor_does_its_late_work_count_that_was_under_way(self, tmp_path: Path, evidence: str) -> None:
        config = late_config(tmp_path, clients=5, trust={"evidence": evidence})
        runs = [self.outcome(config, rewritten=own, out_after=1, client=4, rounds=2) for own in (False, True)]
        late = WorkKey(0, 0, 4)
        for ours, theirs in zip(*runs, strict=True):
            assert same(ours.state.adapters, theirs.state.adapters)
            assert {c: own for c, own in ours.state.trust.items() if c != 4} == {
                c: own for c, own in theirs.state.trust.items() if c != 4
            }
        first, second = runs[0]
        assert first.timeline.pending == (late,) and late in second.timeline.arrivals[0]
        assert second.results.losses[late] != runs[1][1].results.losses[late], "it was trained, on other data"


def test_full_trust_is_no_trust_at_all(dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With factors of one the probing, the tables and the verdicts leave every bit of the training alone."""
    common = {"rounds": 1, "edge_rounds": 2}
    plain = run_inline(run_config(dataset, task=PROBES, protocol=common, topology={"edges": 2}))

    def ones(clients: Sequence[int], *arguments: Any) -> Judgement:
        return Judgement(np.ones(len(clients)), tuple(TrustState() for _ in clients), ())

    monkeypatch.setattr(host, "judge_members", ones)
    for evidence in ("verified", "reported"):
        protocol = {**common, "trust": {"evidence": evidence}}
        trusted = run_inline(run_config(dataset, task=PROBES, protocol=protocol, topology={"edges": 2}))
        for ours, theirs in zip(trusted.rounds, plain.rounds, strict=True):
            assert same(ours.state.adapters, theirs.state.adapters)
            assert ours.report.train_loss == theirs.report.train_loss
    monkeypatch.undo()
    judged = run_inline(run_config(dataset, task=PROBES, protocol={**common, "trust": {}}, topology={"edges": 2}))
    assert not same(judged.adapters, plain.adapters), "whereas real verdicts weigh"


def test_the_model_is_the_mean_by_examples_times_trust_over_all_edges(
    dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client's own model is what the run ends in where only it counts."""
    config = run_config(
        dataset,
        task={**PROBES, "partition": {"kind": "dirichlet", "alpha": 0.5}},
        topology={"clients": 4, "edges": 2},
        protocol={"rounds": 1, "local_steps": 1, "trust": {}},
    )
    factors: dict[int, float] = {}

    def by_factor(clients: Sequence[int], *arguments: Any) -> Judgement:
        own = np.array([factors.get(client, 0.0) for client in clients])
        return Judgement(own, tuple(TrustState() for _ in clients), ())

    monkeypatch.setattr(host, "judge_members", by_factor)
    models = []
    for client in range(4):
        factors = {client: 1.0}
        models.append(run_inline(config).adapters)
    factors = {0: 1.0, 1: 0.25, 2: 0.5, 3: 0.75}
    run = run_inline(config)
    counts = run.prepared.setting.num_examples.tolist()
    assert len(set(counts)) > 2 and len(set(run.rounds[0].plan.work.edge.tolist())) == 2
    weights = [counts[client] * factors[client] for client in range(4)]
    for name, found in run.adapters.items():
        expected = sum(weight * model[name] for weight, model in zip(weights, models, strict=True)) / sum(weights)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not same(models[0], models[1])


def test_who_sends_something_else_than_it_has_trained_answers_well_and_only_its_edge_sees_it(
    dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An honest report is what the edge finds for itself, whatever codecs lose at the cuts; a sign flipper's is not."""
    seen: list[list[Evidence]] = []

    def watched(clients: Sequence[int], own: Sequence[Evidence], *arguments: Any) -> Judgement:
        assert list(clients) == list(range(6))
        seen.append(list(own))
        return judge_members(clients, own, *arguments)

    monkeypatch.setattr(host, "judge_members", watched)
    for evidence in ("verified", "reported"):
        config = run_config(
            dataset,
            task={"probes": {"kind": "dataset", "count": 40}},
            protocol={"rounds": 1, "trust": {"evidence": evidence}, "codec": [{"kind": "int8"}]},
            world={"misbehaviour": [{"kind": "sign_flip", "clients": [1], "scale": 50.0}]},
        )
        run_inline(config)
    verified, reported = seen
    for client, (found, told) in enumerate(zip(verified, reported, strict=True)):
        assert found.answers_QK is not None and told.answers_QK is not None and told.update is None
        assert np.allclose(found.answers_QK, told.answers_QK, rtol=1e-5, atol=1e-6) == (client != 1)
    honest = [told.answers_QK for client, told in enumerate(reported) if client != 1]
    spread = max(float(np.abs(one - other).mean()) for one in honest for other in honest)
    assert float(np.abs(reported[1].answers_QK - honest[0]).mean()) <= 2 * spread, "by what it says it is one of them"


def test_with_one_edge_clusters_change_nothing(dataset: dict[str, str]) -> None:
    clustering = {"dimensions": 4, "every": 1}
    plain = run_inline(run_config(dataset, task=PROBES, protocol={"rounds": 2}))
    clustered = run_inline(run_config(dataset, task=PROBES, protocol={"rounds": 2, "clustering": clustering}))
    assert same(plain.adapters, clustered.adapters)
    assert len(clustered.rounds[-1].state.fingerprints) == 6


def late_config(folder: Path, *, clients: int = 3, **protocol: Any) -> ExperimentConfig:
    """The last client's links are slow: its first work misses its gather."""
    config = town_config(folder, clients=clients, task=PROBES, protocol={"rounds": 4, **protocol})
    return with_deadline(config, late=clients - 1)


@pytest.mark.parametrize("evidence", ["verified", "reported"])
def test_late_work_is_judged_by_its_own_evidence_at_the_gather_that_takes_it(
    tmp_path: Path, evidence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything else on: calibrations that outlive a round, fingerprints, updates with feedback."""
    codec = [{"kind": "ssop", "rank": 4, "refresh_rounds": 3}, {"kind": "subspace", "rank": 8, "refresh_rounds": 3}]
    update = [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.2}]}]
    config = late_config(
        tmp_path,
        trust={"evidence": evidence},
        clustering={"dimensions": 4},
        codec={"activation": codec, "gradient": codec, "update": update},
    )
    judged: list[tuple[int, list[int]]] = []

    def watched(clients: Sequence[int], own: Any, states: Any, round_index: int, inquiry: Any) -> Judgement:
        judged.append((round_index, list(clients)))
        return judge_members(clients, own, states, round_index, inquiry)

    monkeypatch.setattr(host, "judge_members", watched)
    done: list[Round] = []
    with Stepwise(config) as run:
        while not done or run.state.round_index < 4:
            done.append(run.round())
    takes = next(each for each in done if any(LATE in keys for keys in each.timeline.arrivals))
    at = takes.report.round_index
    assert at >= 1 and done[0].timeline.pending == (LATE,)
    assert judged[:at] == [(index, [0, 1]) for index in range(at)] and judged[at] == (at, [0, 1, 2])
    for each in done:
        is_known = each.report.round_index >= at
        assert (2 in each.state.trust) == (2 in each.state.fingerprints) == is_known
        assert each.state.calibrated.get(2) == (0 if is_known else None)
        assert (2 in each.state.memories) == is_known
    assert 0 < takes.state.trust[2].score < 1
    carried, encoded = Counter[str](), Counter[str]()
    for each in done[: at + 1]:
        carried.update(carried_by_role(each.timeline))
        encoded.update(each.results.encoded_bytes)
    assert not takes.timeline.pending and carried == encoded


def test_the_evidence_of_late_work_is_that_of_the_model_it_made_of_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[Evidence]] = {}

    def watched(clients: Sequence[int], own: Sequence[Evidence], states: Any, at: int, inquiry: Any) -> Judgement:
        seen[at] = list(own)
        return judge_members(clients, own, states, at, inquiry)

    monkeypatch.setattr(host, "judge_members", watched)
    config = late_config(tmp_path, trust={})
    with Stepwise(config) as run:
        first, second = run.round(), run.round()
        assert LATE in second.timeline.arrivals[0]
        setting, probes = run.prepared.setting, run.prepared.setting.task.probes
        assert probes is not None
        town = TownRun(run.prepared, [first, second], run.model, run.first_adapters)
        (late,) = trained_by_hand(town, [LATE], run.first_adapters)
        stacked = {name: tensor[None] for name, tensor in late.items()}
        (expected,) = answer_probes(run.model, stacked, probes, setting.task.backbone.config.pad_token_id)
    assert expected.answers_QK is not None
    assert np.array_equal(seen[1][2].answers_QK, expected.answers_QK)
    assert not np.array_equal(seen[1][2].answers_QK, seen[1][0].answers_QK)


def test_a_client_that_is_given_another_edge_while_it_is_late_calibrates_anew_there(tmp_path: Path) -> None:
    """What it brings to the old edge still counts; but its keys lie there, and it is not told before its next work."""
    way = (UP, DOWN, 2.0**-6)
    ways = [{0: way}, {0: way}, {0: (UP / 3, DOWN / 3, 2.0**-6), 1: (UP, DOWN, 2.0**-5)}, {1: way}, {1: way}]
    config = town_config(
        tmp_path,
        topology=write_towns(tmp_path, ways, [(2.0**24, 2.0**-5)] * 2),
        task=PROBES,
        protocol={
            "rounds": 4,
            "clustering": {"dimensions": 4, "latency_weight": 0.0},
            "codec": [{"kind": "ssop", "rank": 4, "refresh_rounds": 9}],
        },
        world={"round_policy": {"deadline_seconds": 2.5, "late": "keep"}},
    )
    old, new = (int(edge) for edge in prepare(config).setting.network.edges)

    def planted(results: RoundResults) -> RoundResults:
        return replace(results, fingerprints=planted_rows({0: 0, 1: 0, 2: 1, 3: 1, 4: 1}, 4))

    with Stepwise(config) as run:
        run.change(edge_of_client=(old, old, old, new, new))
        first = run.round(planted)
        assert first.timeline.pending == (LATE,) and first.report.moved == ((2, new),)
        second = run.round()
        assert any(LATE in keys for keys in second.timeline.arrivals) and 2 not in second.plan.work.client
        assert LATE in second.results.losses and second.state.calibrated == {0: 0, 1: 0, 3: 0, 4: 0}
        third = run.round()
    row = third.plan.work.client.tolist().index(2)
    assert third.plan.work.calibrates.tolist() == [int(client == 2) for client in third.plan.work.client.tolist()]
    assert third.plan.work.edge[row] == new and third.state.calibrated[2] == 2
    before, after = second.state.memories[2], third.state.memories[2]
    assert not torch.equal(before.edge.first[0][1], after.edge.first[0][1])
    assert torch.equal(after.edge.first[0][1], after.client.calibration.first[0][1])


class TestTwoWorksOfOneClientAtOnce:
    """Its first work arrives after its edge's gather and before the round's end: the next gather takes it and the next.

    The first was late for the frozen blocks' sake, which the second already has.
    """

    @pytest.fixture
    def config(self, tmp_path: Path) -> ExperimentConfig:
        return self.make(tmp_path)

    def make(self, folder: Path, **protocol: Any) -> ExperimentConfig:
        fast, narrow = (UP, DOWN, 2.0**-6), (UP, DOWN / 2, 2.0**-6)
        ways = [{0: narrow, 1: (UP, DOWN, 2.0**-5)}, {0: fast}, {0: fast}, {1: fast}]
        config: ExperimentConfig = town_config(
            folder,
            topology=write_towns(folder, ways, [(2.0**26, 2.0**-5), (2.0**26, 4.0)]),
            task={**PROBES, "preloaded": False},
            protocol={
                "rounds": 2,
                "trust": {},
                "codec": {
                    "activation": [{"kind": "subspace", "rank": 8, "refresh_rounds": 2}],
                    "update": [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.2}]}],
                },
                **protocol,
            },
            world={"round_policy": {"deadline_seconds": 5.0, "late": "keep"}},
            numerics={"edges_per_group": 1},
        )
        return config

    def start(self, run: Stepwise) -> tuple[int, int]:
        """Let all but the last client begin at the first edge; returns the nodes of both."""
        first, second = (int(edge) for edge in run.prepared.setting.network.edges)
        run.change(edge_of_client=(first, first, first, second))
        return first, second

    KEYS = (WorkKey(0, 0, 0), WorkKey(1, 0, 0), WorkKey(1, 0, 1), WorkKey(1, 0, 2))

    def test_each_is_judged_by_its_own_evidence(
        self, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[list[int], list[Evidence], Judgement]] = []

        def watched(clients: Sequence[int], own: Any, *arguments: Any) -> Judgement:
            seen.append((list(clients), list(own), judge_members(clients, own, *arguments)))
            return seen[-1][-1]

        monkeypatch.setattr(host, "judge_members", watched)
        with Stepwise(config) as run:
            self.start(run)
            run.round()
            second = run.round()
        assert second.timeline.arrivals[0] == self.KEYS
        _, evidence, judgement = next(call for call in seen if call[0] == [0, 0, 1, 2])
        answers = [own.answers_QK for own in evidence]
        assert not np.array_equal(answers[0], answers[1]), "two models of the same client"
        assert second.state.trust[0] == min(judgement.states[:2], key=lambda state: state.score), "the stricter counts"

    def test_it_is_excluded_for_either(self, config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        factors: list[list[float]] = []
        real = host.ModelHost._judge

        def harsh(clients: Sequence[int], *arguments: Any) -> Judgement:
            out = [position == 0 and len(clients) == 4 for position in range(len(clients))]
            states = tuple(OUT if own else TrustState() for own in out)
            return Judgement(np.where(out, 0.0, 0.5), states, ())

        def watched(self: host.ModelHost, *arguments: Any) -> list[float]:
            factors.append(real(self, *arguments))
            return factors[-1]

        monkeypatch.setattr(host, "judge_members", harsh)
        monkeypatch.setattr(host.ModelHost, "_judge", watched)
        with Stepwise(config) as run:
            self.start(run)
            run.round()
            second = run.round()
        assert second.timeline.arrivals[0] == self.KEYS and second.state.trust[0] == OUT
        assert [0.0, 0.5, 0.5, 0.5] in factors

    def test_what_it_remembers_passes_from_the_first_to_the_second_however_calls_overlap(
        self, config: ExperimentConfig
    ) -> None:
        started: list[int] = []

        class Overlapping(executor_module.InlineWorkers):
            """Two pools, and a newer cohort would overtake an older one."""

            num_pools = 2

            async def train(self, pool: int, cohort: Any, *arguments: Any) -> Any:
                started.append(cohort.members[0].key.round_index)
                for _ in range(20 * (2 - cohort.members[0].key.round_index)):
                    await asyncio.sleep(0)
                return await super().train(pool, cohort, *arguments)

        finished = []
        for make in (None, lambda *parts: ConductedExecutor(parts[0], Overlapping(*parts))):
            with Stepwise(config, executor=make) if make else Stepwise(config) as run:
                self.start(run)
                run.round()
                finished.append(run.round())
        ours, theirs = finished
        assert sorted(started[-3:]) == [0, 1, 1] and len(ours.results.cohort_sizes) == 3
        assert same(ours.state.adapters, theirs.state.adapters)
        for client, memories in ours.state.memories.items():
            other = theirs.state.memories[client]
            assert memories.client.errors.keys() == other.client.errors.keys() != set()
            for name, ((error,),) in memories.client.errors.items():
                assert torch.equal(error, other.client.errors[name][0][0])
            assert torch.equal(memories.edge.first[0][0], other.edge.first[0][0])

    def test_where_two_edges_tell_of_it_neither_haste_nor_mercy_decides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The client got another edge in between: the old one takes its first work, the new one its second."""

        def harsh(clients: Sequence[int], own: Any, states: Any, *arguments: Any) -> Judgement:
            if list(clients) == [0, 1, 2]:
                return Judgement(np.ones(3), (OUT, TrustState(), TrustState()), ())
            return judge_members(clients, own, states, *arguments)

        def hurried(slow: str) -> type[executor_module.InlineWorkers]:
            class Hurried(executor_module.InlineWorkers):
                """Every call to one host takes long."""

                async def call_host(self, name: str, *arguments: Any) -> Any:
                    for _ in range(50 if name == slow else 0):
                        await asyncio.sleep(0)
                    return await super().call_host(name, *arguments)

            return Hurried

        finished = []
        for slow in ("edge-group-0", "edge-group-1"):
            workers = hurried(slow)
            config = self.make(tmp_path, clustering={"dimensions": 4, "every": 9, "moved": 1.0})
            make = lambda *parts, workers=workers: ConductedExecutor(parts[0], workers(*parts))  # noqa: E731
            with Stepwise(config, executor=make) as run, monkeypatch.context() as patch:
                first, second = self.start(run)
                run.round()
                patch.setattr(host, "judge_members", harsh)
                run.change(edge_of_client=(second, first, first, second))
                finished.append(run.round())
        ours, theirs = finished
        assert ours.timeline.arrivals[:2] == (
            (WorkKey(0, 0, 0), WorkKey(1, 0, 1), WorkKey(1, 0, 2)),
            (WorkKey(1, 0, 0), WorkKey(1, 0, 3)),
        )
        assert np.array_equal(ours.state.fingerprints[0], theirs.state.fingerprints[0])
        assert ours.state.trust == theirs.state.trust and ours.state.trust[0] == OUT
