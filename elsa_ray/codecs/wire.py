"""The wire format: a header of fixed length, then the body. Nothing else is ever charged.

Header, little-endian: magic ``ELSA``, version, role, wire number, a spare byte, chain id, round, edge round and step,
client, texts B, tokens S, width D, body length, CRC-32 of all other bytes.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elsa_ray.codecs.chain import WIRE_DTYPES, CodecChain, Memory, Reader, tensor_bytes
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.codecs.flat import cut, joined
from elsa_ray.codecs.stages import widths_of
from elsa_ray.config.errors import InputError
from elsa_ray.world.roles import Role

_HEADER = struct.Struct("<4sBBBBIIIiiIIIQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"ELSA"
_VERSION = 1
_NUM_TENSORS_FIELD = 10  # the place of B, which of adapters is the number of tensors
_LENGTH_BYTES = 2  # a text's number of tokens, which the edge needs for the attention mask

HEADER_BYTES = _HEADER.size + _CHECKSUM.size


class PayloadError(InputError):
    """A payload that is not what the receiver expects: damaged, truncated, or made by another chain."""


@dataclass(frozen=True)
class Header:
    """The decoded header of a payload."""

    role: Role
    chain_id: int
    context: CodecContext
    batch_size: int
    length: int
    width: int
    body_bytes: int


def hidden_num_bytes(chain: CodecChain, role: Role, batch_B: Any, length_S: Any, width: int) -> Any:
    """Return the size in bytes of hidden states or gradients [B, S, D], header included, for arrays of B and S.

    ``activation_up`` also carries the texts' lengths, two bytes each.
    """
    batch = np.asarray(batch_B, np.int64)
    mask = _LENGTH_BYTES * batch if role is Role.ACTIVATION_UP else 0
    return HEADER_BYTES + mask + chain.body_bytes(batch * np.asarray(length_S, np.int64), width)


def adapter_num_bytes(chain: CodecChain, shapes: list[tuple[int, ...]]) -> int:
    """Return the size in bytes of adapter tensors of these shapes, header included."""
    return HEADER_BYTES + sum(int(chain.body_bytes(*_rows_and_width(shape))) for shape in shapes)


def calibration_num_bytes(chain: CodecChain, width: int, makers: frozenset[Maker]) -> list[tuple[Role, int]]:
    """Return role and size in bytes, header included, of each calibration that leaves one of the ``makers``.

    ``width`` is D of the chain's input; the order is that of the stages.
    """
    return [
        (shipped.role, HEADER_BYTES + sum(dtype.itemsize * math.prod(shape) for dtype, shape in shipped.layout))
        for shipped in _shipped(chain, width, makers)
    ]


def encode_hidden(
    chain: CodecChain,
    role: Role,
    hidden_BSD: Tensor,
    context: CodecContext,
    lengths_B: Tensor | None = None,
    memory: Memory = (),
) -> bytes:
    """Encode one client's hidden states or gradients [B, S, D], with its texts' lengths [B] for ``activation_up``."""
    batch, length, width = hidden_BSD.shape
    body = chain.encode(hidden_BSD.reshape(batch * length, width), context, memory)
    if lengths_B is not None:
        body = lengths_B.cpu().numpy().astype("<u2").tobytes() + body
    return _frame(chain, role, context, (batch, length, width), body)


def decode_hidden(
    chain: CodecChain, role: Role, payload: bytes, context: CodecContext, memory: Memory = ()
) -> tuple[Tensor, Tensor | None]:
    """Decode hidden states or gradients [B, S, D]; for ``activation_up`` also the texts' lengths [B], else None.

    Raises:
        PayloadError: the payload is damaged or not what ``context`` expects.
    """
    header, body = open_payload(chain, role, payload, context)
    lengths_B = None
    if role is Role.ACTIVATION_UP:
        mask_bytes = _LENGTH_BYTES * header.batch_size
        lengths_B = torch.from_numpy(np.frombuffer(body[:mask_bytes], "<u2").astype(np.int64))
        body = body[mask_bytes:]
    rows = header.batch_size * header.length
    _check_length(len(body), int(chain.body_bytes(rows, header.width)))
    values = chain.decode(body, rows, header.width, context, memory)
    return values.reshape(header.batch_size, header.length, header.width), lengths_B


def encode_adapters(
    chain: CodecChain, role: Role, tensors: list[Tensor], context: CodecContext, memories: Sequence[Memory] = ()
) -> bytes:
    """Encode adapter tensors one after another; the receiver knows their shapes from the layout.

    ``memories`` is what the sender holds for each tensor, as ``adapter_memories_after`` gave it; () for nothing.
    """
    if chain.is_plain and tensors:
        # The same bytes as below, with one call instead of one a tensor.
        return _frame(chain, role, context, (len(tensors), 0, 0), chain.encode(joined(tensors)[None], context))
    held = memories or [()] * len(tensors)
    body = b"".join(
        chain.encode(_as_rows(tensor), replace(context, tensor=position), memory)
        for position, (tensor, memory) in enumerate(zip(tensors, held, strict=True))
    )
    return _frame(chain, role, context, (len(tensors), 0, 0), body)


def readdressed(chain: CodecChain, role: Role, payload: bytes, context: CodecContext) -> bytes:
    """Return what ``encode_adapters`` would have made of the same tensors for another receiver, by a plain chain."""
    num_tensors = _HEADER.unpack_from(payload)[_NUM_TENSORS_FIELD]
    return _frame(chain, role, context, (num_tensors, 0, 0), payload[HEADER_BYTES:])


def adapter_memories_after(
    chain: CodecChain, tensors: list[Tensor], context: CodecContext, memories: Sequence[Memory] = ()
) -> list[Memory]:
    """Return what the sender holds for each tensor after ``encode_adapters`` with the same arguments.

    A chain that remembers nothing (``CodecChain.remembers_error``) gives () for each.
    """
    held = memories or [()] * len(tensors)
    return [
        chain.memory_after(_as_rows(tensor), replace(context, tensor=position), memory)
        for position, (tensor, memory) in enumerate(zip(tensors, held, strict=True))
    ]


def encode_frozen(tensors: list[Tensor], context: CodecContext) -> bytes:
    """Encode frozen weights in fp32, one tensor after another: the content of ``weights_down``."""
    return encode_adapters(CodecChain([], "fp32"), Role.WEIGHTS_DOWN, tensors, context)


def decode_adapters(
    chain: CodecChain,
    role: Role,
    payload: bytes,
    shapes: Sequence[tuple[int, ...]],
    context: CodecContext,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Decode adapter tensors of known shapes, as numbers of a type; None: as the chain computes.

    Raises:
        PayloadError: the payload is damaged or not what is expected.
    """
    _, body = open_payload(chain, role, payload, context)
    if chain.is_plain:
        count = sum(math.prod(shape) for shape in shapes)
        _check_length(len(body), count * chain.number_format.itemsize)
        return cut(chain.decode(body, 1, count, context)[0].to(dtype), tuple(shapes))
    sizes = [int(chain.body_bytes(*_rows_and_width(shape))) for shape in shapes]
    _check_length(len(body), sum(sizes))
    tensors: list[Tensor] = []
    for shape, size in zip(shapes, sizes, strict=True):
        rows, width = _rows_and_width(shape)
        own_context = replace(context, tensor=len(tensors))
        tensors.append(chain.decode(body[:size], rows, width, own_context).reshape(shape).to(dtype))
        body = body[size:]
    return tensors


def encode_calibrations(
    chain: CodecChain, memory: Memory, width: int, makers: frozenset[Maker], context: CodecContext
) -> list[bytes]:
    """Encode the calibrations that leave one of the ``makers``, a payload each; see ``calibration_num_bytes``.

    Args:
        chain: whose.
        memory: what the maker holds after ``CodecChain.calibrate``.
        width: D of the chain's input.
        makers: who has made calibrations just now.
        context: of the moment.
    """
    payloads = []
    for shipped in _shipped(chain, width, makers):
        body = b"".join(tensor_bytes(tensor) for tensor in memory[shipped.position])
        payloads.append(_frame(chain, shipped.role, context, (shipped.position, 0, width), body))
    return payloads


def decode_calibrations(
    chain: CodecChain,
    payloads: Sequence[bytes],
    held: Memory,
    width: int,
    makers: frozenset[Maker],
    context: CodecContext,
) -> Memory:
    """Return what the receiver of ``encode_calibrations`` then holds.

    What was shipped is decoded; of what was made and not shipped it holds nothing; the rest is as in ``held``.

    Raises:
        PayloadError: a payload is missing, damaged or not what is expected.
    """
    expected = _shipped(chain, width, makers)
    if len(payloads) != len(expected):
        raise PayloadError("payload", f"{len(payloads)} calibrations", str(len(expected)))
    memory = [
        () if stage.calibration is not None and stage.calibration.maker in makers else own
        for stage, own in zip(chain.stages, chain.memory_of_all(held), strict=True)
    ]
    for shipped, payload in zip(expected, payloads, strict=True):
        header, body = open_payload(chain, shipped.role, payload, context)
        if (header.batch_size, header.width) != (shipped.position, width):
            found = f"a calibration of stage {header.batch_size}, width {header.width}"
            raise PayloadError("payload", found, f"stage {shipped.position}, width {width}")
        _check_length(len(body), sum(dtype.itemsize * math.prod(shape) for dtype, shape in shipped.layout))
        reader = Reader(body)
        memory[shipped.position] = tuple(reader.take(dtype, *shape) for dtype, shape in shipped.layout)
    return tuple(memory)


def open_payload(chain: CodecChain, role: Role, payload: bytes, context: CodecContext) -> tuple[Header, memoryview]:
    """Check a payload's header and checksum and return header and body.

    Raises:
        PayloadError: it is truncated, damaged, or of another role, chain or moment.
    """
    if len(payload) < HEADER_BYTES:
        raise PayloadError("payload", f"{len(payload)} bytes", f"at least the {HEADER_BYTES} bytes of a header")
    magic, version, role_number, _, _, chain_id, *moment, batch, length, width, size = _HEADER.unpack_from(payload)
    (checksum,) = _CHECKSUM.unpack_from(payload, _HEADER.size)
    header, body = memoryview(payload)[: _HEADER.size], memoryview(payload)[HEADER_BYTES:]
    if magic != _MAGIC or version != _VERSION:
        raise PayloadError("payload", f"magic {magic!r} version {version}", f"{_MAGIC!r} version {_VERSION}")
    if len(body) != size or _checksum(header, body) != checksum:
        raise PayloadError("payload", f"damaged: a body of {len(body)} bytes", f"{size} bytes of checksum {checksum}")
    if role_number != role or chain_id != chain.chain_id:
        found = f"role {role_number}, chain {chain_id:08x}"
        raise PayloadError("payload", found, f"role {int(role)}, chain {chain.chain_id:08x}")
    expected = [context.round_index, context.edge_round, context.step, context.client]
    if moment != expected:
        raise PayloadError("payload", f"round, edge round, step, client {moment}", str(expected))
    return Header(role, chain_id, context, batch, length, width, size), body


def _frame(
    chain: CodecChain, role: Role, context: CodecContext, dimensions: tuple[int, int, int], body: bytes
) -> bytes:
    wire_number = list(WIRE_DTYPES).index(chain.wire_dtype)
    moment = (context.round_index, context.edge_round, context.step, context.client)
    header = _HEADER.pack(_MAGIC, _VERSION, role, wire_number, 0, chain.chain_id, *moment, *dimensions, len(body))
    return header + _CHECKSUM.pack(_checksum(header, body)) + body


def _checksum(header: bytes | memoryview, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(header))


def _check_length(found: int, expected: int) -> None:
    if found != expected:
        raise PayloadError("payload", f"a body of {found} bytes", f"{expected} bytes by the chain's formula")


@dataclass(frozen=True)
class _Shipped:
    """A calibration that travels: of which stage, in which role, and its tensors' types and shapes."""

    position: int
    role: Role
    layout: tuple[tuple[torch.dtype, tuple[int, ...]], ...]


def _shipped(chain: CodecChain, width: int, makers: frozenset[Maker]) -> list[_Shipped]:
    shipped = []
    for position, (stage, own_width) in enumerate(zip(chain.stages, widths_of(chain.stages, width), strict=False)):
        calibration = stage.calibration
        if calibration is not None and calibration.maker in makers and calibration.role is not None:
            shipped.append(_Shipped(position, calibration.role, stage.calibration_layout(own_width)))
    return shipped


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(_rows_and_width(tuple(tensor.shape)))


def _rows_and_width(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (math.prod(shape[:-1]), shape[-1])
