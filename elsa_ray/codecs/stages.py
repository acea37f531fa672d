"""Codecs in a row: their widths and numbers of rows, and what passes through them one after another.

Shapes: T rows, D width of the input, E width on the wire, K side numbers a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from elsa_ray.codecs.bits import Bits
from elsa_ray.codecs.cast import Cast
from elsa_ray.codecs.codec import Codec, CodecContext, Rows
from elsa_ray.codecs.identity import Identity
from elsa_ray.codecs.quantise import Int4, Int8
from elsa_ray.codecs.rows import LargestRows
from elsa_ray.codecs.sketch import Sketch
from elsa_ray.codecs.ssop import Ssop
from elsa_ray.codecs.subspace import Subspace
from elsa_ray.codecs.topk import TopK
from elsa_ray.config.errors import InputError
from elsa_ray.config.plugins import find_class
from elsa_ray.config.protocol import CodecSpec
from elsa_ray.config.validate import validate

SIMPLE: dict[str, type[Codec]] = {
    "identity": Identity,
    "cast": Cast,
    "int8": Int8,
    "int4": Int4,
    "bits": Bits,
    "topk": TopK,
    "rows": LargestRows,
    "sketch": Sketch,
    "subspace": Subspace,
    "ssop": Ssop,
}
"""The built-in codecs that are no wrapper of others."""

SideLayout = tuple[tuple[torch.dtype, Any], ...]
"""Type and count of each side number of a row; the counts are arrays where the numbers of rows are."""


def build_stages(specs: Sequence[CodecSpec], where: str, built_in: Mapping[str, type[Codec]]) -> tuple[Codec, ...]:
    """Build the codecs that a config section lists, in the sender's order.

    Raises:
        InputError: a codec is unknown, its parameters are wrong, or one stands behind a codec that must be last.
    """
    stages: list[Codec] = []
    for position, spec in enumerate(specs):
        field = f"{where}.{position}"
        if stages and stages[-1].number_format is not None:
            last = specs[position - 1].kind
            raise InputError(field, f"{spec.kind} behind {last}", f"nothing behind {last}: its output is final")
        codec = find_class(f"{field}.kind", "elsa_ray.codecs", spec.kind, built_in)
        config = validate(codec.Config, spec.model_dump(), field)
        try:
            stages.append(codec(config))
        except InputError as error:  # of a codec that wraps others
            raise InputError(f"{field}.{error.where}", error.found, error.allowed, nearest=error.nearest) from None
    return tuple(stages)


def widths_of(stages: Sequence[Codec], width: int) -> list[int]:
    """Return the width in front of each stage, and behind the last: one more than there are stages."""
    widths = [width]
    for stage in stages:
        widths.append(stage.width_out(widths[-1]))
    return widths


def rows_of(stages: Sequence[Codec], num_rows: Any) -> list[Any]:
    """Return the number of rows (or an array of them) in front of each stage, and behind the last."""
    counts = [num_rows]
    for stage in stages:
        counts.append(stage.rows_out(counts[-1]))
    return counts


def side_layouts(stages: Sequence[Codec], width: int, num_rows: Any) -> list[SideLayout]:
    """Return each stage's side layout for so many rows (or an array of them) of the given width in front of all."""
    in_front = zip(stages, widths_of(stages, width), rows_of(stages, num_rows), strict=False)
    return [stage.side_layout_for(own_width, own_rows) for stage, own_width, own_rows in in_front]


def encode_rows(stages: Sequence[Codec], x_TD: Tensor, contexts: Sequence[CodecContext]) -> Rows:
    """Return the last stage's values and the side numbers of all stages, in the sender's order."""
    values, side = x_TD, list[Tensor]()
    for stage, context in zip(stages, contexts, strict=True):
        rows = stage.encode(values, context)
        values, side = rows.values, side + list(rows.side)
    return Rows(values, tuple(side))


def decode_rows(stages: Sequence[Codec], rows: Rows, width: int, contexts: Sequence[CodecContext]) -> Tensor:
    """Return the reconstruction [T, D] of what ``encode_rows`` gave."""
    values, side = rows.values, list(rows.side)
    in_order = zip(stages, widths_of(stages, width), contexts, strict=False)
    for stage, own_width, context in reversed(list(in_order)):
        first = len(side) - len(stage.side_layout_for(own_width, context.num_rows))
        values = stage.decode(Rows(values, tuple(side[first:])), own_width, context)
        side = side[:first]
    return values
