"""Identity, cast and int8: what is exact, what is bounded, and what becomes of numbers that do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.codecs.chain import WIRE_DTYPES, CodecChain
from elsa_ray.codecs.codec import CodecContext

from ..helpers import chain

CONTEXT = CodecContext()


def round_trip(of: CodecChain, x_TD: Tensor) -> Tensor:
    return of.decode(of.encode(x_TD, CONTEXT), *x_TD.shape, CONTEXT)


number = st.floats(min_value=-(2.0**100), max_value=2.0**100, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
matrix = st.integers(1, 12).flatmap(
    lambda width: st.lists(st.lists(number, min_size=width, max_size=width), min_size=1, max_size=5)
)


@pytest.mark.parametrize("wire_dtype", WIRE_DTYPES)
@pytest.mark.parametrize("specs", [[], [{"kind": "identity"}]], ids=["none", "identity"])
def test_identity_is_exact_in_the_wires_format(specs: list[dict[str, str]], wire_dtype: str) -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    on_the_wire = x.to(torch.float32 if wire_dtype != "fp64" else torch.float64).to(WIRE_DTYPES[wire_dtype])
    received = round_trip(chain(*specs, wire_dtype=wire_dtype), x)
    assert torch.equal(received, on_the_wire.to(received.dtype))
    assert received.dtype == (torch.float64 if wire_dtype == "fp64" else torch.float32)


@settings(max_examples=200, deadline=None)
@given(matrix)
def test_int8_errs_by_at_most_a_254th_of_its_rows_largest_number(values: list[list[float]]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    received = round_trip(chain({"kind": "int8"}), x)
    bound = x.abs().amax(dim=1, keepdim=True).double() / 254
    assert bool(((received.double() - x.double()).abs() <= bound * (1 + 1e-4)).all())


@settings(max_examples=50, deadline=None)
@given(matrix)
def test_int8_keeps_zeros_and_the_largest_number_and_mirrors_signs(values: list[list[float]]) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    received = round_trip(chain({"kind": "int8"}), x)
    assert bool((received[x == 0] == 0).all())
    assert torch.allclose(received.abs().amax(dim=1), x.abs().amax(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(round_trip(chain({"kind": "int8"}), -x), -received)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_int8_turns_a_row_with_a_number_that_is_not_finite_into_nan_and_leaves_the_others(bad: float) -> None:
    x = torch.randn(4, 6)
    clean = round_trip(chain({"kind": "int8"}), x)
    x[2, 3] = bad
    received = round_trip(chain({"kind": "int8"}), x)
    assert bool(received[2].isnan().all())
    others = [0, 1, 3]
    assert torch.equal(received[others], clean[others])


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_cast_rounds_as_torch_does(dtype: str, torch_dtype: torch.dtype) -> None:
    x = torch.randn(50, 9)
    assert torch.equal(round_trip(chain({"kind": "cast", "dtype": dtype}), x), x.to(torch_dtype).float())


def test_cast_to_fp16_clamps_what_overflows() -> None:
    x = torch.tensor([[65504.0, 65505.0, 1e6, -1e30, 3.0]])
    expected = torch.tensor([[65504.0, 65504.0, 65504.0, -65504.0, 3.0]])
    assert torch.equal(round_trip(chain({"kind": "cast", "dtype": "fp16"}), x), expected)


def test_cast_lets_a_failure_be_seen() -> None:
    assert bool(round_trip(chain({"kind": "cast"}), torch.tensor([[torch.nan, 1.0]]))[0, 0].isnan())
