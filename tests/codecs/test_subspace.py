"""The subspace codec: exact inside, the tail's energy outside, and what gradients see of it (methods.md 1.17).

Shapes: T rows, D width, R rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elsa_ray.config.errors import InputError

from .ends import CONTEXT, build, calibrated, round_trip, rows

WIDTH = 24
GRADIENT = replace(CONTEXT, role="gradient_up")


def spec(**parameters: Any) -> dict[str, Any]:
    return {"kind": "subspace", "rank": 6, "basis_dtype": "fp32", **parameters}


def low_rank_rows(rank: int, num_rows: int = 30) -> Tensor:
    return rows(0, num_rows, rank) @ rows(1, rank, WIDTH) + 5 * rows(2, 1, WIDTH)


def received(x_TD: Tensor, context: Any = CONTEXT, **parameters: Any) -> Tensor:
    of = build(spec(**parameters), wire_dtype="fp64")
    return round_trip(of, x_TD, context, calibrated(of, x_TD))


def test_rows_of_the_subspace_and_its_mean_come_back() -> None:
    x = low_rank_rows(6)
    assert torch.allclose(received(x), x, rtol=0, atol=1e-5)
    assert not torch.allclose(received(x, rank=5), x, rtol=0, atol=1e-2)
    assert not torch.allclose(received(x, mean=False), x, rtol=0, atol=1e-2), "the mean is a seventh direction"
    assert torch.allclose(received(x, mean=False, rank=7), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_rows", [15, 60])
@pytest.mark.parametrize("mean", [True, False])
def test_the_error_is_the_energy_of_the_directions_left_out(mean: bool, num_rows: int) -> None:
    x = rows(3, num_rows) + 2
    centred = x - x.mean(dim=0) if mean else x
    tail = torch.linalg.svdvals(centred)[6:].square().sum()
    assert float((received(x, mean=mean) - x).square().sum()) == pytest.approx(float(tail), rel=1e-5)


@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_fewer_rows_than_the_rank_leave_zero_columns_and_lose_nothing_of_these_rows(num_rows: int) -> None:
    of, x = build(spec(), wire_dtype="fp64"), rows(3, num_rows)
    memory = calibrated(of, x)
    basis_DR, mean_D = memory[0]
    directions = max(num_rows - 1, 0)
    assert torch.equal(basis_DR[:, directions:], torch.zeros(WIDTH, 6 - directions))
    assert torch.allclose(round_trip(of, x, CONTEXT, memory), x, rtol=0, atol=1e-6)
    assert torch.allclose(mean_D.double(), x.mean(dim=0) if num_rows else torch.zeros(WIDTH).double(), atol=1e-6)


def test_a_rank_above_the_width_is_the_width() -> None:
    of = build(spec(rank=100), wire_dtype="fp64")
    x = rows(3, 50)
    assert of.body_bytes(1, WIDTH) == 8 * WIDTH
    assert torch.allclose(round_trip(of, x, CONTEXT, calibrated(of, x)), x, rtol=0, atol=1e-5)


def test_a_basis_in_fp16_costs_half_and_errs_by_its_rounding() -> None:
    x = low_rank_rows(6)
    error = (received(x, basis_dtype="fp16") - x).abs().max() / x.abs().max()
    assert 1e-6 < float(error) < 3e-3


def test_a_basis_in_int8_costs_a_quarter_and_errs_by_its_steps() -> None:
    x = low_rank_rows(6)
    of = build(spec(basis_dtype="int8"), wire_dtype="fp64")
    (memory,) = calibrated(of, x)
    assert [tensor.element_size() * tensor.numel() for tensor in memory] == [WIDTH * 6, 2 * 6, 2 * WIDTH]
    error = (received(x, basis_dtype="int8") - x).norm() / (x - x.mean(dim=0)).norm()
    assert 1e-4 < float(error) < 2e-2
    assert int(memory[0].abs().amax()) <= 127
    nothing = torch.zeros(4, WIDTH)
    assert torch.equal(received(nothing, basis_dtype="int8"), nothing.double())


@pytest.mark.parametrize("mean", [True, False])
def test_a_gradient_is_projected_and_no_mean_is_taken_of_it(mean: bool) -> None:
    of = build(spec(mean=mean), wire_dtype="fp64")
    memory, gradient = calibrated(of, rows(3, 40) + 2), rows(4)
    basis_DR = memory[0][0].double()
    for role in ("gradient_up", "gradient_down"):
        passed = round_trip(of, gradient, replace(CONTEXT, role=role), memory)
        assert torch.allclose(passed, gradient @ basis_DR @ basis_DR.T, rtol=0, atol=1e-12)
    at_zero = round_trip(of, torch.zeros_like(gradient), CONTEXT, memory)
    assert (float(at_zero.norm()) > 1) == mean


def test_where_gradients_are_projected_too_straight_through_is_exact() -> None:
    exact, straight = (build(spec(backward=way), wire_dtype="fp64") for way in ("exact", "straight_through"))
    memory, x = calibrated(exact, rows(3, 40)), rows(5)
    travelled = round_trip(exact, rows(4), GRADIENT, memory)
    by_way = [of.backward(x, travelled, CONTEXT, memory) for of in (exact, straight)]
    assert torch.allclose(*by_way, rtol=0, atol=1e-6)
    not_projected = [of.backward(x, rows(4), CONTEXT, memory) for of in (exact, straight)]
    assert not torch.allclose(*not_projected, rtol=0, atol=1e-2)


def test_a_sketch_of_the_rest_recovers_of_the_tail_what_mmse_can() -> None:
    x = rows(3, 200, 256)
    dropped = (received(x, rank=16) - x).square().sum()
    cells = 120
    errors = [
        (received(x, rank=16, rest="sketch", rows=1, buckets=cells, seed=seed) - x).square().sum() for seed in range(10)
    ]
    ratio = 256 / cells
    assert float(sum(errors) / 10 / dropped) == pytest.approx(ratio / (1 + ratio), rel=0.03)


def test_the_rests_sketch_adds_its_numbers_to_the_coordinates() -> None:
    assert build(spec(rest="sketch", rows=2, buckets=5)).body_bytes(3, WIDTH) == 3 * 4 * (6 + 10)
    assert build(spec(rest="sketch", rows=2, buckets=5), {"kind": "int8"}).body_bytes(3, WIDTH) == 3 * (16 + 4)


def test_keys_of_a_sketch_that_is_not_made_are_refused() -> None:
    with pytest.raises(InputError, match="rows, buckets and seed with rest: sketch only"):
        build(spec(rows=2))


def test_a_message_without_a_basis_is_an_error() -> None:
    with pytest.raises(ValueError, match="no basis for activation_up"):
        build(spec()).encode(rows(0), CONTEXT)


def test_quantised_coordinates_err_by_the_quantiser_and_the_tail_only() -> None:
    x = rows(3, 40)
    plain, quantised = build(spec(), wire_dtype="fp64"), build(spec(), {"kind": "int8"}, wire_dtype="fp64")
    memory = calibrated(plain, x)
    largest_T1 = ((x - memory[0][1]) @ memory[0][0].double()).abs().amax(dim=1, keepdim=True)
    difference_TD = round_trip(quantised, x, CONTEXT, (*memory, ())) - round_trip(plain, x, CONTEXT, memory)
    bound_T1 = 6**0.5 * largest_T1 / 254 * 1.001
    assert bool((difference_TD.norm(dim=1, keepdim=True) <= bound_T1).all())
    assert float(difference_TD.norm()) > 0
