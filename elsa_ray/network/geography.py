"""Latency from places: the great circle between two coordinates, at the speed of light in glass."""

from __future__ import annotations

import math

EARTH_RADIUS_METRES = 6_371_008.8
"""Mean radius (IUGG)."""
LIGHT_IN_FIBRE_METRES_PER_SECOND = 299_792_458 * 2 / 3
"""Two thirds of the speed of light: glass has a refractive index of about 1.5. Cables are longer than great circles."""

Coordinates = tuple[float, float]
"""Latitude and longitude in degrees."""


def distance_metres(first: Coordinates, second: Coordinates) -> float:
    """Return the great-circle distance by the haversine formula, which is accurate for near points too."""
    (lat_1, lon_1), (lat_2, lon_2) = ((math.radians(x) for x in place) for place in (first, second))
    half = math.sin((lat_2 - lat_1) / 2) ** 2 + math.cos(lat_1) * math.cos(lat_2) * math.sin((lon_2 - lon_1) / 2) ** 2
    return 2 * EARTH_RADIUS_METRES * math.asin(min(1.0, math.sqrt(half)))


def fibre_seconds(metres: float) -> float:
    """Return the one-way latency of so much fibre."""
    return metres / LIGHT_IN_FIBRE_METRES_PER_SECOND
