"""The simulated bytes and seconds of real runs: only payloads count, and nothing of the host."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.prepare import load_backbone, prepare
from elsa_ray.records.round import Round
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.world.plan import ActivityKind, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome, Timeline
from tests.world.towns import (
    ACCESS_LATENCY,
    DOWN,
    TRUNK,
    UP,
    TownRun,
    assert_same_timelines,
    only_plan,
    town_config,
    train,
)

CITY = {"kind": "hierarchical", "clients": 6, "edges": 2}
CODECS = [
    pytest.param([], id="plain"),
    pytest.param([{"kind": "int8"}], id="int8"),
    pytest.param([{"kind": "sketch", "buckets": 32}], id="sketch"),
]


def carried_by_role(timeline: Timeline) -> dict[str, int]:
    by_role: Counter[str] = Counter()
    for row in np.flatnonzero(timeline.activities.kind == ActivityKind.TRANSFER).tolist():
        by_role[Role(int(timeline.activities.label[row])).label] += int(timeline.carried_bytes[row])
    return dict(by_role)


@pytest.mark.parametrize("name", ["elsa", "fedavg"])
def test_the_links_carry_exactly_what_was_encoded_role_by_role(tmp_path: Path, name: str) -> None:
    codec = [{"kind": "int8"}] if name == "elsa" else {"adapter": [{"kind": "int8"}]}
    protocol = {"name": name, "rounds": 2, "codec": codec, **({"edge_rounds": 2} if name == "elsa" else {})}
    config = town_config(tmp_path, topology=CITY, protocol=protocol)
    run = train(config)
    for each in run.rounds:
        assert carried_by_role(each.timeline) == each.results.encoded_bytes
    assert run.rounds[-1].report.num_bytes == sum(sum(each.results.encoded_bytes.values()) for each in run.rounds)
    assert_same_timelines(run, only_plan(config))


def test_the_precision_of_the_computation_does_not_enter_simulated_time(tmp_path: Path) -> None:
    runs = [
        train(town_config(tmp_path, topology=CITY, protocol={"rounds": 2}, numerics={"precision": precision}))
        for precision in ("fp32", "bf16", "fp64")
    ]
    for other in runs[1:]:
        assert_same_timelines(runs[0], other)
        assert other.rounds[0].report.train_loss != runs[0].rounds[0].report.train_loss, "it was another computation"


@pytest.mark.parametrize("codec", CODECS)
def test_uncompressed_bytes_are_the_real_tokens_in_fp32_whatever_the_codec(tmp_path: Path, codec: list[object]) -> None:
    run = only_plan(town_config(tmp_path, topology=CITY, protocol={"rounds": 1, "codec": codec, "wire_dtype": "bf16"}))
    setting, activities = run.prepared.setting, run.timelines[0].activities
    steps = Counter[str]()
    for row in np.flatnonzero((activities.kind == ActivityKind.TRANSFER) & (activities.step >= 0)).tolist():
        client, step = int(activities.client[row]), int(activities.step[row])
        key = WorkKey(0, 0, client)
        examples = examples_of_steps(key, setting.task.partition[client], run.prepared.config.protocol, setting.seed)
        lengths = [int(setting.task.train.lengths[example]) for example in examples[step].tolist() if example >= 0]
        assert activities.uncompressed_bytes[row] == 4 * len(lengths) * max(lengths) * setting.shape.hidden_size
        steps[Role(int(activities.label[row])).label] += 1
    assert steps == {role: 12 for role in ("activation_up", "activation_down", "gradient_up", "gradient_down")}


def test_in_plain_fp32_a_payload_is_its_uncompressed_bytes_and_a_header(tmp_path: Path) -> None:
    run = only_plan(town_config(tmp_path, topology=CITY, protocol={"rounds": 1}))
    activities = run.timelines[0].activities
    transfers = activities.take(activities.kind == ActivityKind.TRANSFER)
    excess = transfers.num_bytes - transfers.uncompressed_bytes - HEADER_BYTES
    is_up = transfers.label == Role.ACTIVATION_UP
    assert not excess[~is_up].any()
    assert set((excess[is_up] // 2).tolist()) == {4}, "two bytes a text tell its length; a batch has four"


def weights_down(each: Round) -> list[tuple[str, int, int]]:
    """Return (target, bytes, uncompressed bytes) of each transfer of frozen blocks."""
    activities = each.timeline.activities
    rows = np.flatnonzero((activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.WEIGHTS_DOWN))
    return [
        (str(activities.target[row]), int(activities.num_bytes[row]), int(activities.uncompressed_bytes[row]))
        for row in rows.tolist()
    ]


@pytest.mark.parametrize("name", ["elsa", "fedavg"])
def test_frozen_blocks_are_sent_once_to_each_node_with_the_bytes_of_the_real_model(tmp_path: Path, name: str) -> None:
    task = {"preloaded": False}
    config = town_config(tmp_path, task=task, protocol={"name": name, "rounds": 2}, evaluation={"every": 100})
    run = train(config)
    network = run.prepared.setting.network
    backbone, _ = load_backbone(prepare(config))
    edge = ("bert.encoder.layer.1.", "bert.encoder.layer.2.")
    everything = sum(parameter.numel() for parameter in backbone.parameters())
    middle = sum(parameter.numel() for where, parameter in backbone.named_parameters() if where.startswith(edge))
    assert 0 < middle < everything
    header, clients = HEADER_BYTES, [str(node) for node in network.clients.tolist()]
    if name == "elsa":
        expected = [(str(node), header + 4 * middle, 4 * middle) for node in network.edges.tolist()]
        expected += [(node, header + 4 * (everything - middle), 4 * (everything - middle)) for node in clients]
    else:
        expected = [(node, header + 4 * everything, 4 * everything) for node in clients]
    assert weights_down(run.rounds[0]) == expected
    assert weights_down(run.rounds[1]) == []
    carried = carried_by_role(run.timelines[0])
    assert carried["weights_down"] == sum(num_bytes for _, num_bytes, _ in expected)
    assert carried == run.rounds[0].results.encoded_bytes
    assert run.rounds[0].report.num_bytes == int(run.timelines[0].carried_bytes.sum())
    activities, finish = run.timelines[0].activities, run.timelines[0].finish_seconds
    arrived = {
        int(activities.target[row]): finish[row]
        for row in np.flatnonzero(activities.label == Role.WEIGHTS_DOWN).tolist()
        if activities.kind[row] == ActivityKind.TRANSFER
    }
    trains = np.flatnonzero(activities.kind == ActivityKind.COMPUTE).tolist()
    assert trains and all(
        run.timelines[0].start_seconds[row] >= arrived[int(activities.source[row])]
        for row in trains
        if int(activities.source[row]) in arrived
    ), "nobody computes with blocks that are not there yet"


def test_preloaded_blocks_are_not_sent(tmp_path: Path) -> None:
    run = only_plan(town_config(tmp_path, protocol={"rounds": 1}))
    assert weights_down(run.rounds[0]) == []


def test_halving_the_payload_on_an_idle_path_saves_the_bytes_over_the_bottleneck(tmp_path: Path) -> None:
    wide, narrow = (
        only_plan(town_config(tmp_path, clients=1, slower_last=1.0, protocol={"rounds": 1, "wire_dtype": dtype}))
        for dtype in ("fp32", "bf16")
    )
    activities = wide.timelines[0].activities
    saved_seconds = 0.0
    for row in np.flatnonzero(activities.kind == ActivityKind.TRANSFER).tolist():
        numbers = int(activities.uncompressed_bytes[row]) // 4
        saved = int(activities.num_bytes[row]) - int(narrow.timelines[0].activities.num_bytes[row])
        assert saved == 2 * numbers
        if activities.client[row] < 0:
            bandwidth = TRUNK
        else:
            goes_up = activities.target[row] == wide.prepared.setting.network.edges[0]
            bandwidth = UP if goes_up else DOWN
        saved_seconds += saved / bandwidth
    difference = wide.timelines[0].end_seconds - narrow.timelines[0].end_seconds
    assert difference == pytest.approx(saved_seconds, rel=1e-12)


def test_a_smaller_payload_costs_the_same_latency_and_computation(tmp_path: Path) -> None:
    """What is left of the run's time when all bytes are free is the same for both."""
    rest = []
    for dtype in ("fp32", "bf16"):
        run = only_plan(town_config(tmp_path, clients=1, slower_last=1.0, protocol={"rounds": 1, "wire_dtype": dtype}))
        timeline, activities = run.timelines[0], run.timelines[0].activities
        flowing = 0.0
        for row in np.flatnonzero(activities.kind == ActivityKind.TRANSFER).tolist():
            is_trunk = activities.client[row] < 0
            latency = 2.0**-5 if is_trunk else ACCESS_LATENCY
            flowing += float(timeline.finish_seconds[row] - timeline.start_seconds[row]) - latency
        rest.append(timeline.end_seconds - flowing)
    assert rest[0] == rest[1] > 0


def budget_run(tmp_path: Path, stop: dict[str, float]) -> TownRun:
    return train(town_config(tmp_path, protocol={"rounds": 6, "stop": stop}))


@pytest.mark.parametrize("budget", ["simulated_seconds", "num_bytes"])
def test_a_budget_ends_the_run_after_the_first_round_that_reaches_it(tmp_path: Path, budget: str) -> None:
    spent = [
        float(getattr(each.report, budget)) for each in only_plan(town_config(tmp_path, protocol={"rounds": 4})).rounds
    ]
    for limit, expected in ((spent[1], 2), (np.nextafter(spent[1], np.inf), 3), (spent[0] / 2, 1)):
        run = only_plan(town_config(tmp_path, protocol={"rounds": 4, "stop": {budget: float(limit)}}))
        assert len(run.rounds) == expected
        assert [each.stop_reason for each in run.rounds] == [None] * (expected - 1) + [budget]


@pytest.mark.parametrize("budget", ["simulated_seconds", "num_bytes"])
def test_the_round_that_reaches_a_budget_is_evaluated_though_it_was_not_its_turn(tmp_path: Path, budget: str) -> None:
    first = only_plan(town_config(tmp_path, protocol={"rounds": 1})).rounds[0]
    run = budget_run(tmp_path, {budget: 1.5 * float(getattr(first.report, budget))})
    assert [each.report.score is not None for each in run.rounds] == [False, True]
    assert run.rounds[-1].stop_reason == budget


def test_the_last_of_all_rounds_is_evaluated_and_the_others_in_their_turn(tmp_path: Path) -> None:
    run = train(town_config(tmp_path, protocol={"rounds": 3, "local_steps": 1}, evaluation={"every": 2}))
    assert [each.report.score is not None for each in run.rounds] == [False, True, True]
    assert run.rounds[-1].stop_reason == "rounds"


def test_all_that_a_run_without_deadlines_plans_is_done(tmp_path: Path) -> None:
    run = only_plan(town_config(tmp_path, topology=CITY, protocol={"edge_rounds": 2}))
    for timeline in run.timelines:
        assert (timeline.outcome == Outcome.DONE).all()
        assert (timeline.carried_bytes == timeline.activities.num_bytes).all()
