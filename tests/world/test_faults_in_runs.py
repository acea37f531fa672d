"""Faults and policies in real runs: who is trained, what counts how much, where clients go, what is written down."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from elsa_ray.aggregation.weighted import weighted_mean
from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import prepare
from elsa_ray.records.assumptions import assumptions
from elsa_ray.records.folder import RunFolder
from elsa_ray.runtime.executor import NoExecutor
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.troubles import Cause
from tests.world.test_late_updates import assert_adapters, mean_by_hand, trained_by_hand
from tests.world.towns import TRUNK, TownRun, assert_same_timelines, only_plan, town_config, train

CITY = {"kind": "hierarchical", "clients": 6, "edges": 2}
TRAIN_IN_CITY = {"rounds": 4, "local_steps": 1}


Event = tuple[int, float, str, str | None, int, str]


def recorded(run: TownRun) -> tuple[list[Event], dict[str, Any]]:
    """Write a run's records; returns its events (round, seconds, event, node, client, detail) and what is summed up."""
    with TemporaryDirectory() as path:
        with RunFolder.create(Path(path) / "run", run.prepared.config) as folder:
            for each in run.rounds:
                folder.write_round(each, run.prepared.setting)
        events = pyarrow.parquet.read_table(folder.path / "events.parquet").to_pylist()
    return [tuple(row.values()) for row in events], folder.totals.figures()  # type: ignore[misc]


def assert_all_work_ends_once(run: TownRun) -> None:
    planned = [each.plan.work.key(row) for each in run.rounds for row in range(len(each.plan.work))]
    ends: Counter[WorkKey] = Counter()
    for each in run.rounds:
        timeline, arrived = each.timeline, [key for keys in each.timeline.arrivals for key in keys]
        ends.update([*arrived, *timeline.dropped, *timeline.skipped])
        if run.model is not None:
            assert sorted(each.results.losses) == sorted(arrived), "what arrives is trained, and nothing else"
    assert set(ends.values()) == {1}
    left = set(planned) - set(ends)
    assert set(run.rounds[-1].timeline.pending) <= left and set(ends) <= set(planned)
    assert not run.timelines[-1].pending or left


class TestStaleness:
    @pytest.mark.parametrize("name", ["elsa", "fedavg"])
    def test_a_late_update_counts_its_discounted_weight(self, tmp_path: Path, name: str) -> None:
        policy = {"quorum": 0.6, "late": "keep", "staleness": {"kind": "polynomial", "exponent": 2.0}}
        config = town_config(tmp_path, protocol={"name": name, "rounds": 2}, world={"round_policy": policy})
        run = train(config)
        late, fast = WorkKey(0, 0, 2), [WorkKey(0, 0, 0), WorkKey(0, 0, 1)]
        assert [each.timeline.arrivals[0] for each in run.rounds] == [
            tuple(fast),
            (late, WorkKey(1, 0, 0), WorkKey(1, 0, 1)),
        ]
        assert run.first_adapters is not None
        version = mean_by_hand(run, fast, trained_by_hand(run, fast, run.first_adapters))
        assert_adapters(run.rounds[0].state.adapters, version)
        keys = [WorkKey(1, 0, 0), WorkKey(1, 0, 1)]
        trained = [*trained_by_hand(run, [late], run.first_adapters), *trained_by_hand(run, keys, version)]
        examples = [len(run.prepared.setting.task.partition[client]) for client in (2, 0, 1)]
        weights = [examples[0] * 0.25, *examples[1:]]
        assert_adapters(run.rounds[1].state.adapters, weighted_mean(trained, weights))
        assert_same_timelines(run, only_plan(config))
        assert_all_work_ends_once(run)

    def test_a_constant_discount_is_the_same_however_late(self, tmp_path: Path) -> None:
        policy = {"quorum": 0.6, "late": "keep", "staleness": {"kind": "constant", "factor": 0.5}}
        config = town_config(tmp_path, protocol={"name": "fedavg", "rounds": 2}, world={"round_policy": policy})
        run = train(config)
        keys = run.timelines[1].arrivals[0]
        version, first = run.rounds[0].state.adapters, run.first_adapters
        assert version is not None and first is not None
        trained = [*trained_by_hand(run, keys[:1], first), *trained_by_hand(run, keys[1:], version)]
        examples = [len(run.prepared.setting.task.partition[key.client]) for key in keys]
        assert_adapters(run.rounds[1].state.adapters, weighted_mean(trained, [examples[0] * 0.5, *examples[1:]]))


class TestEdgeCrash:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory) -> TownRun:
        """An edge crashes as round 1 begins, and is back within round 2."""
        folder = tmp_path_factory.mktemp("crash")
        plain = only_plan(town_config(folder, topology=CITY, protocol=TRAIN_IN_CITY))
        second = plain.timelines[1]
        lasts = (second.end_seconds - second.begin_seconds) * 1.5
        crash = {"edge": "edge0", "round": 1, "duration_seconds": lasts}
        world = {"faults": {"edges": [crash]}}
        return train(town_config(folder, topology=CITY, protocol=TRAIN_IN_CITY, world=world))

    def test_its_work_is_lost_and_the_others_make_the_model(self, run: TownRun) -> None:
        setting, hit = run.prepared.setting, run.rounds[1]
        edge0, edge1 = setting.network.edges.tolist()
        edges = run.rounds[0].state.edge_of_client
        at_0, at_1 = ([c for c, edge in enumerate(edges) if edge == node] for node in (edge0, edge1))
        assert at_0 and at_1
        assert hit.timeline.dropped == tuple(WorkKey(1, 0, client) for client in at_0)
        assert set(hit.timeline.causes) == {Cause.EDGE_CRASHED}
        keys = [WorkKey(1, 0, client) for client in at_1]
        version = run.rounds[0].state.adapters
        assert version is not None
        expected = mean_by_hand(run, keys, trained_by_hand(run, keys, version))
        assert_adapters(hit.state.adapters, expected)

    def test_its_clients_go_to_the_next_best_edge_and_come_home(self, run: TownRun) -> None:
        edge0, edge1 = run.prepared.setting.network.edges.tolist()
        before, *_ = (each.state.edge_of_client for each in run.rounds)
        assert [set(each.plan.work.edge.tolist()) for each in run.rounds] == [
            {edge0, edge1},
            {edge0, edge1},
            {edge1},
            {edge0, edge1},
        ]
        moved = tuple((client, edge1) for client, edge in enumerate(before) if edge == edge0)
        home = tuple((client, edge0) for client, _ in moved)
        assert [each.report.moved for each in run.rounds] == [(), moved, home, ()]
        assert run.rounds[-1].state.edge_of_client == before
        assert sorted(run.rounds[2].report.participated) == list(range(6)), "nobody sits out"

    def test_it_is_all_written_down(self, run: TownRun) -> None:
        events, figures = recorded(run)
        begin = run.timelines[1].begin_seconds
        assert [event[1:] for event in events if event[2].startswith("edge_")] == [
            (begin, "edge_crashed", "edge0", -1, "edge0"),
            (
                begin + run.prepared.config.world.faults.edges[0].duration_seconds,
                "edge_recovered",
                "edge0",
                -1,
                "edge0",
            ),
        ]
        dropped = [event for event in events if event[2] == "work_dropped"]
        assert {event[1] for event in dropped} == {begin}
        assert {event[5] for event in dropped} == {"round 1, edge_round 0: edge_crashed"}
        assert figures["incidents"] == {"edge_crashed": 1, "edge_recovered": 1}
        assert figures["dropped_because"] == {"edge_crashed": len(dropped)}
        assert figures["clients_dropped"] == len(dropped)

    def test_a_plan_has_the_same_times(self, run: TownRun) -> None:
        assert_same_timelines(run, only_plan(run.prepared.config))
        assert_all_work_ends_once(run)

    def test_capacity_parks_who_finds_no_place_until_its_own_edge_is_back(self, tmp_path: Path) -> None:
        world = {
            "edges": {"capacity": 3},
            "faults": {"edges": [{"edge": "edge0", "start_seconds": 0, "duration_seconds": 1e-3}]},
        }
        run = only_plan(town_config(tmp_path, topology=CITY, protocol={"rounds": 2}, world=world))
        assert [len(each.plan.work) for each in run.rounds] == [3, 6]
        assert run.rounds[0].timeline.down_nodes == ()
        world["faults"]["edges"][0]["duration_seconds"] = 1e9
        run = only_plan(town_config(tmp_path, topology=CITY, protocol={"rounds": 2}, world=world))
        assert [len(each.plan.work) for each in run.rounds] == [3, 3]
        assert sorted(edge for _, edge in run.rounds[0].report.moved) == [-1, -1, -1]
        assert len(run.rounds[1].plan.parked_clients) == 3

    def test_with_no_edge_left_the_round_waits_for_one(self, tmp_path: Path) -> None:
        crashes = [{"edge": f"edge{n}", "start_seconds": 0, "duration_seconds": 50 + n} for n in range(2)]
        world = {"faults": {"edges": crashes}}
        run = only_plan(town_config(tmp_path, topology=CITY, protocol={"rounds": 1}, world=world))
        assert run.timelines[0].begin_seconds == 50.0
        assert len(run.rounds[0].plan.work) == 3


class TestPresence:
    def test_who_is_not_there_is_not_sampled_and_that_is_told(self, tmp_path: Path) -> None:
        world = {"availability": {"kind": "bernoulli", "probability": 0.4}}
        run = only_plan(town_config(tmp_path, topology=CITY, protocol={"rounds": 5}, world=world))
        events, figures = recorded(run)
        away = [(event[0], event[4]) for event in events if event[2] == "client_unavailable"]
        for number, each in enumerate(run.rounds):
            absent = {client for round_index, client in away if round_index == number}
            assert set(each.plan.work.client.tolist()) == set(range(6)) - absent
        assert 0 < len(away) < 30
        assert figures["incidents"] == {"client_unavailable": len(away)}

    def test_a_round_begins_when_somebody_comes(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("client,start_seconds,end_seconds\n1,16,9000\n2,32,9000\n", encoding="utf-8")
        world = {"availability": {"kind": "trace", "file": str(trace)}}
        run = only_plan(town_config(tmp_path, protocol={"rounds": 2}, world=world))
        assert run.timelines[0].begin_seconds == 16.0
        first, second = (each.plan.work.client.tolist() for each in run.rounds)
        assert first == [1]
        assert second == ([1, 2] if run.timelines[1].begin_seconds >= 32 else [1])

    def test_a_round_does_not_wait_for_ever_for_those_who_cannot_take_part(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("client,start_seconds,end_seconds,repeat_seconds\n0,1,2,4\n", encoding="utf-8")
        # Client 0 comes again and again, but it is parked.
        world = {"availability": {"kind": "trace", "file": str(trace)}}
        config = town_config(tmp_path, world=world, protocol={"rounds": 2})
        prepared = prepare(config)
        state = prepared.protocol.start(None)
        parked = replace(state, edge_of_client=(-1, *state.edge_of_client[1:]))
        with NoExecutor() as executor:
            done = list(rounds(prepared, parked, executor))
        assert [len(each.plan.work) for each in done] == [0, 0]

    def test_with_nobody_left_the_run_ends_all_the_same(self, tmp_path: Path) -> None:
        trace = tmp_path / "trace.csv"
        trace.write_text("client,start_seconds,end_seconds\n1,0,0.5\n", encoding="utf-8")
        world = {"availability": {"kind": "trace", "file": str(trace)}}
        run = train(town_config(tmp_path, protocol={"rounds": 3}, world=world))
        assert run.timelines[0].causes == (Cause.CLIENT_OFF,)
        assert [len(each.plan.work) for each in run.rounds] == [1, 0, 0]
        assert_adapters(run.rounds[-1].state.adapters, run.first_adapters or {})


def test_more_are_sampled_than_wanted_and_the_wanted_number_closes(tmp_path: Path) -> None:
    world = {"round_policy": {"over_sample": 1.5}}
    protocol = {"name": "fedavg", "participation": 0.65, "rounds": 3}
    run = only_plan(town_config(tmp_path, topology=CITY, protocol=protocol, world=world))
    for each in run.rounds:
        assert (len(each.plan.work), len(each.report.participated), len(each.report.dropped)) == (6, 4, 2)
        assert set(each.timeline.causes) == {Cause.QUORUM}
    trace = tmp_path / "trace.csv"
    trace.write_text("client,start_seconds,end_seconds\n0,0,9000\n1,0,9000\n", encoding="utf-8")
    world["availability"] = {"kind": "trace", "file": str(trace)}
    run = only_plan(town_config(tmp_path, topology=CITY, protocol=protocol, world=world))
    assert [each.report.participated for each in run.rounds] == [(0, 1)] * 3, "with none to spare all are waited for"


def test_everything_at_once_trains_what_survives_and_loses_nothing(tmp_path: Path) -> None:
    world = {
        "availability": {"kind": "markov", "mean_on_seconds": 40, "mean_off_seconds": 5},
        "faults": {
            "dropout": {"before": 0.1, "during": 0.1, "after": 0.1},
            "stragglers": {"kind": "pareto", "shape": 1.2, "max_factor": 8},
            "corruption": {"probability": 0.02, "max_tries": 3},
            "links": [{"share": 0.3, "among": "clients", "round": 1, "duration_seconds": 2, "factor": 0.1}],
            "edges": [{"edge": "edge1", "round": 2, "start_seconds": 0.5, "duration_seconds": 1}],
            "cloud": [{"round": 3, "duration_seconds": 1}],
        },
        "round_policy": {"quorum": 0.7, "late": "keep", "staleness": {"kind": "polynomial"}},
    }
    protocol = {"rounds": 5, "local_steps": 1, "edge_rounds": 2, "codec": [{"kind": "subspace", "rank": 8}]}
    config = town_config(tmp_path, topology=CITY, protocol=protocol, world=world)
    run = train(config)
    assert_same_timelines(run, only_plan(config))
    assert_all_work_ends_once(run)
    incidents = recorded(run)[1]["incidents"]
    assert {"client_slowed", "edge_crashed", "links_degraded", "cloud_down", "payload_corrupted"} <= set(incidents)


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({"edges": [{"edge": "edge9", "duration_seconds": 1}]}, "edges.0.edge: found edge9; allowed: edge0, edge1"),
        (
            {"links": [{"link": ["cloud", "edge0"], "duration_seconds": 1}]},
            "links.0.link: found cloud-edge0; allowed: a link; cloud has one to ['core']",
        ),
        ({"links": [{"link": ["cloud", "cor"], "duration_seconds": 1}]}, "links.0.link.1: found cor; allowed"),
    ],
)
def test_a_node_that_is_not_there_is_named(tmp_path: Path, faults: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        prepare(town_config(tmp_path, topology=CITY, world={"faults": faults}))
    assert str(error.value).startswith(f"world.faults.{told}")


def test_measured_capacities_are_the_clients_speeds_and_bandwidths(tmp_path: Path) -> None:
    file = tmp_path / "client_device_capacity"
    users = {7: {"computation": 1000.0 / 2**20, "communication": 8.192}}  # 2^30 FLOP/s and 1024 bytes/s
    file.write_bytes(pickle.dumps(users))
    clients = {"device": "phone", "capacities": {"file": str(file), "flops_per_sample": 2**10}}
    prepared = prepare(town_config(tmp_path, world={"clients": clients}))
    network, fleet = prepared.setting.network, prepared.setting.fleet
    assert [device.flops_per_second for device in fleet.clients] == [2.0**30] * 3
    own = np.isin(network.link_source, network.clients) | np.isin(network.link_target, network.clients)
    assert set(network.link_bandwidth_bytes_per_second[own].tolist()) == {1024.0}
    assert set(network.link_bandwidth_bytes_per_second[~own].tolist()) == {TRUNK}
    assert sorted(network.capacity_bytes_per_second.tolist()) == [1024.0] * 6 + [TRUNK] * 2
    (told,) = [sentence for sentence in assumptions(prepared.setting, "none") if sentence.startswith("Clients:")]
    assert "at 1024 FLOPs for the sample" in told and "power and memory of phone" in told


def test_the_path_of_a_trace_is_relative_to_the_config(tmp_path: Path) -> None:
    data = {"world": {"availability": {"kind": "trace", "file": "there.csv"}}}
    config = make_config(data, base_folder=tmp_path)
    assert config.world.availability.file == str(tmp_path / "there.csv")  # type: ignore[union-attr]
