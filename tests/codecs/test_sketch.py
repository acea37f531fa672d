"""The count sketch against its theory: expectation, variance, measured errors, adjoints (methods.md 1.11, 1.12, 1.16).

Shapes: T rows, D width, Y sketch rows, Z buckets, H hashes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from elsa_ray.codecs import sketch as sketch_module
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.sketch import Sketch

from ..helpers import chain

CONTEXT = CodecContext()
BUCKETS = 16


def make_sketch(**parameters: Any) -> Sketch:
    return Sketch(Sketch.Config(**parameters))


def decoded(sketch: Sketch, x_TD: Tensor) -> Tensor:
    return sketch.decode(sketch.encode(x_TD, CONTEXT), x_TD.shape[1], CONTEXT)


def vector(width: int) -> Tensor:
    """Return a vector of a few large and many middling numbers, [1, D]."""
    x = torch.randn(1, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x[0, ::7] *= 4
    return x


@cache
def estimates(num_hashes: int) -> Tensor:
    """Return the single-row estimates of one vector by fresh hashes, [H, D]."""
    x = vector(40)
    fresh = [make_sketch(rows=1, buckets=BUCKETS, seed=seed, decode="mean") for seed in range(num_hashes)]
    return torch.cat([decoded(sketch, x) for sketch in fresh])


def test_a_single_rows_estimate_is_unbiased_over_fresh_hashes() -> None:
    samples_HD, (x_D,) = estimates(2000), vector(40)
    variance_D = ((x_D**2).sum() - x_D**2) / BUCKETS
    sigma_D = (variance_D / len(samples_HD)).sqrt()
    assert bool(((samples_HD.mean(dim=0) - x_D).abs() < 4 * sigma_D).all())


def test_a_single_rows_variance_is_the_rest_of_the_energy_over_the_buckets() -> None:
    samples_HD, (x_D,) = estimates(8000), vector(40)
    expected_D = ((x_D**2).sum() - x_D**2) / BUCKETS
    found_D = ((samples_HD - x_D) ** 2).mean(dim=0)
    assert bool(((found_D / expected_D - 1).abs() < 0.1).all())


def test_one_row_without_collisions_is_lossless(monkeypatch: pytest.MonkeyPatch) -> None:
    width, buckets = 12, 15

    def permutation(num_rows: int, num_buckets: int, seed: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        cell_YD = torch.randperm(num_buckets, generator=generator)[:columns][None]
        sign_YD = torch.randint(0, 2, (1, columns), generator=generator).float() * 2 - 1
        projection_DE = torch.zeros(columns, num_buckets)
        projection_DE[torch.arange(columns), cell_YD[0]] = sign_YD[0]
        return projection_DE, cell_YD, sign_YD

    monkeypatch.setattr(sketch_module, "_hash_tables", permutation)
    x = torch.randn(5, width, dtype=torch.float64)
    for decode in ("mean", "median"):
        assert torch.equal(decoded(make_sketch(rows=1, buckets=buckets, decode=decode), x), x)


def test_encoding_is_linear_to_the_bit_on_whole_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-1000, 1000, (6, 50), generator=generator).double() for _ in range(2))
    sketch = make_sketch(rows=3, buckets=8)

    def encode(values: Tensor) -> Tensor:
        return sketch.encode(values, CONTEXT).values

    assert torch.equal(encode(3 * x - 5 * y), 3 * encode(x) - 5 * encode(y))
    assert torch.equal(encode(torch.zeros_like(x)), torch.zeros(6, 24, dtype=torch.float64))


def test_encoding_is_the_definition_and_decoding_its_mean_and_median() -> None:
    width, num_rows, num_buckets = 30, 4, 8
    _, cell_YD, sign_YD = sketch_module._hash_tables(num_rows, num_buckets, 0, width)
    x = vector(width)
    table_YZ = torch.zeros(num_rows, num_buckets, dtype=torch.float64)
    for y in range(num_rows):
        for i in range(width):
            table_YZ[y, int(cell_YD[y, i]) - y * num_buckets] += sign_YD[y, i] * x[0, i]
    estimate_YD = torch.stack([sign_YD[y] * table_YZ[y, cell_YD[y] - y * num_buckets] for y in range(num_rows)])
    sketch = make_sketch(rows=num_rows, buckets=num_buckets)
    assert torch.allclose(sketch.encode(x, CONTEXT).values[0], table_YZ.flatten(), rtol=0, atol=1e-12)
    middle_D = estimate_YD.sort(dim=0).values[1:3].mean(dim=0)
    shrunk = 1 / (1 + width / (num_rows * num_buckets))
    expected = {"mean": estimate_YD.mean(dim=0), "median": middle_D, "mmse": estimate_YD.mean(dim=0) * shrunk}
    for decode, values_D in expected.items():
        found = decoded(make_sketch(rows=num_rows, buckets=num_buckets, decode=decode), x)
        assert torch.allclose(found[0], values_D, rtol=0, atol=1e-12)


def relative_squared_error(num_rows: int, num_buckets: int, decode: str, *, num_hashes: int = 40) -> float:
    x = torch.randn(8, 768, generator=torch.Generator().manual_seed(9))
    errors = []
    for seed in range(num_hashes):
        sketch = make_sketch(rows=num_rows, buckets=num_buckets, seed=seed, decode=decode)
        errors.append(float((decoded(sketch, x) - x).square().sum() / x.square().sum()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize(
    ("num_rows", "num_buckets", "decode", "expected"),
    [
        (3, 64, "mean", 767 / 192),
        (5, 128, "mean", 767 / 640),
        (3, 64, "median", 5.10),
        (5, 128, "median", 1.56),
        (3, 64, "mmse", 4.0 / 5.0),
        (5, 128, "mmse", 1.2 / 2.2),
        (1, 768, "mmse", 0.5),
    ],
)
def test_the_error_on_dense_gaussian_rows_is_as_predicted_and_measured(
    num_rows: int, num_buckets: int, decode: str, expected: float
) -> None:
    assert relative_squared_error(num_rows, num_buckets, decode) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("decode", ["mean", "median", "mmse"])
def test_straight_through_is_the_identity_backwards(decode: str) -> None:
    of = chain({"kind": "sketch", "rows": 3, "buckets": 8, "decode": decode}, wire_dtype="fp64")
    gradient = torch.randn(4, 20, dtype=torch.float64)
    assert torch.equal(of.backward(torch.randn(4, 20, dtype=torch.float64), gradient, CONTEXT), gradient)


def test_the_mean_decoders_exact_gradient_is_its_transpose() -> None:
    of = chain({"kind": "sketch", "rows": 3, "buckets": 4, "decode": "mean", "backward": "exact"}, wire_dtype="fp64")
    eye = torch.eye(9, dtype=torch.float64)
    matrix = of.decode(of.encode(eye, CONTEXT), 9, 9, CONTEXT)
    adjoint = of.backward(torch.zeros_like(eye), eye, CONTEXT)
    assert torch.allclose(adjoint, matrix.T, rtol=0, atol=1e-14)


@pytest.mark.parametrize("end", [{"kind": "int8"}, {"kind": "cast"}, {"kind": "cast", "dtype": "bf16"}], ids=str)
@pytest.mark.parametrize("decode", ["mean", "mmse", "median"])
def test_an_exact_sketch_is_exact_around_a_straight_through_quantiser(decode: str, end: dict[str, str]) -> None:
    exact = {"kind": "sketch", "rows": 3, "buckets": 4, "decode": decode, "backward": "exact"}
    x, gradient = torch.randn(5, 20, dtype=torch.float64), torch.randn(5, 20, dtype=torch.float64)
    alone, quantised = chain(exact, wire_dtype="fp64"), chain(exact, end, wire_dtype="fp64")
    expected = alone.backward(x, gradient, CONTEXT)
    assert torch.equal(quantised.backward(x, gradient, CONTEXT), expected)
    assert not torch.equal(expected, gradient)
    sent = quantised.decode(quantised.encode(x, CONTEXT), 5, 20, CONTEXT)
    assert not torch.equal(sent, alone.decode(alone.encode(x, CONTEXT), 5, 20, CONTEXT))


def test_both_ends_derive_the_same_hashes_and_another_seed_gives_others() -> None:
    x = torch.randn(3, 30)
    payload = make_sketch(rows=3, buckets=8, seed=1).encode(x, CONTEXT)
    sketch_module._hash_tables.cache_clear()
    again = make_sketch(rows=3, buckets=8, seed=1).encode(x, CodecContext(seed=9, round_index=4))
    assert torch.equal(payload.values, again.values)
    assert not torch.equal(payload.values, make_sketch(rows=3, buckets=8, seed=2).encode(x, CONTEXT).values)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"round_index": 1}, {"edge_round": 1}, {"step": 1}, {"client": 1}, {"role": "x"}, {"tensor": 1}],
    ids=str,
)
def test_fresh_hashes_are_another_message_by_message_and_the_same_at_both_ends(change: dict[str, Any]) -> None:
    x, fresh, other = torch.randn(3, 30), make_sketch(rows=3, buckets=8, hash="fresh"), replace(CONTEXT, **change)
    sent = fresh.encode(x, CONTEXT)
    sketch_module._hash_tables.cache_clear()
    assert torch.equal(sent.values, make_sketch(rows=3, buckets=8, hash="fresh").encode(x, CONTEXT).values)
    assert not torch.equal(sent.values, fresh.encode(x, other).values)
    assert not torch.equal(fresh.decode(sent, 30, CONTEXT), fresh.decode(sent, 30, other))


def test_errors_of_fixed_hashes_add_up_over_messages_and_those_of_fresh_ones_cancel() -> None:
    x, messages = vector(40), [replace(CONTEXT, step=step) for step in range(400)]
    errors = {}
    for hashing in ("fixed", "fresh"):
        sketch = make_sketch(rows=2, buckets=BUCKETS, decode="mean", hash=hashing)
        mean = sum(sketch.decode(sketch.encode(x, at), 40, at) for at in messages) / len(messages)
        errors[hashing] = float((mean - x).norm() / x.norm())
    one_message = (39 / 32) ** 0.5
    assert errors["fixed"] == pytest.approx(one_message, rel=0.3)
    assert errors["fresh"] == pytest.approx(one_message / 400**0.5, rel=0.3)
