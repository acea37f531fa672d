"""What each codec declares about itself is so: the tests are made from the declarations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.codecs.chain import BUILT_IN, WIRE_DTYPES
from elsa_ray.codecs.codec import Codec
from elsa_ray.codecs.wire import decode_calibrations, encode_calibrations

from .ends import CONTEXT, MAKERS, ThroughChain, build, calibrated, round_trip, rows
from .variants import CHAINS, SINGLE, Spec, name_of

DRAWS = 600


def stage_of(spec: Spec) -> Codec:
    (stage,) = build(spec).stages
    return stage


def draws_are_random(spec: Spec) -> bool:
    return spec["kind"] == "sketch" or spec.get("rounding") == "stochastic"


def received_by_chance(spec: Spec, x_TD: Tensor) -> Iterator[Tensor]:
    """Receive the rows by fresh randomness: other messages, or other seeds where the hashes are fixed for a run."""
    has_seed = spec["kind"] == "sketch" and spec.get("hash") != "fresh"
    for draw in range(DRAWS if draws_are_random(spec) else 1):
        of = build({**spec, "seed": draw} if has_seed else spec, wire_dtype="fp64")
        yield round_trip(of, x_TD, replace(CONTEXT, step=draw), calibrated(of, rows(7)))


def test_every_built_in_codec_is_tested_here() -> None:
    assert {spec["kind"] for spec in SINGLE} == BUILT_IN.keys()


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_linear_means_additive_and_homogeneous_and_only_then(spec: Spec) -> None:
    of = build(spec, wire_dtype="fp64")
    memory = calibrated(of, rows(7))

    def f(x_TD: Tensor) -> Tensor:
        return round_trip(of, x_TD, CONTEXT, memory)

    x, y = rows(1), rows(2)
    additive = torch.allclose(f(x + y), f(x) + f(y), rtol=0, atol=1e-12)
    homogeneous = torch.allclose(f(-2.5 * x), -2.5 * f(x), rtol=0, atol=1e-12)
    one_row_has_no_median = spec.get("rows") == 1
    if stage_of(spec).linear or (spec["kind"] == "sketch" and one_row_has_no_median):
        assert additive
        assert homogeneous
    else:
        assert not (additive and homogeneous)


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_unbiased_means_that_the_mean_over_the_codecs_randomness_is_the_input(spec: Spec) -> None:
    x = rows(1, num_rows=2) + 2.0
    estimates = torch.stack(list(received_by_chance(spec, x)))
    mean, sigma = estimates.mean(dim=0), estimates.std(dim=0, correction=0) / len(estimates) ** 0.5
    # An outcome rarer than one draw may be missing in the sample; it is no farther off than the others are.
    unseen = 4 * (estimates.amax(dim=0) - estimates.amin(dim=0)).max() / len(estimates)
    is_close = bool(((mean - x).abs() <= 4 * sigma + unseen + 1e-6).all())
    assert is_close == stage_of(spec).unbiased


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_lossless_means_that_the_input_comes_back_and_only_then(spec: Spec) -> None:
    of = build(spec, wire_dtype="fp64")
    received = round_trip(of, rows(1), CONTEXT, calibrated(of, rows(7)))
    assert torch.allclose(received, rows(1), rtol=0, atol=1e-6) == stage_of(spec).lossless


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_a_gradient_passes_unchanged_or_by_the_exact_adjoint_as_declared(spec: Spec) -> None:
    of, stage = build(spec, wire_dtype="fp64"), stage_of(spec)
    memory, gradient = calibrated(of, rows(7)), rows(2)
    passed = of.backward(rows(1), gradient, CONTEXT, memory)
    assert torch.equal(passed, gradient) == (stage.straight_through or stage.lossless)
    if not stage.straight_through:
        leaf = rows(1, num_rows=2).requires_grad_()
        assert torch.autograd.gradcheck(lambda x_TD: ThroughChain.apply(x_TD, of, CONTEXT, memory), (leaf,))


@pytest.mark.parametrize("spec", SINGLE, ids=name_of)
def test_what_is_not_random_does_not_depend_on_the_message(spec: Spec) -> None:
    of, context = build(spec), replace(CONTEXT, step=5)
    memory = calibrated(of, rows(7))
    is_same = of.encode(rows(1), CONTEXT, memory) == of.encode(rows(1), context, memory)
    assert is_same == (not draws_are_random(spec) or (spec["kind"] == "sketch" and spec.get("hash") != "fresh"))


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_the_body_has_the_formulas_length(specs: list[Spec]) -> None:
    for wire_dtype in WIRE_DTYPES:
        of = build(*specs, wire_dtype=wire_dtype)
        assert of.size_is_exact
        for num_rows, width in ((0, 5), (1, 1), (1, 24), (7, 3), (11, 40)):
            memory = calibrated(of, rows(7, 9, width))
            body = of.encode(rows(0, num_rows, width), CONTEXT, memory)
            assert len(body) == of.body_bytes(num_rows, width)
            assert of.decode(body, num_rows, width, CONTEXT, memory).shape == (num_rows, width)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHAINS), st.sampled_from(list(WIRE_DTYPES)), st.integers(0, 20), st.integers(1, 70))
def test_the_body_has_the_formulas_length_whatever_the_shape(
    specs: list[Spec], wire_dtype: str, num_rows: int, width: int
) -> None:
    of = build(*specs, wire_dtype=wire_dtype)
    memory = calibrated(of, rows(7, 9, width))
    assert len(of.encode(rows(0, num_rows, width), CONTEXT, memory)) == of.body_bytes(num_rows, width)


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_the_size_of_many_shapes_is_that_of_each(specs: list[Spec]) -> None:
    of = build(*specs)
    assert of.body_bytes([[1, 0], [3, 40]], 9).tolist() == [
        [of.body_bytes(1, 9), of.body_bytes(0, 9)],
        [of.body_bytes(3, 9), of.body_bytes(40, 9)],
    ]


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_both_ends_agree(specs: list[Spec]) -> None:
    sender, receiver = build(*specs), build(*specs)
    assert sender.chain_id == receiver.chain_id
    made = calibrated(sender, rows(7))
    assert all(torch.equal(a, b) for a, b in zip(sum(made, ()), sum(calibrated(receiver, rows(7)), ()), strict=True))
    payloads = encode_calibrations(sender, made, 24, MAKERS, CONTEXT)
    held = decode_calibrations(receiver, payloads, (), 24, MAKERS, CONTEXT)
    for stage, own, other in zip(sender.stages, made, held, strict=True):
        ships = stage.calibration is not None and stage.calibration.role is not None
        assert len(other) == (len(own) if ships else 0)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(own, other, strict=False))
    body = sender.encode(rows(1), CONTEXT, made)
    assert body == receiver.encode(rows(1), CONTEXT, made)
    if all(stage.calibration is None or stage.calibration.role for stage in sender.stages):
        received = receiver.decode(body, 6, 24, CONTEXT, held)
        assert torch.equal(received, sender.decode(body, 6, 24, CONTEXT, made))


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_payload_does_not_depend_on_the_precision_of_the_training(specs: list[Spec], dtype: torch.dtype) -> None:
    of, x = build(*specs), rows(1).to(torch.bfloat16)
    memory = calibrated(of, x.to(dtype))
    assert of.encode(x.to(dtype), CONTEXT, memory) == of.encode(x.float(), CONTEXT, calibrated(of, x.float()))


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_a_row_with_nan_shows_it_at_the_receiver_and_the_others_are_as_without_it(specs: list[Spec]) -> None:
    of, x = build(*specs), rows(1)
    x[2] *= 100  # the largest row with and without NaN, so that it takes no other's place where few are sent
    memory = calibrated(of, rows(7))
    clean = round_trip(of, x, CONTEXT, memory)
    x[2, 11] = torch.nan
    received = round_trip(of, x, CONTEXT, memory)
    others = [0, 1, 3, 4, 5]
    assert bool(received[2].isnan().any())
    assert torch.equal(received[others], clean[others])


@pytest.mark.parametrize("specs", [chain for chain in CHAINS if build(*chain).is_calibrated], ids=name_of)
def test_a_calibration_leaves_out_rows_that_are_not_finite(specs: list[Spec]) -> None:
    of, x = build(*specs), rows(7)
    spoiled = torch.cat([x, x[:2]])
    spoiled[6, 3], spoiled[7, 0] = torch.nan, -torch.inf
    for expected, found in zip(calibrated(of, x), calibrated(of, spoiled), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    nothing_left = calibrated(of, spoiled[6:])
    assert all(bool(tensor.isfinite().all()) for own in nothing_left for tensor in own)
    assert bool(round_trip(of, x, CONTEXT, nothing_left).isfinite().all())


def test_chains_of_different_codecs_or_wire_formats_have_different_ids() -> None:
    every = [build(*specs, wire_dtype=wire_dtype) for specs in CHAINS for wire_dtype in WIRE_DTYPES]
    assert len({of.chain_id for of in every}) == len(every)
