"""Quantities with units: ``20 Mbit/s``, ``15 ms``, ``4 GB``, ``30 GFLOP/s``. A bare number is in the base unit."""

from __future__ import annotations

import math
import re
import sys
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY_PREFIXES = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}

BYTES = {
    **{f"{p}B": f for p, f in (_PREFIXES | _BINARY_PREFIXES).items()},
    **{f"{p}bit": f / 8 for p, f in _PREFIXES.items()},
    **{f"{p}bytes": f for p, f in (("", 1.0),)},
}
BYTES_PER_SECOND = {f"{unit}/s": factor for unit, factor in BYTES.items()} | {
    f"{p}bps": f / 8 for p, f in _PREFIXES.items()
}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86400.0}
FLOPS_PER_SECOND = {f"{p}FLOP/s": f for p, f in _PREFIXES.items()} | {f"{p}FLOPS": f for p, f in _PREFIXES.items()}
WATTS = {"W": 1.0, "mW": 1e-3, "kW": 1e3}

_QUANTITY = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D.*?)?\s*$")


def parse_quantity(text: object, units: dict[str, float], example: str) -> float:
    """Read a number, or a text such as ``20 Mbit/s``, in the base unit of ``units``.

    Raises:
        ValueError: the text is no finite, non-negative quantity in one of the units; the message names those allowed.
    """
    allowed = f"a finite number >= 0, or a text such as {example!r} (units: {', '.join(units)})"
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ValueError(allowed)
    if isinstance(text, str):
        match = _QUANTITY.match(text)
        if match is None or (match[2] or "") not in units | {"": 1.0}:
            raise ValueError(allowed)
        # A decimal product would round twice (15 * 1e-3 is not 0.015): divide by the exact inverse where there is one.
        factor = units[match[2]] if match[2] else 1.0
        number = float(match[1])
        value = (
            number / round(1 / factor)
            if factor < 1 and math.isclose(round(1 / factor) * factor, 1)
            else number * factor
        )
    else:
        value = math.inf if isinstance(text, int) and abs(text) > sys.float_info.max else float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(allowed)
    return value


def _quantity(units: dict[str, float], example: str) -> tuple[BeforeValidator, WithJsonSchema]:
    def read(value: Any) -> float:
        return parse_quantity(value, units, example)

    schema = {
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "examples": [example]}],
        "description": f"a number in the base unit, or a text such as '{example}'",
    }
    return BeforeValidator(read), WithJsonSchema(schema)


Bandwidth = Annotated[float, *_quantity(BYTES_PER_SECOND, "20 Mbit/s")]
"""Bytes per second."""
Seconds = Annotated[float, *_quantity(SECONDS, "15 ms")]
"""Seconds."""
NumBytes = Annotated[float, *_quantity(BYTES, "2 GB")]
"""Bytes."""
FlopsPerSecond = Annotated[float, *_quantity(FLOPS_PER_SECOND, "30 GFLOP/s")]
"""Floating-point operations per second."""
Watts = Annotated[float, *_quantity(WATTS, "3 W")]
"""Watts."""
