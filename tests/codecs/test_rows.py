"""The largest rows against the definition: which stay, where they stand, what they cost, what stages behind them see.

Shapes: T rows, K rows kept, D width.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.codecs.shares import count_of_share
from elsa_ray.codecs.wire import (
    adapter_num_bytes,
    decode_adapters,
    decode_hidden,
    encode_adapters,
    encode_hidden,
    hidden_num_bytes,
)
from elsa_ray.config.errors import InputError
from elsa_ray.world.roles import Role

from .ends import CONTEXT, build, calibrated, round_trip, rows
from .variants import Spec

SHARES = [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0]


def spec(share: float = 0.25) -> Spec:
    return {"kind": "rows", "share": share}


def kept(x_TD: list[list[float]], share: float) -> list[int]:
    """Return the indices that the definition keeps."""

    def size(i: int) -> float:
        return sum(v * v for v in x_TD[i]) if all(math.isfinite(v) for v in x_TD[i]) else math.inf

    count = math.ceil(Fraction(str(share)) * len(x_TD))
    return sorted(sorted(range(len(x_TD)), key=lambda i: (-size(i), i))[:count])


number = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0] * 6 + [math.nan, math.inf, -math.inf])
"""Few different magnitudes, so that many rows are equal, and some failures."""
messages = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(number, min_size=width, max_size=width), min_size=1, max_size=14)
)


@settings(max_examples=200, deadline=None)
@given(messages, st.sampled_from(SHARES))
def test_the_largest_rows_stay_the_lower_index_first_and_the_rest_is_zero(x: list[list[float]], share: float) -> None:
    expected = [row if i in kept(x, share) else [0.0] * len(row) for i, row in enumerate(x)]
    received = round_trip(build(spec(share)), torch.tensor(x))
    assert torch.equal(received.nan_to_num(7.0), torch.tensor(expected).nan_to_num(7.0))


def test_a_failed_row_is_seen_however_large_the_others_are() -> None:
    x = torch.full((8, 3), 1e30)
    x[5, 1], x[6, 0] = torch.inf, torch.nan
    received = round_trip(build(spec()), x)
    assert received.isfinite().all(dim=1).tolist() == [True] * 5 + [False] * 2 + [True]
    assert not bool(received[[0, 1, 2, 3, 4, 7]].any())
    alone = round_trip(build(spec(0.1)), x)
    assert alone.any(dim=1).nonzero().flatten().tolist() == [5], "NaN is no larger than infinity"


def test_many_equals_stay_in_order() -> None:
    x = torch.randint(0, 2, (5000, 2), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    received = round_trip(build(spec(0.3)), x)
    assert torch.equal(received, torch.cat([x[:1500], torch.zeros(3500, 2)]))


def test_no_other_rows_hold_more_energy() -> None:
    x = rows(0, 9, 4)
    received = round_trip(build(spec(0.4), wire_dtype="fp64"), x)
    best = max(float(x[list(some)].square().sum()) for some in combinations(range(9), 4))
    assert float(received.square().sum()) == pytest.approx(best, rel=1e-12)
    assert float((x - received).square().sum()) == pytest.approx(float(x.square().sum()) - best, rel=1e-9)


def test_the_kept_rows_travel_by_rising_index_and_their_indices_behind_them() -> None:
    x = rows(0, 10, 3).float() / 10
    x[[7, 2, 4]] += 5
    body = build(spec(0.3)).encode(x, CONTEXT)
    assert body == x[[2, 4, 7]].numpy().tobytes() + np.array([2, 4, 7], np.uint16).tobytes()


@pytest.mark.parametrize(("num_rows", "index_type"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_an_index_has_two_bytes_as_long_as_all_fit(num_rows: int, index_type: type[np.generic]) -> None:
    of, x = build(spec(0.00003)), torch.zeros(num_rows, 2)
    x[num_rows - 1], x[num_rows // 3] = 3.0, -2.0
    body = of.encode(x, CONTEXT)
    index = np.array([num_rows // 3, num_rows - 1], index_type)
    assert body == x[index.astype(np.int64)].numpy().tobytes() + index.tobytes()
    assert len(body) == of.body_bytes(num_rows, 2)
    assert torch.equal(of.decode(body, num_rows, 2, CONTEXT), x)


@given(
    st.floats(min_value=0, max_value=1, exclude_min=True),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
)
def test_a_share_of_a_number_is_rounded_up_exactly(share: float, totals: list[int]) -> None:
    expected = [math.ceil(Fraction(str(share)) * total) for total in totals]
    assert [count_of_share(share, total) for total in totals] == expected
    found = count_of_share(share, np.array([totals], np.int64))
    assert found.dtype == np.int64
    assert found.tolist() == [expected]


@pytest.mark.parametrize(
    ("share", "num_rows", "expected"), [(0.1, 30, 3), (0.07, 100, 7), (0.29, 100, 29), (0.1, 0, 0)]
)
def test_the_share_is_the_decimal_number_that_was_written(share: float, num_rows: int, expected: int) -> None:
    assert build(spec(share)).body_bytes(num_rows, 5) == expected * (5 * 4 + 2)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "before_and_behind",
    [([], []), ([], [{"kind": "int4"}]), ([{"kind": "topk", "share": 0.5}], [spec(0.5), {"kind": "int8"}])],
    ids=["alone", "int4", "topk-rows-int8"],
)
def test_sizes_of_arrays_of_row_counts_are_what_is_sent(
    before_and_behind: tuple[list[Spec], list[Spec]], share: float
) -> None:
    before, behind = before_and_behind
    of = build(*before, spec(share), *behind)
    batch, length = np.array([[1, 4], [2, 0]]), np.array([[1, 9], [7, 5]])
    for role in (Role.ACTIVATION_UP, Role.GRADIENT_DOWN):
        sizes = hidden_num_bytes(of, role, batch, length, 6)
        assert sizes.dtype == np.int64
        for size, b, s in zip(sizes.flat, batch.flat, length.flat, strict=True):
            lengths_B = torch.ones(b) if role is Role.ACTIVATION_UP else None
            payload = encode_hidden(of, role, rows(1, b * s, 6).reshape(b, s, 6), CONTEXT, lengths_B)
            assert len(payload) == size
            assert decode_hidden(of, role, payload, CONTEXT)[0].shape == (b, s, 6)
    large = np.array([0, 2**16, 2**16 + 1, 10**6])
    assert of.body_bytes(large, 6).tolist() == [int(of.body_bytes(int(num_rows), 6)) for num_rows in large]


def test_the_size_of_a_million_rows_by_hand() -> None:
    of = build({"kind": "topk", "share": 0.5}, spec(0.1), {"kind": "int8"})
    numbers_and_scales, topk_indices, row_indices = 10**5 * (3 + 4), 10**6 * 3 * 2, 10**5 * 4
    assert of.body_bytes(10**6, 6) == numbers_and_scales + topk_indices + row_indices


def test_rows_of_adapters_come_back_tensor_by_tensor() -> None:
    of, shapes = build(spec(0.5)), [(3, 8), (8, 3), (5,)]
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    payload = encode_adapters(of, Role.ADAPTER_UP, tensors, CONTEXT)
    assert len(payload) == adapter_num_bytes(of, shapes)
    received = decode_adapters(of, Role.ADAPTER_UP, payload, shapes, CONTEXT)
    for sent, found in zip(tensors, received, strict=True):
        is_kept = torch.isin(torch.arange(len(sent)), torch.tensor(kept(sent.tolist(), 0.5))) if sent.dim() == 2 else 1
        assert torch.equal(found, sent * (is_kept[:, None] if sent.dim() == 2 else 1))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 9), st.sampled_from(SHARES))
def test_int4_behind_errs_on_the_kept_rows_by_half_a_step_and_nowhere_else(
    seed: int, num_rows: int, width: int, share: float
) -> None:
    x = rows(seed, num_rows, width).float()
    alone, both = round_trip(build(spec(share)), x), round_trip(build(spec(share), {"kind": "int4"}), x)
    bound_T1 = alone.abs().amax(dim=1, keepdim=True) / 14 * 1.001
    assert bool(((both - alone).abs() <= bound_T1).all())
    assert both.any(dim=1).tolist() == [i in kept(x.tolist(), share) for i in range(num_rows)]


def test_of_two_behind_each_other_the_second_takes_of_what_the_first_has_kept() -> None:
    x = rows(0, 20, 3)
    in_two_steps = round_trip(build(spec(0.5), spec(0.3), wire_dtype="fp64"), x)
    assert torch.equal(in_two_steps, round_trip(build(spec(0.15), wire_dtype="fp64"), x))
    assert build(spec(0.5), spec(0.3)).body_bytes(20, 3) == 3 * (3 * 4) + 10 * 2 + 3 * 2
    of = build(spec(0.5), spec(0.5))
    assert len(of.encode(rows(0, 80_000, 1), CONTEXT)) == of.body_bytes(80_000, 1) == 20_000 * (4 + 2) + 40_000 * 4


@pytest.mark.parametrize("behind", [{"kind": "subspace", "rank": 3}, {"kind": "bits", "bits_per_row": 20}], ids=str)
def test_a_calibration_behind_sees_the_kept_rows_only_and_failed_rows_take_no_place(behind: Spec) -> None:
    x = rows(0, 20, 6)
    x[11] = torch.nan
    finite = x[x.isfinite().all(dim=1)]
    (expected,) = calibrated(build(behind), finite[kept(finite.tolist(), 0.4)])
    _, found = calibrated(build(spec(0.4), behind), x)
    _, of_all = calibrated(build(spec(1.0), behind), x)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert not torch.equal(of_all[0], found[0])


def test_a_gradient_passes_straight_through_and_so_it_does_behind_where_rows_are_missing() -> None:
    sketch = {"kind": "sketch", "rows": 2, "buckets": 4, "backward": "exact"}
    x, gradient = rows(0), rows(1)
    assert torch.equal(build(spec(0.5), sketch, wire_dtype="fp64").backward(x, gradient, CONTEXT), gradient)
    with_all = build(spec(1.0), sketch, wire_dtype="fp64").backward(x, gradient, CONTEXT)
    assert torch.equal(with_all, build(sketch, wire_dtype="fp64").backward(x, gradient, CONTEXT))
    assert not torch.equal(with_all, gradient)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"kind": "int8"}, spec()], r"codec\.1: found rows behind int8; allowed: nothing behind int8"),
        ([spec(0.0)], r"codec\.0\.share: "),
        ([spec(1.5)], r"codec\.0\.share: "),
    ],
    ids=["behind-a-final-codec", "nothing", "more-than-all"],
)
def test_where_it_cannot_stand_it_is_refused(specs: list[Spec], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(*specs)


def test_codecs_that_know_nothing_of_row_counts_keep_them() -> None:
    kinds: list[Spec] = [{"kind": kind} for kind in ("identity", "topk", "sketch", "subspace", "ssop", "bits")]
    counts = np.array([0, 5, 70_000])
    for own in kinds:
        (stage,) = build(own).stages
        assert stage.rows_out(counts) is counts
        assert stage.side_layout_for(8, counts) == stage.side_layout(8)
    shares = [build(spec(share)).stages[0].rows_out(1000) for share in SHARES]
    assert all(a < b for a, b in pairwise(shares))
