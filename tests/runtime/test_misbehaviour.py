"""Misbehaving clients in whole runs: what they do reaches their edge as it should, and touches nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elsa_ray.aggregation.weighted import is_finite
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import make_config
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import prepare
from elsa_ray.records.round import Round
from elsa_ray.runtime import pool
from elsa_ray.runtime.host import ModelHost
from elsa_ray.runtime.pool import ClientPool
from elsa_ray.training import client as client_module
from elsa_ray.training.batches import CohortBatch
from elsa_ray.world.plan import WorkKey
from tests.helpers import WORDS, Run, run_config, run_inline
from tests.stepwise import Stepwise, exclude_nobody, rewrite_data
from tests.world.stories import assert_equal

CLIENTS = 9
DEEDS: list[dict[str, Any]] = [
    {"kind": "sign_flip", "clients": [1], "scale": 0.5},
    {"kind": "scaled_update", "clients": [2], "factor": 4.0},
    {"kind": "gaussian_update", "clients": [3]},
    {"kind": "nan_payload", "clients": [4]},
    {"kind": "stale_replay", "clients": [5]},
    {"kind": "sleeper", "clients": [6], "rounds": 1, "then": {"kind": "sign_flip"}},
    {"kind": "label_flip", "clients": [7]},
    {"kind": "probe_liar", "clients": [8]},
]
HONEST_AT_FIRST = (0, 5, 6, 8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Texts of three topics with words of their own, so that honest clients learn the same."""
    folder, draw, paths = tmp_path_factory.mktemp("texts"), np.random.default_rng(0), {}
    for name, count in (("train", 118), ("test", 16)):
        lines = []
        for number in range(count):
            text = " ".join(draw.choice(WORDS[number % 3 :: 3], size=int(draw.integers(3, 7))))
            lines.append(json.dumps({"text": text, "label": f"label{number % 3}"}) + "\n")
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(lines), encoding="utf-8")
    return paths


def make(dataset: dict[str, str], deeds: list[dict[str, Any]], **protocol: Any) -> ExperimentConfig:
    config: ExperimentConfig = run_config(
        dataset,
        task={"probes": {"kind": "dataset", "count": 10}},
        topology={"clients": CLIENTS, "edges": 1},
        protocol={"rounds": 2, "local_steps": 1, **protocol},
        world={"misbehaviour": deeds},
    )
    return config


@dataclass
class Seen:
    """What clients do in a run, by work item.

    Attributes:
        uploads: adapter_up payloads.
        received, trained: models at the start and the end of the training.
        understood: what the edge makes of the uploads: tensors of the client's parts.
        labels: of each step's batch, before and after the client has had its way with them.
    """

    uploads: dict[WorkKey, bytes] = field(default_factory=dict)
    received: dict[WorkKey, Adapters] = field(default_factory=dict)
    trained: dict[WorkKey, Adapters] = field(default_factory=dict)
    understood: dict[WorkKey, Adapters] = field(default_factory=dict)
    labels: list[tuple[CohortBatch, CohortBatch, list[WorkKey]]] = field(default_factory=list)


@contextmanager
def watched() -> Iterator[Seen]:
    seen = Seen()
    upload, receive, see = ClientPool._upload, ModelHost._receive_upload, client_module._as_members_see_it

    def own_upload(self: ClientPool, cohort: Any, member: Any, received: Adapters, result: Any, memory: Any) -> Any:
        payload, after = upload(self, cohort, member, received, result, memory)
        seen.uploads[member.key], seen.received[member.key] = payload, received
        seen.trained[member.key] = result.adapters
        return payload, after

    def own_receive(self: ModelHost, cohort: Any, member: Any, payload: bytes) -> Adapters:
        seen.understood[member.key] = receive(self, cohort, member, payload)
        return seen.understood[member.key]

    def own_see(batch: CohortBatch, cohort: Any, recipe: Any) -> CohortBatch:
        after = see(batch, cohort, recipe)
        seen.labels.append((batch, after, [member.key for member in cohort.members]))
        return after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool.ClientPool, "_upload", own_upload)
        patch.setattr(ModelHost, "_receive_upload", own_receive)
        patch.setattr(client_module, "_as_members_see_it", own_see)
        yield seen


class TestEachDeed:
    """All kinds in one run beside an honest one; two rounds of each, whose first starts from the same model."""

    @pytest.fixture(scope="class")
    def honest(self, dataset: dict[str, str]) -> Seen:
        with watched() as seen:
            run_inline(make(dataset, [], rounds=1))
        return seen

    @pytest.fixture(scope="class")
    def attacked(self, dataset: dict[str, str]) -> tuple[Seen, Run]:
        with watched() as seen:
            run = run_inline(make(dataset, DEEDS))
        return seen, run

    def test_who_is_honest_sends_the_very_same_bytes(self, honest: Seen, attacked: tuple[Seen, Run]) -> None:
        seen, _ = attacked
        for number in range(CLIENTS):
            key = WorkKey(0, 0, number)
            assert (seen.uploads[key] == honest.uploads[key]) == (number in HONEST_AT_FIRST)

    def test_uploads_are_what_the_deeds_make_of_the_training(self, attacked: tuple[Seen, Run]) -> None:
        seen, _ = attacked

        def updates(key: WorkKey) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for name, received in seen.received[key].items():
                yield received, seen.trained[key][name] - received, seen.understood[key][name]

        for round_index in (0, 1):
            sent = {number: list(updates(WorkKey(round_index, 0, number))) for number in range(CLIENTS)}
            for received, update, understood in sent[1]:
                assert torch.equal(understood, received - 0.5 * update)
            for received, update, understood in sent[2]:
                assert torch.equal(understood, received + 4.0 * update)
            for received, update, understood in sent[3]:
                noise = (understood - received).square().mean()
                assert 0.2 * update.square().mean() <= noise <= 5 * update.square().mean()
                assert not torch.equal(understood - received, update) or not update.any()
            assert all(bool(understood.isnan().all()) for _, _, understood in sent[4])
            for received, update, understood in sent[6]:
                assert torch.equal(understood, received + update if round_index == 0 else received - update)
            for number in (0, 7, 8):
                assert all(torch.equal(understood, received + update) for received, update, understood in sent[number])

    def test_a_replay_is_the_first_upload_again(self, attacked: tuple[Seen, Run]) -> None:
        seen, run = attacked
        first, again = (seen.understood[WorkKey(round_index, 0, 5)] for round_index in (0, 1))
        assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
        trained = seen.trained[WorkKey(1, 0, 5)]
        assert not all(torch.equal(again[name], trained[name]) for name in again)
        kept = {client: memories.client.first_sent for client, memories in run.rounds[-1].state.memories.items()}
        assert set(kept) == {5}, "nobody else needs to remember anything"

    def test_labels_are_flipped_for_the_flipper_alone(self, attacked: tuple[Seen, Run]) -> None:
        seen, run = attacked
        num_labels = run.prepared.setting.task.num_labels
        assert len(seen.labels) > 2
        for before, after, keys in seen.labels:
            assert before.labels_CB is not None and after.labels_CB is not None
            assert before.ids_NS is after.ids_NS and before.mask_NS is after.mask_NS
            for key, old_B, new_B in zip(keys, before.labels_CB, after.labels_CB, strict=True):
                mirrored_B = torch.where(old_B < 0, old_B, num_labels - 1 - old_B)
                assert torch.equal(new_B, mirrored_B if key.client == 7 else old_B)

    def test_numbers_that_are_none_never_reach_the_global_model(self, attacked: tuple[Seen, Run]) -> None:
        _, run = attacked
        for finished in run.rounds:
            assert finished.report.failed == (4,)
            assert finished.state.adapters is not None and is_finite(finished.state.adapters)


def test_the_honest_and_the_attacked_run_share_all_other_randomness(dataset: dict[str, str]) -> None:
    """Who takes part, is slow, drops out, whose message is spoilt; and how messages are rounded and turned."""
    stochastic = {"kind": "int8", "rounding": "stochastic"}
    cut = [{"kind": "ssop", "rank": 4}, {"kind": "sketch", "rows": 2, "buckets": 16, "hash": "fresh"}, stochastic]
    protocol = {
        "rounds": 3,
        "participation": 0.8,
        "codec": {"activation": cut, "gradient": cut, "update": [stochastic]},
    }
    field = {
        "availability": {"kind": "bernoulli", "probability": 0.9},
        "faults": {
            "dropout": {"before": 0.1, "during": 0.1, "after": 0.1},
            "stragglers": {"kind": "lognormal", "sigma": 0.5},
            "corruption": {"probability": 0.05},
        },
    }
    seen, done = [], []
    for deeds in ([], DEEDS):
        config = make(dataset, deeds, **protocol)
        values = config.model_dump(mode="json")
        with watched() as uploads:
            done.append(run_inline(make_config({**values, "world": {**values["world"], **field}})).rounds)
        seen.append(uploads)
    for ours, theirs in zip(*done, strict=True):
        assert_equal(ours.timeline, theirs.timeline)
        assert ours.plan.work.client.tolist() == theirs.plan.work.client.tolist()
    assert any(each.timeline.dropped for each in done[0]), "some did drop out"
    first = [key for key in seen[0].uploads if key.round_index == 0]
    honest = {key.client for key in first if seen[0].uploads[key] == seen[1].uploads[key]}
    assert len(first) > 3 and honest == {key.client for key in first} & set(HONEST_AT_FIRST)


@pytest.mark.parametrize(
    "protocol",
    [
        {"trust": {}},
        {"trust": {"evidence": "reported"}},
        {"codec": {"update": [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.2}]}]}},
        {"codec": {"update": [{"kind": "int8"}]}},
    ],
    ids=["verified", "reported", "feedback", "int8"],
)
def test_what_a_client_has_whose_numbers_are_none_does_not_matter(
    dataset: dict[str, str], protocol: dict[str, Any]
) -> None:
    """Bit for bit: it is as if it were not there, whatever carries its numbers and whoever judges them."""
    outcomes: list[list[Round]] = []
    for rewritten in (False, True):
        config = make(dataset, [{"kind": "nan_payload", "clients": [4]}], **protocol)
        prepared = prepare(config)
        if rewritten:
            rewrite_data(prepared, 4)
        with Stepwise(config, prepared) as run:
            outcomes.append([run.round(), run.round()])
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.state.adapters is not None and theirs.state.adapters is not None
        assert is_finite(ours.state.adapters)
        assert all(torch.equal(ours.state.adapters[name], theirs.state.adapters[name]) for name in ours.state.adapters)


class TestVerdicts:
    """Nine clients at one edge."""

    def test_numbers_that_are_none_exclude_for_a_term_and_then_count_half(self, dataset: dict[str, str]) -> None:
        trust = {"evidence": "reported", "exclusion_rounds": 2, "probation_rounds": 2}
        deeds = [{"kind": "sleeper", "clients": [4], "rounds": 1, "then": {"kind": "nan_payload"}}]
        with Stepwise(make(dataset, deeds, rounds=6, trust=trust)) as run:
            done = [run.round() for _ in range(6)]
        decided = [{own.decision.name for own in finished.report.decisions if own.client == 4} for finished in done]
        took_part = [4 in finished.plan.work.client for finished in done]
        assert took_part == [True, True, False, True, False, True]
        assert "EXCLUDED" in decided[1] and decided[2] == set()
        assert "PROBATION" in decided[3]
        assert [4 in finished.report.excluded for finished in done] == [False, True, False, True, False, True]

    def test_a_liar_is_caught_by_what_it_reports(self, dataset: dict[str, str]) -> None:
        deeds = [{"kind": "probe_liar", "clients": [8]}]
        run = run_inline(make(dataset, deeds, trust={"evidence": "reported"}))
        honest = run_inline(make(dataset, [], trust={"evidence": "reported"}))
        assert [finished.report.excluded for finished in run.rounds] == [(8,), (8,)]
        assert all(finished.report.excluded == () for finished in honest.rounds)
        assert 8 not in run.rounds[1].plan.work.client

    def test_and_not_where_its_edge_finds_out_by_itself(self, dataset: dict[str, str]) -> None:
        """It trains honestly, and nobody asks it: not a bit is different."""
        deeds = [{"kind": "probe_liar", "clients": [8]}]
        lying, honest = (run_inline(make(dataset, own, trust={})) for own in (deeds, []))
        for ours, theirs in zip(lying.rounds, honest.rounds, strict=True):
            assert ours.state.trust == theirs.state.trust and ours.report.decisions == theirs.report.decisions
            assert ours.state.adapters is not None and theirs.state.adapters is not None
            assert all(
                torch.equal(ours.state.adapters[name], theirs.state.adapters[name]) for name in ours.state.adapters
            )

    def test_whoever_turns_its_sign_scores_less_where_its_model_is_tried(
        self, dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exclude_nobody(monkeypatch)
        deeds = [{"kind": "sign_flip", "clients": [1, 2], "scale": 3.0}]
        run = run_inline(make(dataset, deeds, trust={}, local_steps=4, rounds=3))
        scores = {client: own.score for client, own in run.rounds[-1].state.trust.items()}
        assert max(scores[1], scores[2]) < min(score for client, score in scores.items() if client not in (1, 2))
