"""The codecs in all their settings, and chains of them: each codec by itself and in front of the usual ends."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

IDENTITY: Spec = {"kind": "identity"}
CASTS: list[Spec] = [{"kind": "cast", "dtype": "fp16"}, {"kind": "cast", "dtype": "bf16"}]
INT8: Spec = {"kind": "int8"}
INT4: Spec = {"kind": "int4"}
QUANTISERS: list[Spec] = [
    INT8,
    INT4,
    {"kind": "int8", "rounding": "stochastic"},
    {"kind": "int4", "rounding": "stochastic", "group": 5, "scale_dtype": "fp16"},
    {"kind": "int8", "group": 4, "scale_dtype": "fp16"},
    {"kind": "int4", "group": 8},
]
SKETCHES: list[Spec] = [
    {"kind": "sketch", "rows": rows, "buckets": buckets, "decode": decode, "backward": backward}
    for rows, buckets in ((1, 16), (3, 8), (4, 8))
    for decode in ("median", "mean", "mmse")
    for backward in (("straight_through", "exact") if rows == 3 else ("straight_through",))
] + [
    {"kind": "sketch", "rows": 3, "buckets": 8, "decode": "mean", "backward": "exact", "hash": "fresh"},
    {"kind": "sketch", "rows": 2, "buckets": 8, "decode": "mmse", "hash": "fresh"},
]
TOPKS: list[Spec] = [{"kind": "topk", "share": share} for share in (0.01, 0.3, 1.0)]
ROWS: list[Spec] = [{"kind": "rows", "share": share} for share in (0.01, 0.3, 1.0)]
SUBSPACES: list[Spec] = [
    {"kind": "subspace", "rank": 6},
    {"kind": "subspace", "rank": 6, "mean": False, "backward": "exact"},
    {"kind": "subspace", "rank": 6, "backward": "exact", "basis_dtype": "fp32"},
    {"kind": "subspace", "rank": 4, "rest": "sketch", "rows": 2, "buckets": 5, "backward": "exact"},
    {"kind": "subspace", "rank": 4, "rest": "sketch", "mean": False},
    {"kind": "subspace", "rank": 6, "basis_dtype": "int8"},
]
BITS: list[Spec] = [
    {"kind": "bits", "bits_per_row": 43},
    {"kind": "bits", "bits_per_row": 9, "max_bits": 1},
    {"kind": "bits", "bits_per_row": 300},
]
SSOPS: list[Spec] = [
    {"kind": "ssop", "rank": 8},
    {"kind": "ssop", "rank": 8, "energy": 0.5, "refresh_rounds": 3},
    {"kind": "ssop", "rank": 8, "energy": 1.0, "invert": "client"},
]
RESIDUALS: list[Spec] = [
    {"kind": "residual", "codec": [TOPKS[1]]},
    {"kind": "residual", "codec": [TOPKS[1], INT8]},
    {"kind": "residual", "codec": [INT4]},
]

SINGLE: list[Spec] = [
    IDENTITY, *CASTS, *QUANTISERS, *SKETCHES, *TOPKS, *ROWS, *SUBSPACES, *BITS, *SSOPS, *RESIDUALS
]  # fmt: skip

OPEN_STARTS: list[list[Spec]] = [
    [],
    *([codec] for codec in [IDENTITY, *SKETCHES, *TOPKS, *ROWS, *SUBSPACES, *SSOPS]),
    [IDENTITY, SKETCHES[0]],
    [SKETCHES[2], SKETCHES[5]],
    [SSOPS[0], SUBSPACES[2]],
    [SSOPS[2], SUBSPACES[3]],
    [SSOPS[0], SKETCHES[4]],
    [SUBSPACES[0], TOPKS[1]],
    [TOPKS[1], ROWS[1]],
    [SSOPS[0], ROWS[1], SUBSPACES[2]],
    [ROWS[1], ROWS[1], SKETCHES[4]],
]
CHAINS: list[list[Spec]] = [
    *([*start, *end] for start in OPEN_STARTS for end in ([], [INT8])),
    *([*start, end] for start in ([], [SKETCHES[4]], [SSOPS[0], SUBSPACES[1]]) for end in [*CASTS, *QUANTISERS[1:]]),
    *([*start, end] for start in ([], [SUBSPACES[0]], [SSOPS[0]], [ROWS[1], SUBSPACES[2]]) for end in BITS),
    [ROWS[1], INT4],
    *([residual] for residual in RESIDUALS),
]


def name_of(specs: Spec | list[Spec]) -> str:
    specs = specs if isinstance(specs, list) else [specs]
    return "+".join(_name(spec) for spec in specs) or "none"


def _name(spec: Spec) -> str:
    return "-".join(f"({name_of(value)})" if isinstance(value, list) else str(value) for value in spec.values())
