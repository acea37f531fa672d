"""What each codec declares about itself is so: the tests are made from the declarations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.codecs.chain import BUILT_IN, WIRE_DTYPES, CodecChain
from elsa_ray.codecs.codec import CodecContext

from ..helpers import chain
from .variants import CHAINS, SINGLE, Spec, name_of

CONTEXT = CodecContext(seed=3, round_index=1, edge_round=0, step=2, client=5, role="activation_up")
WIDTH = 24


def rows(seed: int, num_rows: int = 6, width: int = WIDTH) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def round_trip(of: CodecChain, x_TD: Tensor, context: CodecContext = CONTEXT) -> Tensor:
    return of.decode(of.encode(x_TD, context), *x_TD.shape, context)


def stage_of(spec: Spec) -> object:
    (stage,) = chain(spec).stages
    return stage


def test_every_built_in_codec_is_tested_here() -> None:
    assert {spec["kind"] for spec in SINGLE} == BUILT_IN.keys()


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_linear_means_additive_and_homogeneous_and_only_then(spec: Spec) -> None:
    of = chain(spec, wire_dtype="fp64")
    x, y = rows(1), rows(2)
    additive = torch.allclose(round_trip(of, x + y), round_trip(of, x) + round_trip(of, y), rtol=0, atol=1e-12)
    homogeneous = torch.allclose(round_trip(of, -2.5 * x), -2.5 * round_trip(of, x), rtol=0, atol=1e-12)
    one_row_has_no_median = spec.get("rows") == 1
    if stage_of(spec).linear or one_row_has_no_median:
        assert additive
        assert homogeneous
    else:
        assert not (additive and homogeneous)


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_unbiased_means_that_the_mean_over_the_codecs_randomness_is_the_input(spec: Spec) -> None:
    draws = 600
    seeds = range(draws) if "rows" in spec else [None]
    x = rows(1, num_rows=1) + 2.0
    samples = [
        round_trip(chain(spec if seed is None else {**spec, "seed": seed}, wire_dtype="fp64"), x) for seed in seeds
    ]
    estimates = torch.cat(samples)
    mean, sigma = estimates.mean(dim=0), estimates.std(dim=0, correction=0) / len(samples) ** 0.5
    is_close = bool(((mean - x[0]).abs() <= 4 * sigma).all())
    assert is_close == stage_of(spec).unbiased


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_a_gradient_passes_unchanged_or_by_the_exact_adjoint_as_declared(spec: Spec) -> None:
    of = chain(spec, wire_dtype="fp64")
    x, gradient = rows(1), rows(2)
    passed = of.backward(x, gradient, CONTEXT)
    stage = stage_of(spec)
    if stage.straight_through:
        assert torch.equal(passed, gradient)
        return
    leaf = x.clone().requires_grad_()
    through = stage.decode(stage.encode(leaf, CONTEXT), WIDTH, CONTEXT)
    (expected,) = torch.autograd.grad(through, leaf, gradient)
    assert torch.allclose(passed, expected, rtol=0, atol=1e-12)
    assert spec["kind"] == "identity" or not torch.equal(passed, gradient)


@pytest.mark.parametrize("wire_dtype", WIRE_DTYPES)
@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_the_body_has_the_formulas_length(specs: list[Spec], wire_dtype: str) -> None:
    of = chain(*specs, wire_dtype=wire_dtype)
    assert of.size_is_exact
    for num_rows, width in ((0, 5), (1, 1), (1, WIDTH), (7, 3), (11, 40)):
        body = of.encode(rows(0, num_rows, width), CONTEXT)
        assert len(body) == of.body_bytes(num_rows, width)
        assert of.decode(body, num_rows, width, CONTEXT).shape == (num_rows, width)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHAINS), st.sampled_from(list(WIRE_DTYPES)), st.integers(0, 20), st.integers(1, 70))
def test_the_body_has_the_formulas_length_whatever_the_shape(
    specs: list[Spec], wire_dtype: str, num_rows: int, width: int
) -> None:
    of = chain(*specs, wire_dtype=wire_dtype)
    assert len(of.encode(rows(0, num_rows, width), CONTEXT)) == of.body_bytes(num_rows, width)


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_the_size_of_many_shapes_is_that_of_each(specs: list[Spec]) -> None:
    of = chain(*specs)
    assert of.body_bytes([[1, 0], [3, 40]], 9).tolist() == [
        [of.body_bytes(1, 9), of.body_bytes(0, 9)],
        [of.body_bytes(3, 9), of.body_bytes(40, 9)],
    ]


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_encoding_is_a_function_of_its_arguments(specs: list[Spec]) -> None:
    first, second = chain(*specs), chain(*specs)
    assert first.chain_id == second.chain_id
    assert first.encode(rows(1), CONTEXT) == second.encode(rows(1), CONTEXT)


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_payload_does_not_depend_on_the_precision_of_the_training(specs: list[Spec], dtype: torch.dtype) -> None:
    x = rows(1).to(torch.bfloat16)
    assert chain(*specs).encode(x.to(dtype), CONTEXT) == chain(*specs).encode(x.float(), CONTEXT)


def test_chains_of_different_codecs_or_wire_formats_have_different_ids() -> None:
    every = [chain(*specs, wire_dtype=wire_dtype) for specs in CHAINS for wire_dtype in WIRE_DTYPES]
    assert len({of.chain_id for of in every}) == len(every)
