"""The formulas of experiments/benchmarks/behemoth.py (methods.md 2.3): by hand, and against the bytes of a plan."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.model.split import Part, cut

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "experiments" / "llama_405b.yaml")


@pytest.fixture(scope="module")
def behemoth() -> ModuleType:
    spec = importlib.util.spec_from_file_location("behemoth", ROOT / "experiments" / "benchmarks" / "behemoth.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gain_grows_with_the_adapters_alone(behemoth: ModuleType) -> None:
    """G(405B) / G(8B) = P_LoRA(405B) / P_LoRA(8B): 6,322,176 to 425,984 on query and value, at any rank."""
    for rank in (4, 16):
        of_405b, of_8b = (
            behemoth.adapter_numbers(behemoth.described(f"llama-3.1-{size}b", None, rank)[1]) for size in (405, 8)
        )
        assert Fraction(of_405b, of_8b) == Fraction(6_322_176, 425_984)


def test_break_evens_are_where_bytes_are_equal(behemoth: ModuleType) -> None:
    shape, layout = behemoth.described("llama-3.1-405b", None)
    prompts = behemoth.break_even_prompts(layout)
    assert prompts * behemoth.TOKENS * behemoth.TOKEN_BYTES == 202_309_632 == 6_322_176 * 16 * 2
    tokens = behemoth.break_even_tokens(shape, layout, 1, 1)
    assert 4 * 16_384 * tokens == 2 * (6_322_176 * 16 * 124 // 126)
    small = behemoth.break_even_prompts(behemoth.described("gpt2", None)[1])
    assert small < 3000 < prompts, "a small model with many prompts is where adapters are cheaper"


def test_a_plan_has_the_bytes_of_the_formulas(behemoth: ModuleType) -> None:
    small = ["topology.clients=2", "topology.edges=1", "protocol.local_steps=1", "protocol.batch_size=3"]
    shape, layout = behemoth.described("llama-3.1-405b", None)
    ends = layout.part(cut(shape.num_layers, 1, 1), Part.FRONT, Part.BACK)
    roles = behemoth.planned(CONFIG, small)["breakdown"]["transfers"]
    one_way = 3 * 512 * shape.hidden_size * 2
    for role in ("activation_down", "gradient_up", "gradient_down"):
        assert roles[role]["num_bytes"] == 2 * (one_way + HEADER_BYTES)
    assert roles["activation_up"]["num_bytes"] == 2 * (one_way + HEADER_BYTES + 3 * 2), "with the texts' lengths"
    held, whole = sum(tensor.num_elements for tensor in ends), behemoth.adapter_numbers(layout)
    # Two clients with their parts, and the edge with the whole.
    assert roles["adapter_up"]["num_bytes"] == 2 * (2 * held + HEADER_BYTES) + 2 * whole + HEADER_BYTES
    fedavg = "protocol={name: fedavg, rounds: 1, local_steps: 1, wire_dtype: bf16}"
    roles = behemoth.planned(CONFIG, [fedavg, *small[:2]])["breakdown"]["transfers"]
    assert roles["adapter_up"]["num_bytes"] == 2 * (2 * whole + HEADER_BYTES)
    assert roles["adapter_down"]["num_bytes"] == roles["adapter_up"]["num_bytes"]
