"""Whoever dies, the run goes on with the same numbers; who dies again and again ends it, and is named."""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from elsa_ray.runtime import ray_executor
from elsa_ray.runtime.failure import WorkerError
from elsa_ray.runtime.shared import Shared
from tests.runtime.fragile_codec import chains
from tests.runtime.runs import Finished, execute, same, small_config
from tests.runtime.test_executors_agree import assert_same_run

FEW = ("runtime={pools: 2, edge_actors: 1}", "topology.clients=5")
"""Two edge groups in one actor: what dies with one of them takes the other along."""


def config_of(data: Path, *incidents: dict[str, Any], **protocol: Any) -> Any:
    """Two edge rounds, and clients that remember: whatever would count twice, shows."""
    codec = chains(*incidents)
    codec["update"] = [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.25}]}]
    return small_config(data, *FEW, **{"edge_rounds": 2, "codec": codec, **protocol})


def assert_same_to_the_bit(first: Finished, second: Finished) -> None:
    assert_same_run(first, second)
    for ours, theirs in zip(first.rounds, second.rounds, strict=True):
        assert same(ours.state, theirs.state)
        assert same(ours.results, theirs.results)
        assert same(ours.report, theirs.report)


def test_pool_edge_and_cloud_die_and_no_bit_changes(
    topic_data: Path, tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    """In turn: a pool in the middle of a step, the edge in its answer, the cloud while it sends its model."""
    undisturbed = execute(config_of(topic_data, rounds=3), "inline")
    (edge_node, *_) = undisturbed.prepared.setting.network.edges.tolist()
    disturbed = execute(
        config_of(
            topic_data,
            {"what": "die", "client": 1, "round": 0, "step": 1, "once": str(tmp_path / "pool")},
            {"what": "die", "client": 3, "round": 1, "role": "gradient_down", "once": str(tmp_path / "edge")},
            {
                "what": "die",
                "client": -2 - edge_node,
                "round": 2,
                "role": "adapter_down",
                "once": str(tmp_path / "cloud"),
            },
            rounds=3,
        ),
        "ray",
    )
    assert sorted(os.listdir(tmp_path)) == ["cloud", "edge", "pool"]
    assert_same_to_the_bit(disturbed, undisturbed)
    told = caplog.text
    assert re.search(
        r"to train cohort edge-group-[01]/0/\d: ActorDiedError: The actor is dead because its worker", told
    )
    assert "its work is done again (1 of 3)" in told
    assert re.search(r"edge-group-[01] to (answer|do) .*; round 1 is done again from its start \(1 of 3\)", told)
    assert "cloud to do send_model" in told and "round 2 is done again from its start (1 of 3)" in told


@pytest.mark.parametrize(
    ("incident", "runtime", "message"),
    [
        (
            {"client": 1, "step": 1},
            {},
            r"^cohort edge-group-1/0/0 \(round 0, client 1, 3\): the worker that trained it died 2 times in a row "
            r"\(runtime\.retries: 1\); the last time: pool-[01] to train .*ActorDiedError.*; if its node ran out of "
            r"memory, lower numerics\.cohort",
        ),
        (
            {"client": 3, "role": "gradient_down"},
            # One cohort at a time: else the death may be noticed first by a call for another one.
            {"pools": 1, "in_flight": 1},
            r"^round 0 was given up after 2 attempts \(runtime\.retries: 1\); lost: edge-groups-0-1 2 times; the last "
            r"time: edge-group-1 to answer .* of cohort edge-group-1/0/\d: ActorDiedError.*; finished rounds",
        ),
    ],
    ids=["pool", "edge"],
)
def test_who_dies_again_and_again_ends_the_run_and_is_named(
    incident: dict[str, Any], runtime: dict[str, Any], message: str, topic_data: Path, ray_cluster: None
) -> None:
    config = config_of(topic_data, {"what": "die", **incident}, rounds=1)
    config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"retries": 1, **runtime})})
    with pytest.raises(WorkerError, match=message):
        execute(config, "ray")


def random_moment(draw: random.Random, round_index: int, nodes: list[int]) -> dict[str, Any]:
    """Return when somebody dies in a round: a pool, an edge group or the cloud, while it encodes what it sends."""
    role = draw.choice(
        ["activation_up", "gradient_up", "activation_down", "gradient_down", "adapter_up", "adapter_down"]
    )
    client = draw.randrange(4)
    if role.startswith("adapter") and draw.random() < 0.5:
        client = -2 - draw.choice(nodes)
    steps = {} if role.startswith("adapter") else {"step": draw.randrange(2)}
    return {"what": "die", "client": client, "round": round_index, "role": role, **steps}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif("ELSA_RAY_TWENTY_DEATHS" not in os.environ, reason="160 s; ELSA_RAY_TWENTY_DEATHS=1 runs it")
def test_twenty_deaths_at_random_moments_change_no_bit(topic_data: Path, tmp_path: Path, ray_cluster: None) -> None:
    """One in each round. Which of the actors it is follows from the message: clients', edges' and the cloud's."""
    few = ("topology.clients=4", "topology.edges=1", "evaluation.every=5", "runtime.pools=1")
    undisturbed = execute(small_config(topic_data, *few, rounds=20, codec=chains()), "inline")
    draw, nodes = random.Random(5), undisturbed.prepared.setting.network.edges.tolist()
    incidents = [{**random_moment(draw, trial, nodes), "once": str(tmp_path / str(trial))} for trial in range(20)]
    assert len({incident["role"] for incident in incidents}) == 6
    disturbed = execute(small_config(topic_data, *few, rounds=20, codec=chains(*incidents)), "ray")
    assert len(os.listdir(tmp_path)) == 20
    assert_same_to_the_bit(disturbed, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_is_lost_in_the_middle_of_a_round_and_no_bit_changes(topic_data: Path) -> None:
    """One of three, with a pool and at least one edge. The other pools go on; nobody waits for room for the third."""
    with tempfile.TemporaryDirectory(prefix="nodes-") as folder:  # Ray's sockets need a short path
        command = [sys.executable, "-m", "tests.runtime.on_nodes", str(topic_data), folder, "lose"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    assert "the same on 2 of 3 nodes" in done.stdout
    assert "round 0 is done again from its start (1 of 3)" in done.stdout


def lost_reference() -> Any:
    """Return a reference to a value whose owner has died."""

    @ray.remote(num_cpus=0)
    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(np.zeros(1_000_000))]  # too large to travel with its reference

    owner = Owner.remote()
    (lost,) = ray.get(owner.put.remote())
    ray.kill(owner)
    deadline = time.monotonic() + 60  # Ray notices the death a little later
    with pytest.raises(ray.exceptions.ObjectLostError):
        while time.monotonic() < deadline:
            ray.get(lost, timeout=60)
            time.sleep(0.1)
    return lost


def test_a_value_that_got_lost_is_put_again(ray_cluster: None) -> None:
    shared = Shared(lambda: "made")
    kept = shared.reference
    shared.renew()
    assert shared.reference is kept
    shared._reference = lost_reference()
    shared.renew()
    assert ray.get(shared.reference) == "made"


@pytest.mark.parametrize("payloads", ["adapter_down", "uploads"])
def test_payloads_that_got_lost_on_their_way_are_made_again(
    payloads: str,
    topic_data: Path,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They lie where they were made, and the driver only passes on where that is: a node's death takes them along."""
    config = small_config(topic_data, "numerics.cohort=6", "topology.edges=1", "runtime.pools=1", **{"rounds": 1})
    undisturbed = execute(config, "inline")
    lost: list[Any] = []

    def lose(reference: Any) -> Any:
        assert isinstance(reference, ray.ObjectRef)
        if lost:
            return reference
        lost.append(lost_reference())
        return lost[0]

    class Losing(ray_executor._RayWorkers):
        async def start_cohort(self, *arguments: Any) -> Any:
            adapter_down = await super().start_cohort(*arguments)
            return lose(adapter_down) if payloads == "adapter_down" else adapter_down

        async def train(self, *arguments: Any) -> Any:
            trained, uploads = await super().train(*arguments)
            return trained, lose(uploads) if payloads == "uploads" else uploads

    monkeypatch.setattr(ray_executor, "_RayWorkers", Losing)
    assert_same_to_the_bit(execute(config, "ray"), undisturbed)
    assert len(lost) == 1 and "round 0 is done again from its start (1 of 3)" in caplog.text, caplog.text
    assert "replaced" not in caplog.text, "nobody has died"
