"""The same config means the same numbers, wherever and by however many workers it is computed."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from elsa_ray.records.folder import RunFolder
from elsa_ray.world.incidents import IncidentKind
from tests.runtime.runs import Finished, execute, same, same_adapters, small_config

ELSA = {"edge_rounds": 2, "codec": [{"kind": "sketch", "rows": 3, "buckets": 16}, {"kind": "int8"}]}
CALIBRATED = [{"kind": "ssop", "rank": 8}, {"kind": "subspace", "rank": 16, "refresh_rounds": 2}, {"kind": "int8"}]
EVERYTHING = {
    "rounds": 3,
    "clustering": {"dimensions": 4, "every": 1, "latency_weight": 0.0},
    "trust": {},
    "split": {"auto": {"hysteresis": 0.0}},
    "codec": {
        "activation": CALIBRATED,
        "gradient": CALIBRATED,
        "update": [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.25}]}],
    },
}
FIELD = (
    "topology.clients=7",
    "task.probes={kind: dataset, count: 10}",
    "world.clients.device={mix: {phone: 0.5, laptop: 0.5}}",
    "world.edges.device={flops_per_second: 4.0e+10}",
    "world.misbehaviour=[{kind: sign_flip, clients: [2]}, {kind: stale_replay, clients: [3]}]",
)
"""Clients of two kinds, two of which misbehave."""
TROUBLED = (
    "world.availability={kind: markov, mean_on_seconds: 4, mean_off_seconds: 1}",
    "world.faults.dropout={before: 0.1, during: 0.1, after: 0.1}",
    "world.faults.stragglers={kind: pareto, shape: 1.2}",
    "world.faults.corruption={probability: 0.05}",
    "world.faults.links=[{share: 0.3, start_seconds: 0.2, duration_seconds: 1, factor: 0.1}]",
    "world.faults.edges=[{edge: edge0, round: 1, duration_seconds: 1}]",
    "world.faults.cloud=[{start_seconds: 0.1, duration_seconds: 0.1}]",
    "world.round_policy={deadline_seconds: 3, late: keep}",
    "protocol.rounds=3",
)
"""A field in which everything fails."""
PROTOCOLS = {"elsa": ELSA, "fedavg": {"name": "fedavg", "local_steps": None, "local_epochs": 1}}


def assert_same_timeline(first: Finished, second: Finished) -> None:
    for a, b in zip(first.rounds, second.rounds, strict=True):
        for name, column in vars(a.timeline.activities).items():
            assert np.array_equal(column, getattr(b.timeline.activities, name)), name
        assert np.array_equal(a.timeline.start_seconds, b.timeline.start_seconds, equal_nan=True)
        assert np.array_equal(a.timeline.finish_seconds, b.timeline.finish_seconds, equal_nan=True)
        assert same(a.timeline, b.timeline), "all else: outcomes, bytes carried, arrivals"


def assert_same_run(first: Finished, second: Finished) -> None:
    assert_same_timeline(first, second)
    assert same_adapters(first, second)
    for a, b in zip(first.rounds, second.rounds, strict=True):
        assert a.report.train_loss == b.report.train_loss
        assert (a.report.score is None) == (b.report.score is None)
        if a.report.score is not None:
            assert a.report.score.loss == b.report.score.loss
            assert np.array_equal(a.report.score.confusion, b.report.score.confusion)
        assert a.results.encoded_bytes == b.results.encoded_bytes


@pytest.fixture(scope="module")
def inline(topic_data: Path) -> dict[str, Finished]:
    return {name: execute(small_config(topic_data, **protocol), "inline") for name, protocol in PROTOCOLS.items()}


@pytest.mark.parametrize(
    ("protocol", "runtime"),
    [
        ("elsa", "runtime={pools: 1, edge_actors: 1}"),
        ("elsa", "runtime={pools: 2}"),
        ("elsa", "runtime={pools: 3}"),
        ("fedavg", "runtime={pools: 2}"),
    ],
)
def test_ray_gives_the_bits_of_inline(
    protocol: str, runtime: str, inline: dict[str, Finished], topic_data: Path, ray_cluster: None
) -> None:
    """Pools 1, 2, 3: more than the two CPUs of the test cluster; edge groups in an actor each, or both in one."""
    config = small_config(topic_data, runtime, **PROTOCOLS[protocol])
    assert_same_run(execute(config, "ray"), inline[protocol])


def test_one_client_a_pool_and_a_cohort_gives_the_bits_of_inline(topic_data: Path, ray_cluster: None) -> None:
    """Three pools on two CPUs, each with one client at a time."""
    few = "topology={kind: hierarchical, clients: 3, edges: 1}"
    config = small_config(topic_data, few, "runtime.clients_per_pool=1", "numerics.cohort=1", **ELSA)
    assert_same_run(execute(config, "ray"), execute(config, "inline"))


def test_ray_gives_the_bits_and_the_state_of_inline_with_everything_on(topic_data: Path, ray_cluster: None) -> None:
    """What is remembered of clients too: keys, bases, lost parts of updates, standings, fingerprints, edges, splits."""
    config = small_config(topic_data, "runtime={pools: 2, edge_actors: 1}", *FIELD, **EVERYTHING)
    inline, by_ray = execute(config, "inline"), execute(config, "ray")
    assert_same_run(by_ray, inline)
    for ours, theirs in zip(by_ray.rounds, inline.rounds, strict=True):
        assert same(ours.state, theirs.state)
        assert same(ours.results, theirs.results)
        assert same(ours.report, theirs.report)
    last = inline.rounds[-1].state
    assert any(each.report.moved for each in inline.rounds) and len(set(last.splits)) > 1
    assert {len(memory.client.errors) > 0 for memory in last.memories.values()} == {True}
    assert sorted(last.trust) == sorted(last.fingerprints) == list(range(7)) and last.calibrated


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_none_plans_what_inline_does(protocol: str, inline: dict[str, Finished], topic_data: Path) -> None:
    planned = execute(small_config(topic_data, **PROTOCOLS[protocol]), "none")
    assert_same_timeline(planned, inline[protocol])
    assert planned.rounds[-1].report.num_bytes == inline[protocol].rounds[-1].report.num_bytes


@pytest.mark.parametrize("executor", ["inline", "ray", "none"])
def test_the_event_log_is_the_same_byte_for_byte(
    executor: str, topic_data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """Under everything that can go wrong, run a second time by inline itself."""
    config = small_config(topic_data, "runtime={pools: 1, edge_actors: 1}", *TROUBLED, **ELSA)
    first, second = (
        event_log(execute(config, executor), tmp_path / name)
        for name, executor in (("first", "inline"), ("second", executor))
    )
    assert first == second
    told = set(pyarrow.parquet.read_table(tmp_path / "first" / "events.parquet").column("event").to_pylist())
    assert {kind.label for kind in IncidentKind} <= told, "all kinds of trouble have come"


def event_log(finished: Finished, folder: Path) -> list[bytes]:
    """Write the records of a run, and return the bytes of both tables of what happened when."""
    with RunFolder.create(folder, finished.prepared.config) as written:
        for round_ in finished.rounds:
            written.write_round(round_, finished.prepared.setting)
        written.close()
    return [(folder / name).read_bytes() for name in ("events.parquet", "transfers.parquet")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_training_changes_the_adapters(protocol: str, inline: dict[str, Finished]) -> None:
    """Guards the comparisons above: equal because nothing moved would be no proof."""
    run = inline[protocol]
    first, last = run.rounds[0].state.adapters, run.rounds[-1].state.adapters
    assert any(not np.array_equal(first[name].numpy(), last[name].numpy()) for name in first)


def test_edge_groups_keep_the_timeline_and_the_bytes(topic_data: Path) -> None:
    """Where an edge is hosted may change cohorts, hence bits; never time or bytes."""
    apart = execute(small_config(topic_data), "inline")
    together = execute(small_config(topic_data, "numerics.edges_per_group=2"), "inline")
    assert_same_timeline(apart, together)
    assert apart.rounds[-1].results.encoded_bytes == together.rounds[-1].results.encoded_bytes
