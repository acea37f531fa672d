"""No wait is without a deadline, and each says what it waited for."""

import asyncio
import time
from pathlib import Path

import pytest
import ray

from elsa_ray.runtime.actors import answer_of
from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError
from tests.runtime.runs import execute, small_config


@ray.remote(num_cpus=0)
class Sleeper:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        import os

        os._exit(1)


def test_a_silent_worker_ends_in_a_timeout_that_names_it(ray_cluster: None) -> None:
    sleeper = Sleeper.remote()
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.3 s for the sleeper to wake"):
        asyncio.run(answer_of(sleeper.sleep.remote(200), 0.3, "the sleeper to wake"))
    ray.kill(sleeper)


def test_a_dead_worker_is_an_error_that_names_it(ray_cluster: None) -> None:
    with pytest.raises(WorkerError, match=r"edge-group-7 to do gather: .*Actor"):
        asyncio.run(answer_of(Sleeper.remote().die.remote(), 200, "edge-group-7 to do gather"))


def test_a_cluster_without_room_is_waited_for_and_then_named(topic_data: Path, ray_cluster: None) -> None:
    config = small_config(topic_data, "runtime.pool_resources.num_cpus=64", "runtime.startup_timeout_seconds=1 s")
    with pytest.raises(WaitTimeoutError, match=r"room for .*pool-0, pool-1; free in the cluster"):
        execute(config, "ray")


def test_a_cluster_that_was_found_keeps_running_and_no_actor_is_left(topic_data: Path, ray_cluster: None) -> None:
    execute(small_config(topic_data, "protocol.rounds=1", "runtime.pools=1", "numerics.edges_per_group=2"), "ray")
    assert ray.is_initialized()
    deadline = time.monotonic() + 100
    while ray.cluster_resources()["CPU"] != ray.available_resources().get("CPU") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.cluster_resources()["CPU"] == ray.available_resources()["CPU"]
