"""What decides bits besides the input, and what is said where workers differ in it."""

from dataclasses import replace

from elsa_ray.runtime.fingerprint import describe_workers, differences, this_process

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
