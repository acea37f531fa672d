"""The wire format: exact sizes, and a receiver that takes nothing but what it expects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.codecs.wire import (
    HEADER_BYTES,
    PayloadError,
    adapter_num_bytes,
    calibration_num_bytes,
    decode_adapters,
    decode_calibrations,
    decode_hidden,
    encode_adapters,
    encode_calibrations,
    encode_hidden,
    hidden_num_bytes,
    readdressed,
)
from elsa_ray.world.roles import Role

from ..helpers import chain
from .ends import CONTEXT, MAKERS, build, calibrated, round_trip, rows
from .variants import CHAINS, Spec, name_of

STEP_ROLES = (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN, Role.GRADIENT_UP, Role.GRADIENT_DOWN)
SKETCH = {"kind": "sketch", "rows": 3, "buckets": 4}
SHAPES = [(3, 8), (8, 3), (5,), (2, 7)]


def hidden(batch: int = 2, length: int = 3, width: int = 6) -> torch.Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0))


def encoded(of: CodecChain, role: Role = Role.GRADIENT_UP, context: CodecContext = CONTEXT, **shape: int) -> bytes:
    values = hidden(**shape)
    lengths = torch.arange(1, len(values) + 1) if role is Role.ACTIVATION_UP else None
    memory = calibrated(of, rows(7, width=values.shape[2]))
    return encode_hidden(of, role, values, context, lengths, memory)


@pytest.mark.parametrize("specs", CHAINS, ids=name_of)
def test_payloads_of_every_chain_have_the_formulas_size_and_one_header_length(specs: list[Spec]) -> None:
    of = build(*specs)
    for role in STEP_ROLES:
        for batch, length in ((1, 1), (2, 3), (5, 2)):
            payload = encoded(of, role, batch=batch, length=length)
            mask = 2 * batch if role is Role.ACTIVATION_UP else 0
            assert len(payload) == HEADER_BYTES + mask + of.body_bytes(batch * length, 6)
            assert len(payload) == hidden_num_bytes(of, role, batch, length, 6)
    if not of.is_calibrated:
        adapters = [torch.randn(shape) for shape in SHAPES]
        assert len(encode_adapters(of, Role.ADAPTER_UP, adapters, CONTEXT)) == adapter_num_bytes(of, SHAPES)


def test_the_header_has_52_bytes() -> None:
    assert HEADER_BYTES == 52
    assert len(encode_adapters(chain(), Role.CONTROL, [], CONTEXT)) == HEADER_BYTES


def test_sizes_of_arrays_are_those_of_their_entries() -> None:
    of = chain({"kind": "int8"})
    batch, length = np.array([[1, 4], [2, 0]]), np.array([[3, 9], [1, 0]])
    for role in STEP_ROLES:
        sizes = hidden_num_bytes(of, role, batch, length, 6)
        assert sizes.dtype == np.int64
        assert sizes[0, 1] == hidden_num_bytes(of, role, 4, 9, 6)
        assert sizes[1, 1] == HEADER_BYTES


@pytest.mark.parametrize(("wire_dtype", "number_bytes"), [("fp64", 8), ("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_a_sketched_steps_bytes_are_4_b_s_y_z_numbers_and_the_mask_and_4_headers(
    wire_dtype: str, number_bytes: int
) -> None:
    of, (batch, length, rows, buckets) = chain(SKETCH, wire_dtype=wire_dtype), (4, 5, 3, 4)
    step = sum(len(encoded(of, role, batch=batch, length=length, width=48)) for role in STEP_ROLES)
    mask = 2 * batch
    assert step == 4 * batch * length * rows * buckets * number_bytes + mask + 4 * HEADER_BYTES


def test_values_shapes_and_lengths_come_back() -> None:
    values, lengths = hidden(), torch.tensor([3, 2])
    payload = encode_hidden(chain(), Role.ACTIVATION_UP, values, CONTEXT, lengths)
    received, received_lengths = decode_hidden(chain(), Role.ACTIVATION_UP, payload, CONTEXT)
    assert torch.equal(received, values)
    assert torch.equal(received_lengths, lengths)
    down = encode_hidden(chain(), Role.ACTIVATION_DOWN, values, CONTEXT)
    assert decode_hidden(chain(), Role.ACTIVATION_DOWN, down, CONTEXT)[1] is None


@pytest.mark.parametrize("specs", [[], [SKETCH], [{"kind": "int8"}]], ids=name_of)
def test_adapters_come_back_in_order_and_shape(specs: list[Spec]) -> None:
    of = chain(*specs)
    adapters = [torch.randn(shape) for shape in SHAPES]
    payload = encode_adapters(of, Role.ADAPTER_UP, adapters, CONTEXT)
    received = decode_adapters(of, Role.ADAPTER_UP, payload, SHAPES, CONTEXT)
    assert [tuple(tensor.shape) for tensor in received] == SHAPES
    if not specs:
        assert all(torch.equal(a, b) for a, b in zip(adapters, received, strict=True))


@pytest.mark.parametrize(
    "spec", [{"kind": "int8", "rounding": "stochastic"}, {**SKETCH, "decode": "mean", "hash": "fresh"}], ids=name_of
)
def test_each_tensor_of_a_message_has_its_own_random_numbers_at_both_ends(spec: Spec) -> None:
    of, tensor = build(spec), torch.linspace(0, 1, 40)
    payload = encode_adapters(of, Role.ADAPTER_UP, [tensor] * 2, CONTEXT)
    received = decode_adapters(of, Role.ADAPTER_UP, payload, [(40,), (40,)], CONTEXT)
    assert not torch.equal(*received)
    for position, found in enumerate(received):
        alone = round_trip(of, tensor[None], replace(CONTEXT, tensor=position))
        assert torch.equal(found, alone[0])


@pytest.mark.parametrize("specs", [[], [SKETCH], [{"kind": "int8"}]], ids=name_of)
def test_any_flipped_bit_is_found(specs: list[Spec]) -> None:
    of = chain(*specs)
    payload = encoded(of, Role.ACTIVATION_UP)
    decode_hidden(of, Role.ACTIVATION_UP, payload, CONTEXT)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            decode_hidden(of, Role.ACTIVATION_UP, bytes(damaged), CONTEXT)


@pytest.mark.parametrize("kept", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 5, -1])
def test_a_truncated_payload_is_refused(kept: int) -> None:
    payload = encoded(chain())
    with pytest.raises(PayloadError):
        decode_hidden(chain(), Role.GRADIENT_UP, payload[:kept], CONTEXT)


def test_a_payload_with_something_behind_it_is_refused() -> None:
    with pytest.raises(PayloadError):
        decode_hidden(chain(), Role.GRADIENT_UP, encoded(chain()) + b"\0", CONTEXT)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.GRADIENT_UP])
def test_another_role_is_refused(role: Role) -> None:
    with pytest.raises(PayloadError, match="role"):
        decode_hidden(chain(), role, encoded(chain()), CONTEXT)


@pytest.mark.parametrize(
    "other",
    [chain({"kind": "int8"}), chain({"kind": "identity"}), chain(wire_dtype="bf16"), chain({**SKETCH, "seed": 1})],
    ids=["int8", "identity", "bf16", "sketch"],
)
def test_another_chain_is_refused(other: CodecChain) -> None:
    with pytest.raises(PayloadError, match="chain"):
        decode_hidden(other, Role.GRADIENT_UP, encoded(chain()), CONTEXT)


def test_a_sketch_of_another_seed_is_refused() -> None:
    with pytest.raises(PayloadError, match="chain"):
        decode_hidden(chain({**SKETCH, "seed": 1}), Role.GRADIENT_UP, encoded(chain(SKETCH)), CONTEXT)


@pytest.mark.parametrize("change", [{"round_index": 0}, {"edge_round": 1}, {"step": 5}, {"client": 6}], ids=str)
def test_another_moment_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PayloadError, match="round"):
        decode_hidden(chain(), Role.GRADIENT_UP, encoded(chain()), replace(CONTEXT, **change))


def test_adapters_of_other_shapes_are_refused() -> None:
    payload = encode_adapters(chain(), Role.ADAPTER_UP, [torch.zeros(shape) for shape in SHAPES], CONTEXT)
    with pytest.raises(PayloadError, match="formula"):
        decode_adapters(chain(), Role.ADAPTER_UP, payload, [*SHAPES[:-1], (2, 6)], CONTEXT)


def test_the_errors_line_tells_what_was_found_and_what_is_allowed() -> None:
    with pytest.raises(PayloadError) as error:
        decode_hidden(chain(), Role.GRADIENT_UP, b"abc", CONTEXT)
    assert str(error.value) == "payload: found 3 bytes; allowed: at least the 52 bytes of a header"


SSOP = {"kind": "ssop", "rank": 4}
SUBSPACE = {"kind": "subspace", "rank": 3}
KEY_BYTES, BASIS_BYTES = HEADER_BYTES + 4 * (6 * 4 + 4 * 4), HEADER_BYTES + 2 * (6 * 3 + 6)
BOTH, CLIENT, SENDER = MAKERS, frozenset({Maker.CLIENT}), frozenset({Maker.SENDER})


@pytest.mark.parametrize(
    ("specs", "makers", "expected"),
    [
        ([SSOP, SUBSPACE], BOTH, [(Role.KEY, KEY_BYTES), (Role.BASIS, BASIS_BYTES)]),
        ([SUBSPACE, SSOP], BOTH, [(Role.BASIS, BASIS_BYTES), (Role.KEY, HEADER_BYTES + 4 * (3 * 3 + 3 * 3))]),
        ([SSOP, SUBSPACE], SENDER, [(Role.BASIS, BASIS_BYTES)]),
        ([SSOP, SUBSPACE], CLIENT, [(Role.KEY, KEY_BYTES)]),
        ([{**SSOP, "invert": "client"}, SUBSPACE], BOTH, [(Role.BASIS, BASIS_BYTES)]),
        ([{"kind": "subspace", "rank": 9, "mean": False}], BOTH, [(Role.BASIS, HEADER_BYTES + 2 * 6 * 6)]),
        ([SKETCH], BOTH, []),
    ],
    ids=["both", "other-order", "sender", "client", "key-stays", "no-mean", "none"],
)
def test_a_calibration_costs_its_tensors_and_a_header(
    specs: list[Spec], makers: frozenset[Maker], expected: list[tuple[Role, int]]
) -> None:
    of = build(*specs)
    assert calibration_num_bytes(of, 6, makers) == expected
    payloads = encode_calibrations(of, calibrated(of, rows(7, width=6)), 6, makers, CONTEXT)
    assert [len(payload) for payload in payloads] == [size for _, size in expected]


def test_a_receiver_holds_what_was_shipped_drops_what_was_made_and_kept_and_keeps_the_rest() -> None:
    of = build({**SSOP, "invert": "client"}, SSOP, SUBSPACE)
    before, after = (calibrated(of, rows(seed, width=6)) for seed in (7, 8))

    def held(makers: frozenset[Maker]) -> list[str]:
        payloads = encode_calibrations(of, after, 6, makers, CONTEXT)
        found = decode_calibrations(of, payloads, before, 6, makers, CONTEXT)
        return [
            "none" if not own else "new" if torch.equal(own[0], new[0]) else "old" if own is old else "wrong"
            for own, old, new in zip(found, before, after, strict=True)
        ]

    assert held(BOTH) == ["none", "new", "new"]
    assert held(CLIENT) == ["none", "new", "old"]
    assert held(SENDER) == ["old", "old", "new"]
    assert held(frozenset()) == ["old", "old", "old"]
    nothing = decode_calibrations(of, [], (), 6, frozenset(), CONTEXT)
    assert nothing == ((), (), ())


def test_a_damaged_calibration_is_refused() -> None:
    of = build(SSOP, SUBSPACE)
    key, basis = encode_calibrations(of, calibrated(of, rows(7, width=6)), 6, BOTH, CONTEXT)

    def refuses(*payloads: bytes, width: int = 6, context: CodecContext = CONTEXT, by: CodecChain = of) -> None:
        with pytest.raises(PayloadError):
            decode_calibrations(by, payloads, (), width, BOTH, context)

    decode_calibrations(of, [key, basis], (), 6, BOTH, CONTEXT)
    for bit in range(0, 8 * len(basis), 7):
        damaged = bytearray(basis)
        damaged[bit // 8] ^= 1 << bit % 8
        refuses(key, bytes(damaged))
    refuses(basis, key)
    refuses(key)
    refuses(key, basis, basis)
    refuses(key, basis[:-1])
    refuses(key, basis, width=7)
    refuses(key, basis, context=replace(CONTEXT, client=6))
    refuses(key, basis, by=build(SSOP, {**SUBSPACE, "rank": 2}))


def test_calibrations_of_the_same_role_cannot_be_exchanged() -> None:
    of = build(SUBSPACE, SUBSPACE)
    memory = calibrated(of, rows(7, width=3))
    first, second = encode_calibrations(of, memory, 3, BOTH, CONTEXT)
    assert len(first) == len(second)
    with pytest.raises(PayloadError, match="stage 1"):
        decode_calibrations(of, [second, first], (), 3, BOTH, CONTEXT)


@pytest.mark.parametrize("wire_dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_a_plain_chain_writes_tensors_one_after_another_and_can_be_readdressed(wire_dtype: str) -> None:
    plain = CodecChain([], wire_dtype)
    tensors = [1e5 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) for shape in SHAPES]
    payload = encode_adapters(plain, Role.ADAPTER_DOWN, tensors, CONTEXT)
    one_by_one = b"".join(plain.encode(tensor.reshape(-1, tensor.shape[-1]), CONTEXT) for tensor in tensors)
    assert payload[HEADER_BYTES:] == one_by_one
    other = replace(CONTEXT, client=CONTEXT.client + 1)
    expected = encode_adapters(plain, Role.ADAPTER_DOWN, tensors, other)
    assert expected != payload
    assert readdressed(plain, Role.ADAPTER_DOWN, payload, other) == expected
