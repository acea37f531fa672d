"""What decides bits besides the input, and what is said where workers differ in it."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import elsa_ray
from elsa_ray import recording
from elsa_ray.experiment import rounds
from elsa_ray.records.round import Round
from elsa_ray.runtime import executor
from elsa_ray.runtime.executor import InlineExecutor
from elsa_ray.runtime.fingerprint import (
    ALONE,
    FingerprintLog,
    NumericFingerprint,
    describe_workers,
    differences,
    joined,
    this_process,
)
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


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {"pools": [OWN, OWN]}, {"pools": [OWN, OWN]}),
        ({ALONE: [OWN]}, {ALONE: [OWN]}, {ALONE: [OWN]}),
        ({ALONE: [OTHER]}, {ALONE: [OWN]}, {ALONE: [OWN, OTHER]}),
        ({ALONE: [OTHER]}, {"pools": [OWN, OWN], "cloud": [OTHER]}, {"pools": [OWN, OWN, OTHER], "cloud": [OTHER]}),
        ({"pools": [OWN], "cloud": [OTHER]}, {ALONE: [OWN]}, {ALONE: [OWN, OTHER]}),
        ({"pools": [OTHER], "cloud": [OWN]}, {"pools": [OTHER], "cloud": [OWN]}, {"pools": [OTHER], "cloud": [OWN]}),
        ({ALONE: [OWN]}, {}, {ALONE: [OWN]}),
    ],
)
def test_the_workers_of_a_run_that_goes_on_are_those_before_too(before: dict, now: dict, expected: dict) -> None:
    assert joined(before, now) == expected


def test_a_run_that_goes_on_elsewhere_says_so(
    topic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds here, one on a machine that is unlike it, and the last one here again."""

    def part(machine: NumericFingerprint, num_rounds: int) -> None:
        def some(*arguments: Any) -> Iterator[Round]:
            yield from islice(rounds(*arguments), num_rounds)
            raise KeyboardInterrupt

        monkeypatch.setattr(executor, "this_process", lambda device: machine)
        monkeypatch.setattr(recording, "rounds", some)
        with pytest.raises(KeyboardInterrupt):
            if (tmp_path / "run").exists():
                elsa_ray.resume(tmp_path / "run", console=Console(file=shown, width=500))
            else:
                elsa_ray.run(config, out=tmp_path / "run", console=Console(file=shown, width=500))

    def is_reproducible() -> bool:
        return json.loads((tmp_path / "run" / "summary.json").read_text())["bit_reproducible"]

    shown = io.StringIO()
    config = small_config(topic_data, "protocol.rounds=4", "protocol.local_steps=1", "runtime.executor=inline")
    part(OWN, 1)
    part(OWN, 1)
    assert is_reproducible() and "not bit-reproducible" not in shown.getvalue()
    part(OTHER, 1)
    assert not is_reproducible() and "not bit-reproducible: this process differ in cpu_capability" in shown.getvalue()
    part(OWN, 1)
    assert not is_reproducible(), "the third round was computed elsewhere"
