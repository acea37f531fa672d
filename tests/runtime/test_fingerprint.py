"""What decides bits besides the input, and what is said where workers differ in it."""

from dataclasses import replace
from pathlib import Path

import pytest

import elsa_ray
from elsa_ray.runtime.executor import InlineExecutor
from elsa_ray.runtime.fingerprint import FingerprintLog, describe_workers, differences, this_process
from tests.runtime.runs import small_config

OWN = this_process("cpu")
OTHER = replace(OWN, cpu_capability="AVX2", cpu_flags=("avx2", "fma"))


def test_a_fingerprint_is_a_fact_of_the_machine() -> None:
    assert replace(this_process("cpu"), threads=OWN.threads) == OWN and OWN.gpu is None
    assert OWN.libraries, "torch tells by what it multiplies"
    assert len({OWN.id, OTHER.id, replace(OWN, threads=OWN.threads + 1).id}) == 3


def test_unlike_workers_of_one_kind_are_told() -> None:
    assert differences({"pools": [OWN, OWN], "edge groups": [OTHER]}) == []
    (capability, flags) = differences({"pools": [OWN, OTHER, OWN], "edge groups": [OTHER]})
    ours = OWN.cpu_capability
    assert capability == f"pools differ in cpu_capability: 1 × AVX2, 2 × {ours}" and ours != "AVX2"
    assert flags.startswith("pools differ in cpu_flags: ")


def test_equal_workers_are_described_once() -> None:
    rows = describe_workers({"pools": [OWN, OTHER, OWN], "cloud": [OWN]})
    assert [(row["workers"], row["count"]) for row in rows if row["id"] == OWN.id] == [("pools", 2), ("cloud", 1)]
    assert sum(row["count"] for row in rows) == 4 and all(row["torch"] == OWN.torch for row in rows)


def test_who_took_the_place_of_an_unlike_worker_is_told_of_to_the_end() -> None:
    log = FingerprintLog(["pools", "cloud"])
    for kind, name in (("pools", "pool-0"), ("pools", "pool-1"), ("cloud", "cloud")):
        log.add(kind, name, OWN)
    log.add("pools", "pool-1", OWN)
    assert log.by_kind == {"pools": [OWN, OWN], "cloud": [OWN]} and differences(log.by_kind) == []
    for _ in range(2):
        log.add("pools", "pool-1", OTHER)
    log.add("pools", "pool-1", OWN)
    assert log.by_kind["pools"] == [OWN, OWN, OTHER] and differences(log.by_kind)


def test_a_run_says_at_its_end_what_became_of_its_workers(
    topic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first of two rounds a worker gives way to an unlike one."""
    log = FingerprintLog(["pools"])
    log.add("pools", "pool-0", OWN)
    monkeypatch.setattr(InlineExecutor, "fingerprints", lambda executor: log.by_kind)
    monkeypatch.setattr(InlineExecutor, "observe", lambda *told: log.add("pools", "pool-0", OTHER))
    config = small_config(topic_data, "protocol.rounds=2", "protocol.local_steps=1", "runtime.executor=inline")
    run = elsa_ray.run(config, out=tmp_path / "run")
    assert run.summary["bit_reproducible"] is False
    assert any(text.startswith("Not bit-reproducible: ") for text in run.summary["assumptions"])
    assert [row["id"] for row in run.summary["hardware"]["workers"]] == sorted([OWN.id, OTHER.id])
