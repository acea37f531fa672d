"""Error feedback: nothing is lost for good, and nothing is remembered but by the caller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from elsa_ray.codecs.chain import CodecChain, Memory, build_chain
from elsa_ray.codecs.wire import adapter_memories_after, decode_adapters, encode_adapters
from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import CodecSpec
from elsa_ray.world.roles import Role

from .ends import CONTEXT, build
from .variants import INT4, INT8, RESIDUALS, Spec, name_of

SHAPES = [(3, 8), (8, 3), (5,)]
TOPK: Spec = {"kind": "topk", "share": 0.3}


def residual(*codec: Spec, wire_dtype: str = "fp32") -> CodecChain:
    return build({"kind": "residual", "codec": list(codec)}, wire_dtype=wire_dtype)


def adapters(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def sent_and_received(of: CodecChain, rounds: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Memory]]:
    """Return the sums over the rounds of what was sent and of what was received, and the last memories."""
    sent, received = ([torch.zeros(shape) for shape in SHAPES] for _ in range(2))
    memories: list[Memory] = []
    for round_index in range(rounds):
        context, tensors = replace(CONTEXT, round_index=round_index, step=-1), adapters(round_index)
        payload = encode_adapters(of, Role.ADAPTER_UP, tensors, context, memories)
        memories = adapter_memories_after(of, tensors, context, memories)
        decoded = decode_adapters(of, Role.ADAPTER_UP, payload, SHAPES, context)
        sent = [a + b for a, b in zip(sent, tensors, strict=True)]
        received = [a + b for a, b in zip(received, decoded, strict=True)]
    return sent, received, memories


CODECS = [*(spec["codec"] for spec in RESIDUALS), [{"kind": "int4", "rounding": "stochastic"}], [{"kind": "cast"}]]


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_what_is_received_sums_to_what_was_sent_but_for_the_last_error(codec: list[Spec], wire_dtype: str) -> None:
    sent, received, memories = sent_and_received(residual(*codec, wire_dtype=wire_dtype), rounds=30)
    for total_sent, total_received, (entry,) in zip(sent, received, memories, strict=True):
        (error_TD,) = entry
        expected = total_sent - error_TD.reshape(total_sent.shape)
        assert torch.allclose(total_received, expected, rtol=0, atol=1e-4)
        assert float(error_TD.norm()) > 0


def test_without_feedback_the_sums_drift_apart() -> None:
    sent, with_feedback, _ = sent_and_received(residual(TOPK), rounds=30)
    _, without, _ = sent_and_received(build(TOPK), rounds=30)
    far, near = (
        sum(float((a - b).square().sum()) for a, b in zip(sent, received, strict=True))
        for received in (without, with_feedback)
    )
    assert near < far / 3


def test_nothing_is_left_over_of_what_is_sent_exactly() -> None:
    _, _, memories = sent_and_received(residual({"kind": "identity"}), rounds=3)
    assert all(not bool(error.any()) for ((error,),) in memories)


def test_encoding_changes_no_memory_and_without_one_it_is_the_codec_alone() -> None:
    of, tensors = residual(TOPK, INT8), adapters(0)
    first = encode_adapters(of, Role.ADAPTER_UP, tensors, CONTEXT)
    assert encode_adapters(of, Role.ADAPTER_UP, tensors, CONTEXT) == first
    alone = build(TOPK, INT8)
    received = decode_adapters(of, Role.ADAPTER_UP, first, SHAPES, CONTEXT)
    payload = encode_adapters(alone, Role.ADAPTER_UP, tensors, CONTEXT)
    expected = decode_adapters(alone, Role.ADAPTER_UP, payload, SHAPES, CONTEXT)
    assert all(torch.equal(a, b) for a, b in zip(received, expected, strict=True))
    memories = adapter_memories_after(of, tensors, CONTEXT)
    assert encode_adapters(of, Role.ADAPTER_UP, tensors, CONTEXT, memories) != first


def test_a_chain_without_feedback_remembers_nothing() -> None:
    assert adapter_memories_after(build(TOPK), adapters(0), CONTEXT) == [(), (), ()]
    assert not build(TOPK).remembers_error
    assert residual(TOPK).remembers_error


def test_a_number_that_is_not_finite_is_seen_once_and_not_remembered() -> None:
    of, tensors = residual(INT4), adapters(0)
    tensors[0][1, 2], tensors[1][0, 0] = torch.nan, torch.inf
    payload = encode_adapters(of, Role.ADAPTER_UP, tensors, CONTEXT)
    received = decode_adapters(of, Role.ADAPTER_UP, payload, SHAPES, CONTEXT)
    assert bool(received[0][1].isnan().all())
    memories = adapter_memories_after(of, tensors, CONTEXT)
    assert all(bool(error.isfinite().all()) for ((error,),) in memories)
    again = encode_adapters(of, Role.ADAPTER_UP, adapters(1), CONTEXT, memories)
    assert all(bool(t.isfinite().all()) for t in decode_adapters(of, Role.ADAPTER_UP, again, SHAPES, CONTEXT))


@pytest.mark.parametrize(
    ("specs", "for_adapters", "message"),
    [
        ([{"kind": "residual", "codec": [TOPK]}], False, "codec: found residual; .* for adapters only"),
        ([{"kind": "residual", "codec": [TOPK]}, INT8], True, "inside of residual"),
        ([{"kind": "residual", "codec": [INT8, TOPK]}], True, "codec.0.codec.1: found topk behind int8"),
        ([{"kind": "residual", "codec": [{"kind": "ssop"}]}], True, "codec.0.codec.0: found ssop"),
        ([{"kind": "residual", "codec": [TOPK, {"kind": "rows"}]}], True, "codec.0.codec.1: found rows; .*every row"),
        ([{"kind": "residual", "codec": [{"kind": "topk", "shar": 1}]}], True, "codec.0.codec.0.shar: .*share"),
        ([{"kind": "residual", "codec": [{"kind": "residual"}]}], True, "codec.0.codec.0.kind: found residual"),
        ([{"kind": "residual", "codec": []}], True, "codec.0.codec: found"),
        ([{"kind": "subspace"}], True, "codec.0: found subspace; .*without calibration"),
    ],
    ids=["activations", "beside", "order", "calibrated", "rows", "key", "nested", "empty", "calibrated-alone"],
)
def test_where_it_does_not_belong_it_is_refused(specs: list[Any], for_adapters: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_chain([CodecSpec(**spec) for spec in specs], "fp32", "codec", for_adapters=for_adapters)
