"""Top-k against the definition: which numbers stay, where they stand, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .ends import CONTEXT, build, round_trip, rows

numbers = st.lists(st.integers(-4, 4), min_size=1, max_size=14)
"""Few different magnitudes, so that many are equal."""


@settings(max_examples=150, deadline=None)
@given(numbers, st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9, 1.0]))
def test_the_largest_stay_the_lower_index_first_and_the_rest_is_zero(values: list[int], share: float) -> None:
    count = int(np.ceil(round(share * len(values), 9)))
    kept = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count]
    expected = [float(value) if i in kept else 0.0 for i, value in enumerate(values)]
    of = build({"kind": "topk", "share": share})
    assert round_trip(of, torch.tensor([values], dtype=torch.float32)).tolist() == [expected]


def test_many_equals_stay_in_order_and_travel_by_rising_index() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (2, 40_000), generator=generator).float() * 2 - 1
    x[:, 3:6] = torch.tensor([5.0, -7.0, 6.0])
    of = build({"kind": "topk", "share": 0.00025})
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    body = of.encode(x, CONTEXT)
    assert body == x[:, kept].numpy().tobytes() + np.array([kept] * 2, np.uint16).tobytes()


@pytest.mark.parametrize(("share", "width", "kept"), [(0.1, 30, 3), (0.07, 100, 7), (0.29, 100, 29), (0.1, 31, 4)])
def test_the_share_is_the_decimal_number_that_was_written(share: float, width: int, kept: int) -> None:
    assert build({"kind": "topk", "share": share}).body_bytes(1, width) == kept * (4 + 2)


@pytest.mark.parametrize(("width", "index_bytes"), [(2**16, 2), (2**16 + 1, 4)])
def test_indices_cost_two_bytes_as_long_as_they_fit(width: int, index_bytes: int) -> None:
    of, x = build({"kind": "topk", "share": 0.0001}), torch.zeros(2, width)
    x[0, width - 1], x[1, width // 2] = 3.0, -2.0
    assert torch.equal(round_trip(of, x), x)
    assert of.body_bytes(1, width) == 7 * (4 + index_bytes)


def test_the_error_is_the_energy_of_what_is_left_out() -> None:
    x = rows(0, 9, 40)
    received = round_trip(build({"kind": "topk", "share": 0.25}, wire_dtype="fp64"), x)
    left_out = x.square().sort(dim=1).values[:, :30].sum()
    assert float((x - received).square().sum()) == pytest.approx(float(left_out), rel=1e-12)


def test_kept_numbers_can_be_quantised() -> None:
    x = rows(0, 9, 40).float()
    of = build({"kind": "topk", "share": 0.25}, {"kind": "int8"})
    assert of.body_bytes(9, 40) == 9 * (10 * (1 + 2) + 4)
    alone, both = round_trip(build({"kind": "topk", "share": 0.25}), x), round_trip(of, x)
    assert bool(((both - alone).abs() <= x.abs().amax(dim=1, keepdim=True) / 254 * 1.001).all())
    assert bool((both[alone == 0] == 0).all())
