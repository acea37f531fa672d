"""Reads one node or one link of a topology: its attributes checked, its quantities in bytes per second and seconds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from elsa_ray.config.errors import InputError, nearest_name, unknown_name
from elsa_ray.config.units import BYTES_PER_SECOND, SECONDS, parse_quantity
from elsa_ray.network.geography import Coordinates

KINDS = ("client", "edge", "cloud", "router")
NODE_ATTRIBUTES = ("id", "kind", "latitude", "longitude")
LINK_ATTRIBUTES = (
    "source",
    "target",
    "bandwidth_bytes_per_second",
    "latency_seconds",
    "reverse_bandwidth_bytes_per_second",
    "shared_medium",
    "bandwidth_schedule",
    "repeat_seconds",
)
MAX_LATENCY_SECONDS = 1e15
"""Thirty million years: what keeps a sum of latencies a finite number."""
_SURELY_MISSPELT = 0.75
"""Above this likeness to a known attribute, an unknown one is a slip of the pen rather than another tool's data."""


@dataclass(frozen=True, slots=True)
class Link:
    """One link as its file states it: bandwidths in bytes per second, latency in seconds, one way."""

    source: str
    target: str
    bandwidth_bytes_per_second: float
    latency_seconds: float
    reverse_bandwidth_bytes_per_second: float
    shared_medium: bool
    bandwidth_schedule: str = ""
    """The file of its bandwidths over time; empty for none."""
    repeat_seconds: float | None = None
    """How long the schedule takes until it starts anew; None where it does not."""
    has_own_reverse: bool = False
    """It states the way back by itself."""


def read_node(raw: Mapping[str, Any], number: int, where: str, *, strict: bool, kind_required: bool) -> tuple[str, str]:
    """Return the name and the kind of a node; without a kind it is a router, which forwards for everybody.

    Raises:
        InputError: no usable id, an unknown kind, none where one is required, or (strict) an unknown attribute.
    """
    name = node_name(raw.get("id"), f"{where}: node {number}: id")
    place = f"{where}: node {name}"
    check_attributes(raw, NODE_ATTRIBUTES, place, strict=strict)
    kind = raw.get("kind")
    if kind is None or kind == "":
        if kind_required:
            raise InputError(f"{place}: kind", "nothing", ", ".join(KINDS))
        return name, "router"
    if kind not in KINDS:
        raise unknown_name(f"{place}: kind", str(kind), KINDS)
    return name, kind


def read_link(raw: Mapping[str, Any], number: int, where: str, *, strict: bool, directed: bool) -> Link:
    """Return the checked link; in an undirected graph both directions have the bandwidth unless it states the reverse.

    Raises:
        InputError: an attribute is missing, not a quantity of its kind, or (strict) unknown.
    """
    source = node_name(raw.get("source"), f"{where}: link {number}: source")
    target = node_name(raw.get("target"), f"{where}: link {number}: target")
    place = f"{where}: link {source}-{target}"
    check_attributes(raw, LINK_ATTRIBUTES, place, strict=strict)
    bandwidth = _bandwidth(raw, "bandwidth_bytes_per_second", place)
    reverse_key = "reverse_bandwidth_bytes_per_second"
    reverse = bandwidth
    if not _is_absent(raw.get(reverse_key)):
        if directed:
            raise InputError(
                f"{place}: {reverse_key}", raw[reverse_key], "nothing: directed links are stated one by one"
            )
        reverse = _bandwidth(raw, reverse_key, place)
    shared_medium = _flag(raw.get("shared_medium"), f"{place}: shared_medium")
    if shared_medium and reverse != bandwidth:
        raise InputError(f"{place}: {reverse_key}", raw[reverse_key], "nothing: a shared medium has one bandwidth")
    schedule, repeat = raw.get("bandwidth_schedule"), raw.get("repeat_seconds")
    if not _is_absent(schedule) and not isinstance(schedule, str):
        raise InputError(f"{place}: bandwidth_schedule", schedule, "a CSV file's name")
    repeat_seconds = None
    if not _is_absent(repeat):
        if _is_absent(schedule):
            raise InputError(f"{place}: repeat_seconds", repeat, "nothing: the link has no bandwidth_schedule")
        repeat_seconds = _quantity(repeat, SECONDS, f"{place}: repeat_seconds", "a finite number > 0")
    return Link(
        source,
        target,
        bandwidth,
        _latency(raw, place),
        reverse,
        shared_medium,
        "" if _is_absent(schedule) else str(schedule),
        repeat_seconds,
        not _is_absent(raw.get(reverse_key)),
    )


def read_coordinates(raw: Mapping[str, Any], place: str) -> Coordinates | None:
    """Return where a node is, latitude and longitude in degrees; None if it does not say.

    Raises:
        InputError: one of the two is missing, or no number in its range.
    """
    found = []
    for key, most in (("latitude", 90.0), ("longitude", 180.0)):
        value = raw.get(key)
        if _is_absent(value):
            continue
        try:
            degrees = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            degrees = math.nan
        if not abs(degrees) <= most or isinstance(value, bool):
            raise InputError(f"{place}: {key}", value, f"degrees from {-most:g} to {most:g}")
        found.append(degrees)
    if len(found) == 1:
        raise InputError(place, "one coordinate", "latitude and longitude, or none of them")
    return (found[0], found[1]) if found else None


def node_name(found: object, where: str) -> str:
    """Return the node id as text.

    Raises:
        InputError: it is missing, empty, or neither a text nor a whole number.
    """
    if isinstance(found, np.generic):
        found = found.item()
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str) or not found.strip():
        raise InputError(where, "nothing" if _is_absent(found) else found, "a text or a whole number")
    return found


def check_attributes(raw: Mapping[str, Any], known: tuple[str, ...], where: str, *, strict: bool) -> None:
    """Refuse unknown attributes: all of them where ``strict``, else those that are surely misspelt.

    Raises:
        InputError: an attribute is refused; it names the nearest known one.
    """
    for key in raw:
        if key in known:
            continue
        if strict:
            raise unknown_name(where, str(key), known)
        nearest = _slip_of(str(key), known)
        if nearest is not None:
            raise InputError(where, str(key), ", ".join(known), nearest=nearest)


@lru_cache(maxsize=1024)
def _slip_of(key: str, known: tuple[str, ...]) -> str | None:
    """Return the known attribute of which ``key`` is surely a misspelling; cached, as all links have the same ones."""
    nearest = nearest_name(key, known)
    if nearest is None or difflib.SequenceMatcher(None, key, nearest).ratio() < _SURELY_MISSPELT:
        return None
    return nearest


def _bandwidth(raw: Mapping[str, Any], key: str, place: str) -> float:
    allowed = "a finite number > 0, or a text such as '20 Mbit/s'"
    value = _quantity(raw.get(key), BYTES_PER_SECOND, f"{place}: {key}", allowed)
    if value <= 0:
        raise InputError(f"{place}: {key}", raw[key], allowed)
    return value


def _latency(raw: Mapping[str, Any], place: str) -> float:
    allowed = "a finite number >= 0, or a text such as '15 ms'"
    value = _quantity(raw.get("latency_seconds"), SECONDS, f"{place}: latency_seconds", allowed)
    if value > MAX_LATENCY_SECONDS:
        raise InputError(f"{place}: latency_seconds", raw["latency_seconds"], f"at most {MAX_LATENCY_SECONDS:g}")
    return value


def _quantity(found: object, units: dict[str, float], where: str, allowed: str) -> float:
    if isinstance(found, np.generic):
        found = found.item()
    if _is_absent(found):
        raise InputError(where, "nothing", allowed)
    try:
        return parse_quantity(found, units, allowed)
    except (ValueError, OverflowError):
        raise InputError(where, found, allowed) from None


def _flag(found: object, where: str) -> bool:
    if isinstance(found, np.generic):
        found = found.item()
    if isinstance(found, bool):
        return found
    if _is_absent(found):
        return False
    if isinstance(found, str) and found.lower() in ("true", "false"):
        return found.lower() == "true"
    raise InputError(where, found, "true, false")


def _is_absent(found: object) -> bool:
    return found is None or found == "" or (isinstance(found, str) and found.isspace())
