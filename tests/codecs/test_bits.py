"""Bits by variance: the table by integration, the allocation by trying all, the error by the theory, each bit back.

Shapes: T rows, D width, B bits.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.codecs.bits import DISTORTIONS, STEPS, allocate, pack, unpack
from elsa_ray.codecs.wire import HEADER_BYTES, calibration_num_bytes, decode_calibrations, encode_calibrations
from elsa_ray.config.errors import InputError
from elsa_ray.world.roles import Role

from .ends import CONTEXT, MAKERS, build, calibrated, round_trip, rows
from .variants import Spec

DECAYING_D = torch.logspace(0, -2, 96, dtype=torch.float64)
"""Deviations whose variances fall by four orders of magnitude."""


def spec(**parameters: Any) -> Spec:
    return {"kind": "bits", "bits_per_row": 352, **parameters}


def spread_rows(seed: int, num_rows: int) -> Tensor:
    return rows(seed, num_rows, len(DECAYING_D)) * DECAYING_D


def gaussian_error(step: float, bits: int) -> float:
    """Return the mean squared error of a midrise quantiser of a Gaussian number, by the midpoint rule."""
    width = 2e-5
    x = np.arange(width / 2, 9, width)
    received = (np.minimum(np.floor(x / step), 2 ** (bits - 1) - 1) + 0.5) * step
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return float(2 * width * np.sum(density * (x - received) ** 2))


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_table_has_the_best_steps_and_their_errors(bits: int) -> None:
    step = STEPS[bits]
    assert DISTORTIONS[bits] == pytest.approx(gaussian_error(step, bits), rel=5e-4)
    assert gaussian_error(step, bits) < min(gaussian_error(step * by, bits) for by in (0.99, 1.01))


def test_a_further_bit_is_worth_less_than_the_one_before() -> None:
    falls = [a - b for a, b in pairwise(DISTORTIONS)]
    assert all(a > 2 * b for a, b in pairwise(falls))
    assert len(STEPS) == len(DISTORTIONS) == 9


def error_of(deviations: list[float], bits: tuple[int, ...] | list[int]) -> float:
    return sum(d * d * DISTORTIONS[b] for d, b in zip(deviations, bits, strict=True))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 7.0, 100.0]), min_size=1, max_size=4),
    st.integers(1, 13),
    st.integers(1, 4),
)
def test_no_allocation_of_so_many_bits_errs_less(deviations: list[float], bits_per_row: int, max_bits: int) -> None:
    found = allocate(torch.tensor(deviations), bits_per_row, max_bits).tolist()
    every = product(range(max_bits + 1), repeat=len(deviations))
    best = min(error_of(deviations, bits) for bits in every if sum(bits) <= bits_per_row)
    assert error_of(deviations, found) == pytest.approx(best, rel=1e-12)
    assert sum(found) == min(bits_per_row, max_bits * np.count_nonzero(deviations)), "all bits are given"
    assert max(found) <= max_bits


def test_equal_dimensions_get_bits_from_the_lowest_index_on() -> None:
    assert allocate(torch.ones(4), 6, 8).tolist() == [2, 2, 1, 1]
    assert allocate(torch.tensor([1.0, 0.0, 1.0]), 3, 8).tolist() == [2, 0, 1]
    assert allocate(torch.ones(300), 352, 8).tolist() == [2] * 52 + [1] * 248


def test_the_calibration_is_the_root_mean_square_as_it_travels_and_the_bits_of_that() -> None:
    x = spread_rows(0, 50)
    x[:, :5] += 3  # the mean is not taken off
    of = build(spec())
    ((deviation_D, bits_D),) = calibrated(of, x)
    assert torch.equal(deviation_D, x.float().double().square().mean(dim=0).sqrt().half())
    assert torch.equal(bits_D, allocate(deviation_D, 352, 8))
    assert int(bits_D.sum()) == 352
    assert int((bits_D == 0).sum()) > 0
    assert calibration_num_bytes(of, 96, MAKERS) == [(Role.BASIS, HEADER_BYTES + 96 * (2 + 1))]


def test_the_receiver_decodes_by_what_was_shipped() -> None:
    sender, receiver = (build({"kind": "subspace", "rank": 40}, spec(bits_per_row=90)) for _ in range(2))
    x = spread_rows(0, 60)
    made = calibrated(sender, x)
    payloads = encode_calibrations(sender, made, 96, MAKERS, CONTEXT)
    held = decode_calibrations(receiver, payloads, (), 96, MAKERS, CONTEXT)
    body = sender.encode(x, CONTEXT, made)
    received = receiver.decode(body, 60, 96, CONTEXT, held)
    assert torch.equal(received, sender.decode(body, 60, 96, CONTEXT, made))
    assert float((received - x).square().sum() / x.square().sum()) < 0.15


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(st.integers(0, 8), min_size=1, max_size=20), st.integers(0, 3))
def test_each_bit_comes_back_from_its_place(data: st.DataObject, bits: list[int], spare_bytes: int) -> None:
    levels = data.draw(st.lists(st.tuples(*(st.integers(0, 2**b - 1) for b in bits)), max_size=4))
    level_TD, bits_D = torch.tensor(levels, dtype=torch.uint8).reshape(-1, len(bits)), torch.tensor(bits)
    num_bytes = -(-sum(bits) // 8) + spare_bytes
    packed = pack(level_TD, bits_D, num_bytes)
    assert (packed.dtype, packed.shape) == (torch.uint8, (len(levels), num_bytes))
    assert torch.equal(unpack(packed, bits_D), level_TD)
    for row, found in zip(levels, packed, strict=True):
        expected = sum(level << sum(bits[:i]) for i, level in enumerate(row))
        assert int.from_bytes(bytes(found.tolist()), "little") == expected, "and the padding is zero"


@pytest.mark.parametrize("bits_per_row", [1, 7, 8, 9, 352])
@pytest.mark.parametrize("width", [1, 5, 96])
def test_a_row_costs_its_bits_in_whole_bytes_and_two_for_its_gain(bits_per_row: int, width: int) -> None:
    of, x = build(spec(bits_per_row=bits_per_row)), rows(0, 9, width)
    expected = -(-bits_per_row // 8) + 2
    assert of.body_bytes(1, width) == expected
    assert len(of.encode(x, CONTEXT, calibrated(of, x))) == 9 * expected


def test_these_are_the_bytes_of_a_row() -> None:
    of = build(spec(bits_per_row=5))
    memory = ((torch.tensor([2.0, 1.0, 0.5]).half(), torch.tensor([3, 2, 0]).to(torch.uint8)),)
    x = torch.tensor([[2.0, -1.0, 9.0]])  # a gain of 1: the last number counts for nothing
    # 2 / (2 * 0.586) is level 1 of -4..3; -1 / 0.9957 is level -2 of -2..1. Levels are counted from the lowest.
    assert of.encode(x, CONTEXT, memory) == bytes([(1 + 4) | (-2 + 2) << 3, 0x80, 0x3F])
    received = round_trip(of, x, CONTEXT, memory)
    assert torch.allclose(received, torch.tensor([[1.5 * 2 * 0.586, -1.5 * 0.9957, 0.0]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits_per_row", [96, 352])
def test_the_error_on_gaussian_rows_is_that_of_the_theory(bits_per_row: int) -> None:
    x = spread_rows(0, 4000)
    of = build(spec(bits_per_row=bits_per_row))
    memory = calibrated(of, x)
    bits_D = memory[0][1].long()
    theory = float((DECAYING_D.square() * torch.tensor(DISTORTIONS, dtype=torch.float64)[bits_D]).sum())
    measured = float((round_trip(of, x, CONTEXT, memory) - x).square().sum(dim=1).mean())
    assert measured == pytest.approx(theory, rel=0.04)


def test_bits_by_variance_beat_bytes_for_the_first_dimensions_at_the_same_size() -> None:
    x = spread_rows(0, 500)
    of, bytes_only = build(spec()), build({"kind": "int8"})
    kept = 42
    assert of.body_bytes(500, 96) == bytes_only.body_bytes(500, kept)
    by_variance = round_trip(of, x, CONTEXT, calibrated(of, x))
    by_bytes = torch.nn.functional.pad(round_trip(bytes_only, x[:, :kept]), (0, 96 - kept))
    errors = [float((received - x).square().sum()) for received in (by_variance, by_bytes)]
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_a_number_errs_by_half_a_step_unless_it_is_beyond_the_last_level(scale: float) -> None:
    of, x = build(spec(bits_per_row=200)), rows(1, 40, 96) ** 3 * DECAYING_D * scale
    memory = calibrated(of, rows(0, 60, 96) * DECAYING_D)
    received = round_trip(of, x, CONTEXT, memory).double()
    deviation_D, bits_D = memory[0][0].double(), memory[0][1].long()
    used_D = bits_D > 0
    gain_T1 = (x / deviation_D)[:, used_D].square().mean(dim=1, keepdim=True).sqrt()
    unit_TD = gain_T1 * deviation_D * torch.tensor(STEPS, dtype=torch.float64)[bits_D] * (1 + 2**-8)  # bf16's rounding
    last_TD = unit_TD * (2.0**bits_D - 1) / 2
    is_inside_TD = (x - received).abs() <= unit_TD / 2
    is_clamped_TD = (x.abs() > received.abs()) & (received.abs() > last_TD * 0.99) & (x.sign() == received.sign())
    assert bool((is_inside_TD | is_clamped_TD)[:, used_D].all())
    assert bool((is_clamped_TD & ~is_inside_TD)[:, used_D].any())
    assert not bool(received[:, ~used_D].any())


@pytest.mark.parametrize("exponent", [-100, -24, 0, 20, 100])
def test_rows_of_another_size_than_the_calibrations_decode_in_proportion(exponent: int) -> None:
    of, x = build(spec()), spread_rows(0, 30).float()
    memory = calibrated(of, x)
    other = round_trip(of, x * 2.0**exponent, CONTEXT, memory)
    assert torch.equal(other, round_trip(of, x, CONTEXT, memory) * 2.0**exponent)


def test_a_row_of_zeros_stays_and_a_row_with_a_failure_is_nan_throughout_wherever_it_stands() -> None:
    of, x = build(spec()), spread_rows(0, 6)
    memory = calibrated(of, x)
    has_no_bits = int((memory[0][1] == 0).nonzero()[0])
    clean = round_trip(of, x, CONTEXT, memory)
    x[1], x[2, 0], x[3, has_no_bits], x[4, 5] = 0.0, torch.nan, torch.nan, -torch.inf
    received = round_trip(of, x, CONTEXT, memory)
    assert not bool(received[1].any())
    assert bool(received[2:5].isnan().all())
    assert torch.equal(received[[0, 5]], clean[[0, 5]])


def test_without_anything_to_learn_from_rows_decode_to_zero_and_failures_are_seen() -> None:
    of, x = build(spec()), rows(0, 3, 8)
    ((deviation_D, bits_D),) = memory = calibrated(of, x[:0])
    assert not bool(deviation_D.any()) and not bool(bits_D.any())
    x[1, 1] = torch.nan
    received = round_trip(of, x, CONTEXT, memory)
    assert received.isnan().all(dim=1).tolist() == [False, True, False]
    assert not bool(received[[0, 2]].any())


def test_deviations_too_large_for_fp16_are_clamped_and_the_gain_makes_up_for_it() -> None:
    of, x = build(spec(bits_per_row=64)), rows(0, 200, 8) * 1e7
    received = round_trip(of, x, CONTEXT, calibrated(of, x))
    assert float((received - x).square().sum() / x.square().sum()) < 2 * DISTORTIONS[8] + 1e-3


def test_a_message_without_deviations_is_an_error() -> None:
    with pytest.raises(ValueError, match="no deviations for activation_up"):
        build(spec()).encode(rows(0), CONTEXT)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([spec(), {"kind": "int8"}], "found int8 behind bits"),
        ([spec(bits_per_row=0)], r"codec\.0\.bits_per_row"),
        ([spec(max_bits=9)], r"codec\.0\.max_bits"),
    ],
    ids=["behind", "no-bits", "nine"],
)
def test_what_cannot_be_is_refused(specs: list[Spec], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(*specs)
