"""What the command line lists: networks, generators, access profiles; and the section that its options stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.load import make_config
from elsa_ray.config.topology import GENERATORS, FileTopology, GeneratedTopology, NamedTopology
from elsa_ray.network.access import AccessProfile, access_profiles
from elsa_ray.network.files import load_network, named_topologies
from elsa_ray.network.formats import READERS


def catalogue_lines() -> Iterator[str]:
    """Yield lines that name packaged networks, generators and access profiles, in the markup of the console."""
    yield "[bold]Networks[/bold]"
    for name, path in named_topologies().items():
        network = load_network(path, roles_required=False)
        counts = f"{len(network.clients)} clients, {len(network.edges)} edge servers"
        yield f"  [bold]{name}[/bold]  {counts}. {_escaped(network.figures.strip())}"
    yield "[bold]Generators[/bold] (topology.kind)"
    for name, config in GENERATORS.items():
        yield f"  [bold]{name}[/bold]  {str(config.__doc__).splitlines()[0]}"
    yield "[bold]Access profiles[/bold] (topology.access), up, down and round trip"
    for name, profile in access_profiles().items():
        yield f"  [bold]{name}[/bold]  {_figures(profile)}; {profile.about}"


def topology_section(
    kind: str, options: Mapping[str, Any], overrides: Sequence[str]
) -> GeneratedTopology | FileTopology | NamedTopology:
    """Return the config's ``topology`` section that command-line options stand for.

    Args:
        kind: a generator, a packaged network's name, or a file.
        options: keys of the section; what is None is left out. ``access`` may be shares such as ``lte=0.5,wifi=0.5``.
        overrides: ``KEY=VALUE`` texts for any key.

    Raises:
        InputError: there is no such kind, or a value is wrong.
    """
    stated = {key: value for key, value in options.items() if value is not None}
    if "access" in stated:
        stated["access"] = _access(stated["access"])
    named = named_topologies()
    if kind in GENERATORS:
        section: dict[str, Any] = {"kind": kind, **stated}
        prefix = "topology"
    else:
        is_file = any(kind.lower().endswith(ending) for ending in READERS)
        if kind not in named and not is_file:
            raise unknown_name("KIND", kind, [*GENERATORS, *named, "a file"])
        section = {"name" if kind in named else "file": kind}
        prefix = "topology.attach"
        if stated or overrides:
            section["attach"] = stated
    config = make_config({"topology": section}, [f"{prefix}.{text}" for text in overrides])
    return config.topology


def _access(text: str) -> Any:
    if "=" not in text:
        return text
    shares = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise InputError("--access", part, "NAME, or NAME=SHARE,NAME=SHARE") from None
    return {"mix": shares}


def _figures(profile: AccessProfile) -> str:
    up, down = (_rate(rate) for rate in (profile.up_bytes_per_second, profile.down_bytes_per_second))
    return f"{up}, {down}, {1000 * profile.round_trip_seconds:g} ms"


def _rate(bytes_per_second: float) -> str:
    bits = 8 * bytes_per_second
    return f"{bits / 1e6:g} Mbit/s" if bits >= 1e6 else f"{bits / 1e3:g} kbit/s"


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
