"""Several nodes of several kinds: every actor is where the config wants it, and the bits are those of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_actors_are_on_the_nodes_of_their_kind(topic_data: Path) -> None:
    """Edges on two nodes with logical GPUs, pools of two devices with different shares on nodes of two kinds."""
    command = [sys.executable, "-m", "tests.runtime.on_placed_nodes", str(topic_data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    kinds = told["kinds"]
    assert {kinds.pop("edge-group-0"), kinds.pop("edge-group-1")} == {"GPU"} and told["edge_nodes"] == 2
    kinds.pop("cloud")  # takes no resource, so it is bound to no node
    assert kinds == {"pool-0": "phone_node", "pool-1": "phone_node", "pool-2": "laptop_node"}
    assert told["said"] == [
        "1 cloud: 0 CPU; on 1 node: 1 of 2 CPU + phone_node",
        "2 edge groups: 0 CPU + 0.5 GPU each; on 2 nodes: 2 of 1 CPU + 1 GPU",
        "2 pools of phone: 0.5 CPU + 0.5 phone_node each; on 1 node: 1 of 2 CPU + phone_node",
        "1 pool of laptop: 1 CPU + 1 laptop_node; on 1 node: 1 of 1 CPU + laptop_node",
    ]
    assert told["same"] and set(told["groups"]) == {"REMOVED"}
