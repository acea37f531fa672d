"""No wait is without a deadline, and each says what it waited for."""

import ast
import asyncio
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from elsa_ray.runtime.actors import answer_of
from elsa_ray.runtime.failure import NO_WORKER, WaitTimeoutError, WorkerError, WorkerLostError
from tests.runtime.runs import execute, small_config

ROOT = Path(__file__).parents[2]


@ray.remote(num_cpus=0)
class Sleeper:
    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        import os

        os._exit(1)


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def has_deadline(call: ast.Call) -> bool:
    return any(keyword.arg == "timeout" for keyword in call.keywords)


def test_nothing_waits_for_ray_without_a_deadline() -> None:
    """A value is got with a timeout, or of what a wait with a timeout has named, or awaited in ``answer_of``."""
    seen, endless = 0, []
    for path in sorted((ROOT / "elsa_ray").rglob("*.py")):
        text = path.read_text()
        waits = "import ray" in text or "subprocess" in text or ".remote(" in text
        for function in ast.walk(ast.parse(text if waits else "")):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls = [node for node in ast.walk(function) if is_call(node, "ray.get", "ray.wait", "subprocess.run")]
            is_ready = any(is_call(call, "ray.wait") and has_deadline(call) for call in calls)
            seen += len(calls)
            where = f"{path.relative_to(ROOT)}: {function.name}"
            endless += [
                where for call in calls if not has_deadline(call) and not (is_call(call, "ray.get") and is_ready)
            ]
            awaited = [ast.unparse(node.value) for node in ast.walk(function) if isinstance(node, ast.Await)]
            endless += [
                where for text in awaited if ".remote(" in text and "answer_of(" not in text and "_call(" not in text
            ]
    assert seen > 8 and endless == []


def test_a_silent_worker_ends_in_a_timeout_that_names_it(ray_cluster: None) -> None:
    sleeper = Sleeper.remote()
    with pytest.raises(WaitTimeoutError, match=r"waited 0\.3 s for the sleeper to wake"):
        asyncio.run(answer_of(sleeper.sleep.remote(200), 0.3, "the sleeper to wake"))
    ray.kill(sleeper)


def test_a_dead_worker_is_an_error_that_names_it(ray_cluster: None) -> None:
    with pytest.raises(WorkerError, match=r"edge-group-7 to do gather: .*Actor"):
        asyncio.run(answer_of(Sleeper.remote().die.remote(), 200, "edge-group-7 to do gather"))


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node was 15 GB."),
        ObjectLostError("00ff", None, "driver"),
        WorkerCrashedError(),
        NodeDiedError("the node is gone"),
        ActorDiedError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("inside", [False, True], ids=["of-the-call", "of-a-call-inside"])
def test_whatever_ray_calls_a_loss_is_one_and_its_work_can_be_done_again(error: RayError, inside: bool) -> None:
    """An out-of-memory kill and a lost object too; also where the one that was called has met it."""

    async def fails() -> None:
        raise RayTaskError("train", "traceback", error) if inside else error

    with pytest.raises(WorkerLostError, match=f"^pool-1 to train: {type(error).__name__}: ") as caught:
        asyncio.run(answer_of(fails(), 200, "pool-1 to train", "pool-1"))
    is_argument = inside and isinstance(error, ObjectLostError)
    assert caught.value.worker == (NO_WORKER if is_argument else "pool-1") and "\n" not in str(caught.value)


def test_an_error_of_the_code_is_no_loss() -> None:
    async def fails() -> None:
        raise RayTaskError("train", "traceback", KeyError("layer"))

    with pytest.raises(WorkerError, match=r"^pool-1 to train: KeyError: 'layer'$") as caught:
        asyncio.run(answer_of(fails(), 200, "pool-1 to train", "pool-1"))
    assert not isinstance(caught.value, WorkerLostError)


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
