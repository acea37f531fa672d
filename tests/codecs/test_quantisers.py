"""Identity, cast, int8, int4: what is exact, what is bounded, and what becomes of numbers that do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.codecs.chain import WIRE_DTYPES, CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.quantise import Int4

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


LEVELS = {"int8": 127, "int4": 7}


@settings(max_examples=200, deadline=None)
@given(
    matrix,
    st.sampled_from(["int8", "int4"]),
    st.sampled_from(["nearest", "stochastic"]),
    st.sampled_from([None, 1, 3, 5]),
    st.sampled_from(["fp32", "fp16"]),
)
def test_a_number_errs_by_at_most_half_a_step_of_its_groups_scale_or_a_whole_one_if_rounded_by_chance(
    values: list[list[float]], kind: str, rounding: str, group: int | None, scale_dtype: str
) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    if scale_dtype == "fp16":
        x = x.clamp(-65504, 65504)
    spec = {"kind": kind, "rounding": rounding, "group": group, "scale_dtype": scale_dtype}
    received = round_trip(chain(spec), x)
    for piece, found in zip(
        x.split(group or x.shape[1], dim=1), received.split(group or x.shape[1], dim=1), strict=True
    ):
        scale = piece.abs().amax(dim=1, keepdim=True).double() / LEVELS[kind]
        if scale_dtype == "fp16":  # rounded up: by a 1024th, or to the next of the smallest numbers
            scale = scale * (1 + 2.0**-10) + 2.0**-24
        bound = scale * (0.5 if rounding == "nearest" else 1) * (1 + 1e-4)
        assert bool(((found.double() - piece.double()).abs() <= bound).all())


def test_int8_and_int4_have_these_bytes() -> None:
    x = torch.tensor([[2.0, -1.0, 0.5]])
    scale = np.float32(2.0) / np.float32(127)
    assert chain({"kind": "int8"}).encode(x, CONTEXT) == bytes([127, 256 - 64, 32]) + scale.tobytes()
    x = torch.tensor([[7.0, -7.0, 1.0, 0.0, -3.0], [14.0, 2.0, 4.0, -2.0, 0.0]])
    halves = bytes([0x97, 0x01, 0x0D]) + bytes([0x17, 0xF2, 0x00])
    scales = np.array([1, 2], np.float32)
    assert chain({"kind": "int4"}).encode(x, CONTEXT) == halves + scales.tobytes()
    in_fp16 = chain({"kind": "int4", "scale_dtype": "fp16"})
    assert in_fp16.encode(x, CONTEXT) == halves + scales.astype(np.float16).tobytes()
    assert torch.equal(round_trip(in_fp16, x), x)


def test_each_half_byte_comes_back() -> None:
    codec = Int4(Int4.Config())
    levels = torch.cartesian_prod(torch.arange(-7, 8), torch.arange(-7, 8)).flatten()[None].to(torch.int8)
    for width in (450, 449, 1):
        packed = codec._pack(levels[:, :width])
        assert packed.shape == (1, (width + 1) // 2)
        assert torch.equal(codec._unpack(packed, width), levels[:, :width])


@pytest.mark.parametrize(
    ("spec", "width", "num_bytes"),
    [
        ({"kind": "int4"}, 7, 4 + 4),
        ({"kind": "int4", "scale_dtype": "fp16"}, 8, 4 + 2),
        ({"kind": "int4", "group": 3, "scale_dtype": "fp16"}, 7, 4 + 3 * 2),
        ({"kind": "int8", "group": 3}, 7, 7 + 3 * 4),
        ({"kind": "int8", "group": 9}, 7, 7 + 4),
    ],
    ids=str,
)
def test_a_row_costs_its_integers_and_a_scale_for_each_group(spec: dict[str, Any], width: int, num_bytes: int) -> None:
    assert chain(spec).body_bytes(1, width) == num_bytes
    assert len(chain(spec).encode(torch.randn(5, width), CONTEXT)) == 5 * num_bytes


def test_groups_keep_a_large_number_from_spoiling_its_row() -> None:
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    x[:, 5] = 1000.0
    errors = {}
    for group in (None, 16):
        received = round_trip(chain({"kind": "int4", "group": group}), x)
        errors[group] = float((received - x)[:, 16:].square().mean())
    assert errors[None] == pytest.approx(float(x[:, 16:].square().mean())), "all rounded to zero"
    assert errors[16] < 0.05


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scale_dtype", ["fp32", "fp16"])
def test_a_group_with_a_number_that_is_not_finite_is_nan_and_the_rows_other_groups_are_not(
    bad: float, scale_dtype: str
) -> None:
    of = chain({"kind": "int4", "group": 4, "scale_dtype": scale_dtype})
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    clean = round_trip(of, x)
    x[1, 5] = bad
    received = round_trip(of, x)
    assert bool(received[1, 4:8].isnan().all())
    clean[1, 4:8] = torch.nan
    assert torch.equal(received.nan_to_num(7.0), clean.nan_to_num(7.0))


def test_a_scale_in_fp16_that_is_too_large_is_clamped_and_not_a_failure() -> None:
    of = chain({"kind": "int8", "scale_dtype": "fp16"})
    x = torch.tensor([[1e30, -5.0, 65504.0 * 127]])
    assert torch.equal(round_trip(of, x), torch.tensor([[65504.0 * 127, 0.0, 65504.0 * 127]]))


def test_chance_rounds_up_as_often_as_the_fraction_says() -> None:
    x = torch.full((20_000, 2), 2.25)
    x[:, 0] = 7.0
    received = round_trip(chain({"kind": "int4", "rounding": "stochastic"}), x)
    assert set(received[:, 1].tolist()) == {2.0, 3.0}
    assert float(received[:, 1].mean()) == pytest.approx(2.25, abs=4 * (0.25 * 0.75 / 20_000) ** 0.5)
    assert bool((received[:, 0] == 7).all())


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"round_index": 1}, {"edge_round": 1}, {"step": 1}, {"client": 1}, {"role": "x"}, {"tensor": 1}],
    ids=str,
)
def test_each_message_is_rounded_by_its_own_random_numbers(change: dict[str, Any]) -> None:
    of, x = chain({"kind": "int8", "rounding": "stochastic"}), torch.randn(4, 30)
    assert of.encode(x, CONTEXT) == of.encode(x, CONTEXT)
    assert of.encode(x, CONTEXT) != of.encode(x, replace(CONTEXT, **change))
