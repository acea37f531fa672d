"""Access profiles: the last link of a client, by name, and what the clients of one cell share (methods.md 3.28)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import yaml

from elsa_ray.config.errors import unknown_name
from elsa_ray.config.topology import AccessChoice, AccessMix
from elsa_ray.config.units import BYTES_PER_SECOND, SECONDS, parse_quantity
from elsa_ray.network.draws import generator_of
from elsa_ray.network.shares import dealt


@dataclass(frozen=True)
class AccessProfile:
    """A kind of access.

    Attributes:
        name: of the profile.
        about: what it is.
        up_bytes_per_second, down_bytes_per_second: of a client that is alone.
        round_trip_seconds: of the access network.
        cell_up_bytes_per_second, cell_down_bytes_per_second: what the clients of a cell share in a direction; None:
            nothing.
        medium_bytes_per_second: what the clients of an access point share in both directions together; None: nothing.
        sources: of each figure, by its name in the file.
    """

    name: str
    about: str
    up_bytes_per_second: float
    down_bytes_per_second: float
    round_trip_seconds: float
    cell_up_bytes_per_second: float | None
    cell_down_bytes_per_second: float | None
    medium_bytes_per_second: float | None
    sources: Mapping[str, str]

    @property
    def has_cells(self) -> bool:
        """Whether clients share anything before the router."""
        shared = (self.cell_up_bytes_per_second, self.cell_down_bytes_per_second, self.medium_bytes_per_second)
        return any(figure is not None for figure in shared)


@cache
def access_profiles() -> dict[str, AccessProfile]:
    """Return the profiles that come with the package, by name."""
    text = resources.files("elsa_ray.network").joinpath("access.yaml").read_text(encoding="utf-8")
    return {name: _profile(name, raw) for name, raw in yaml.safe_load(text).items()}


def access_of_clients(choice: AccessChoice, num_clients: int, seed: int, where: str) -> list[AccessProfile]:
    """Return each client's profile; a mix is dealt exactly and then shuffled.

    Args:
        choice: one profile's name, or a mix.
        num_clients: N.
        seed: the run's.
        where: the config field, for the error.

    Raises:
        InputError: there is no profile of a name.
    """
    if not isinstance(choice, AccessMix):
        return [_find(choice, where)] * num_clients
    names = sorted(choice.mix)
    found = [_find(name, f"{where}.mix.{name}") for name in names]
    counts = dealt([choice.mix[name] for name in names], num_clients)
    kind_N = np.repeat(np.arange(len(names)), counts)
    return [found[kind] for kind in generator_of(seed, "access").permutation(kind_N).tolist()]


def _find(name: str, where: str) -> AccessProfile:
    profiles = access_profiles()
    if name not in profiles:
        raise unknown_name(where, name, profiles)
    return profiles[name]


def _profile(name: str, raw: Mapping[str, Mapping[str, str]]) -> AccessProfile:
    def bandwidth(key: str) -> float:
        return parse_quantity(raw[key]["value"], BYTES_PER_SECOND, "20 Mbit/s")

    def shared(key: str) -> float | None:
        return bandwidth(key) if key in raw else None

    return AccessProfile(
        name=name,
        about=str(raw["about"]),
        up_bytes_per_second=bandwidth("up"),
        down_bytes_per_second=bandwidth("down"),
        round_trip_seconds=parse_quantity(raw["round_trip"]["value"], SECONDS, "15 ms"),
        cell_up_bytes_per_second=shared("cell_up"),
        cell_down_bytes_per_second=shared("cell_down"),
        medium_bytes_per_second=shared("medium"),
        sources={key: figure["source"] for key, figure in raw.items() if key != "about"},
    )
