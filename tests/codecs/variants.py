"""The codecs in all their settings, and all valid chains of them."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

SKETCHES: list[Spec] = [
    {"kind": "sketch", "rows": rows, "buckets": buckets, "decode": decode, "backward": backward}
    for rows, buckets in ((1, 16), (3, 8), (4, 8))
    for decode in ("median", "mean", "mmse")
    for backward in ("straight_through", "exact")
]
CASTS: list[Spec] = [{"kind": "cast", "dtype": "fp16"}, {"kind": "cast", "dtype": "bf16"}]
IDENTITY: Spec = {"kind": "identity"}
INT8: Spec = {"kind": "int8"}

SINGLE: list[Spec] = [IDENTITY, INT8, *CASTS, *SKETCHES]

OPEN_STARTS: list[list[Spec]] = [
    [],
    [IDENTITY],
    *([sketch] for sketch in SKETCHES),
    [IDENTITY, SKETCHES[0]],
    [SKETCHES[3], SKETCHES[8]],
]
CHAINS: list[list[Spec]] = [
    [*start, *end] for start in OPEN_STARTS for end in ([], [INT8], *([cast] for cast in CASTS))
]


def name_of(specs: Spec | list[Spec]) -> str:
    specs = specs if isinstance(specs, list) else [specs]
    return "+".join("-".join(str(value) for value in spec.values()) for spec in specs) or "none"
