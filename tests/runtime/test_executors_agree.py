"""The same config means the same numbers, wherever and by however many workers it is computed."""

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.runs import Finished, execute, same_adapters, small_config

ELSA = {"edge_rounds": 2, "codec": [{"kind": "sketch", "rows": 3, "buckets": 16}, {"kind": "int8"}]}
PROTOCOLS = {"elsa": ELSA, "fedavg": {"name": "fedavg", "local_steps": None, "local_epochs": 1}}


def assert_same_timeline(first: Finished, second: Finished) -> None:
    for a, b in zip(first.rounds, second.rounds, strict=True):
        for name, column in vars(a.timeline.activities).items():
            assert np.array_equal(column, getattr(b.timeline.activities, name)), name
        assert np.array_equal(a.timeline.start_seconds, b.timeline.start_seconds, equal_nan=True)
        assert np.array_equal(a.timeline.finish_seconds, b.timeline.finish_seconds, equal_nan=True)
        assert a.timeline.arrivals == b.timeline.arrivals


def assert_same_run(first: Finished, second: Finished) -> None:
    assert_same_timeline(first, second)
    assert same_adapters(first, second)
    for a, b in zip(first.rounds, second.rounds, strict=True):
        assert a.report.train_loss == b.report.train_loss
        assert a.report.score.loss == b.report.score.loss
        assert np.array_equal(a.report.score.confusion, b.report.score.confusion)
        assert a.results.encoded_bytes == b.results.encoded_bytes


@pytest.fixture(scope="module", params=list(PROTOCOLS))
def inline(request: pytest.FixtureRequest, topic_data: Path) -> tuple[dict, Finished]:
    protocol = PROTOCOLS[request.param]
    return protocol, execute(small_config(topic_data, **protocol), "inline")


@pytest.mark.parametrize(
    "runtime", ["runtime.pools=1", "runtime.pools=2", "runtime.pools=3", "runtime.clients_per_pool=1"]
)
def test_ray_gives_the_bits_of_inline(runtime: str, inline: tuple, topic_data: Path, ray_cluster: None) -> None:
    """Pools 1, 2, 3 (more than cores), and one client a pool (six pools)."""
    protocol, expected = inline
    assert_same_run(execute(small_config(topic_data, runtime, **protocol), "ray"), expected)


def test_none_plans_what_inline_does(inline: tuple, topic_data: Path) -> None:
    protocol, expected = inline
    planned = execute(small_config(topic_data, **protocol), "none")
    assert_same_timeline(planned, expected)
    assert planned.rounds[-1].report.num_bytes == expected.rounds[-1].report.num_bytes


def test_training_changes_the_adapters(inline: tuple) -> None:
    """Guards the comparisons above: equal because nothing moved would be no proof."""
    _, run = inline
    first, last = run.rounds[0].state.adapters, run.rounds[-1].state.adapters
    assert any(not np.array_equal(first[name].numpy(), last[name].numpy()) for name in first)


def test_edge_groups_keep_the_timeline_and_the_bytes(topic_data: Path) -> None:
    """Where an edge is hosted may change cohorts, hence bits; never time or bytes."""
    apart = execute(small_config(topic_data), "inline")
    together = execute(small_config(topic_data, "numerics.edges_per_group=2"), "inline")
    assert_same_timeline(apart, together)
    assert apart.rounds[-1].results.encoded_bytes == together.rounds[-1].results.encoded_bytes
