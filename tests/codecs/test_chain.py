"""Chains with a memory: who calibrates which stage of what, and which of it serves the gradients."""

from __future__ import annotations

import pytest
import torch

from elsa_ray.codecs.chain import check_matching, matching_memory
from elsa_ray.codecs.codec import Maker
from elsa_ray.config.errors import InputError

from .ends import CONTEXT, MAKERS, build, calibrated, rows
from .variants import Spec, name_of

SSOP: Spec = {"kind": "ssop", "rank": 4}
OWN_KEY: Spec = {**SSOP, "invert": "client"}
SUBSPACE: Spec = {"kind": "subspace", "rank": 3, "basis_dtype": "fp32"}
SKETCH: Spec = {"kind": "sketch", "rows": 2, "buckets": 4}
INT8: Spec = {"kind": "int8"}
ROWS: Spec = {"kind": "rows", "share": 0.3}
BITS: Spec = {"kind": "bits", "bits_per_row": 12}


def test_a_stage_is_calibrated_on_the_rows_as_they_reach_it_rounded_as_it_travels() -> None:
    of, x = build(SSOP, {**SUBSPACE, "basis_dtype": "fp16"}, INT8), rows(0, 30).float()
    assert of.calibrated == (0, 1)
    key, basis, nothing = calibrated(of, x)
    assert nothing == ()
    assert [tensor.dtype for tensor in (*key, *basis)] == [torch.float32] * 2 + [torch.float16] * 2
    (alone,) = calibrated(build(SSOP), x)
    assert all(torch.equal(a, b) for a, b in zip(key, alone, strict=True))
    rotated_body = build(SSOP).encode(x, CONTEXT, (key,))
    rotated = torch.frombuffer(bytearray(rotated_body), dtype=torch.float32).reshape(x.shape)
    (expected,) = calibrated(build({**SUBSPACE, "basis_dtype": "fp16"}), rotated)
    assert all(torch.equal(a, b) for a, b in zip(basis, expected, strict=True))
    (of_plain_rows,) = calibrated(build({**SUBSPACE, "basis_dtype": "fp16"}), x)
    assert not torch.equal(basis[0], of_plain_rows[0])


def test_stages_of_other_makers_keep_what_is_held_and_the_stages_behind_see_their_work() -> None:
    of, x = build(SSOP, SUBSPACE), rows(0, 30)
    first = calibrated(of, rows(1, 30))
    second = of.calibrate(x, CONTEXT, first, frozenset({Maker.SENDER}))
    assert second[0] is first[0]
    assert not torch.equal(second[1][0], first[1][0])
    without_key = of.calibrate(x, CONTEXT, (), frozenset({Maker.SENDER}))
    assert without_key[0] == ()
    assert not torch.equal(second[1][0], without_key[1][0])
    assert of.calibrate(x, CONTEXT, first, frozenset()) == first


def test_a_chain_without_calibrated_stages_holds_nothing() -> None:
    of = build(SKETCH, INT8)
    assert not of.is_calibrated
    assert of.calibrated == ()
    assert calibrated(of, rows(0)) == ((), ())
    assert of.encode(rows(0), CONTEXT, ((), ())) == of.encode(rows(0), CONTEXT)


def test_a_memory_of_another_chain_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        build(SSOP).encode(rows(0), CONTEXT, ((), ()))


@pytest.mark.parametrize(
    ("activation", "gradient"),
    [
        ([SSOP, SUBSPACE, INT8], [SSOP, SUBSPACE, {"kind": "cast"}]),
        ([SSOP, SUBSPACE, INT8], []),
        ([SKETCH, SSOP], [SKETCH, SSOP, INT8]),
        ([OWN_KEY, SKETCH], [OWN_KEY]),
        ([SKETCH], [INT8]),
        ([SUBSPACE, BITS], [ROWS, INT8]),
        ([SUBSPACE, BITS], [SUBSPACE, BITS]),
        ([SUBSPACE, BITS], [SUBSPACE, ROWS, INT8]),
        ([SSOP, SUBSPACE], [SSOP]),
    ],
    ids=lambda specs: name_of(specs),
)
def test_a_gradient_chain_matches_that_starts_alike_or_has_no_calibrated_stage(
    activation: list[Spec], gradient: list[Spec]
) -> None:
    check_matching(build(*activation), build(*gradient), "protocol.codec.gradient")


@pytest.mark.parametrize(
    ("activation", "gradient"),
    [
        ([SSOP], [SSOP, SUBSPACE]),
        ([SSOP, SUBSPACE], [SUBSPACE, SSOP]),
        ([SUBSPACE], [{**SUBSPACE, "rank": 4}]),
        ([SSOP], [SUBSPACE]),
        ([], [SSOP]),
        ([SKETCH, SSOP], [SSOP]),
        ([SSOP], [SKETCH, SSOP]),
        ([OWN_KEY], []),
        ([OWN_KEY], [SKETCH]),
        ([SUBSPACE, OWN_KEY], [SUBSPACE]),
        ([SUBSPACE, BITS], [ROWS, SUBSPACE, BITS]),
    ],
    ids=lambda specs: name_of(specs),
)
def test_another_gradient_chain_is_refused_in_one_line(activation: list[Spec], gradient: list[Spec]) -> None:
    with pytest.raises(InputError, match=r"^protocol\.codec\.gradient: found .*; allowed: .*$"):
        check_matching(build(*activation), build(*gradient), "protocol.codec.gradient")


def test_gradients_have_the_calibrations_of_the_activations_stage_by_stage() -> None:
    activation, gradient = build(SSOP, SUBSPACE, SKETCH, INT8), build(SSOP, SUBSPACE, INT8)
    memory = activation.calibrate(rows(0, 30), CONTEXT, (), MAKERS)
    found = matching_memory(activation, gradient, memory)
    assert len(found) == 3
    assert found[0] is memory[0]
    assert found[1] is memory[1]
    assert found[2] == ()
    assert matching_memory(activation, build(INT8), memory) == ()
    only_the_first = matching_memory(activation, build(SSOP, INT8), memory)
    assert only_the_first[0] is memory[0] and only_the_first[1:] == ((),)
    assert matching_memory(activation, gradient, ()) == ()
