"""A run attaches to the cluster that an address names, and leaves it as it was."""

import json
import subprocess
import sys
from pathlib import Path

import ray
import yaml


def test_a_run_by_address_uses_that_cluster_and_leaves_it_running(
    topic_data: Path, tmp_path: Path, ray_cluster: None
) -> None:
    config = {
        "name": "attached",
        "task": {"dataset": {"train": str(topic_data / "train.jsonl")}, "model": "tiny", "max_length": 8},
        "topology": {"kind": "hierarchical", "clients": 2, "edges": 1},
        "protocol": {"name": "elsa", "rounds": 1, "local_steps": 1},
        "runtime": {"executor": "ray", "pools": 1},
    }
    (tmp_path / "attached.yaml").write_text(yaml.safe_dump(config))
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "elsa_ray", "run", str(tmp_path / "attached.yaml"), "--address", address]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rounds_completed"] == 1
    assert ray.get(ray.put("alive")) == "alive"
