"""What planning and playing costs grows no faster than n log n with the clients."""

from __future__ import annotations

import math
import time

import pytest

from elsa_ray.config.load import make_config
from elsa_ray.prepare import prepare

FEW, MANY = 500, 2000
SLACK = 1.6
"""For a machine that is busy with other things; a square law would need more than three times that."""


def cpu_seconds(clients: int) -> float:
    config = make_config(
        {
            "task": {"dataset": {"sizes": 32}, "model": "bert-base", "max_length": 64},
            "topology": {"kind": "hierarchical", "clients": clients, "edges": 10},
            "protocol": {"name": "elsa", "rounds": 1, "local_steps": 4, "batch_size": 8},
            "runtime": {"executor": "none"},
            "numerics": {"device": "cpu"},
        }
    )
    begin = time.process_time()
    prepared = prepare(config)
    state, world_state = prepared.protocol.start(None), prepared.world.start()
    plan = prepared.protocol.plan(state, world_state)
    timeline, _ = prepared.world.play(plan, world_state)
    seconds = time.process_time() - begin
    assert len(timeline.arrivals[0]) > 0 and sum(map(len, timeline.arrivals)) == clients
    return seconds


@pytest.mark.slow
def test_four_times_the_clients_cost_no_more_than_n_log_n() -> None:
    cpu_seconds(FEW // 10)  # what is made only once
    few, many = cpu_seconds(FEW), cpu_seconds(MANY)
    allowed = MANY * math.log(MANY) / (FEW * math.log(FEW)) * SLACK
    assert many < few * allowed, f"{many / few:.1f} times the CPU seconds, {allowed:.1f} allowed"
