"""What the numbers of a run rest on, written into its checkpoints: it goes on only where all of it is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.records.summary import versions

_ABSENT = object()


class ChangedError(InputError):
    """Something is not as it was that a run rests on: it cannot go on, however often that is tried."""


@dataclass(frozen=True)
class Provenance:
    """What must not change while a run is interrupted.

    Attributes:
        config: the complete config as plain values.
        versions: of the packages that can change a number.
        files: SHA-256 of each file that the config names; of a folder, of its files' names and sizes.
    """

    config: Mapping[str, Any]
    versions: Mapping[str, str | None]
    files: Mapping[str, str]


def provenance_of(config: ExperimentConfig) -> Provenance:
    """Return what the numbers of a config's run rest on, on this machine."""
    values = config.model_dump(mode="json")
    return Provenance(values, versions(), {path: _sha256(Path(path)) for path in sorted(set(_paths(values)))})


def check_unchanged(before: Provenance, now: Provenance, *, some_failed: bool) -> None:
    """Refuse to go on where anything has changed that the numbers so far rest on.

    That is everything but ``runtime``, and what becomes of clients that fail where none has.

    Args:
        before: when the run was begun.
        now: as it would go on.
        some_failed: whether a client has failed in a finished round.

    Raises:
        ChangedError: with the first field, package or file that has changed.
    """
    earlier, later = (_numeric(own.config, some_failed=some_failed) for own in (before, now))
    changed = _first_difference(earlier, later)
    if changed is not None:
        field, then, found = changed
        only = "only runtime can be changed on resuming"
        if field.startswith("protocol.client_failure"):
            only = "a client has failed by it already"
        raise ChangedError(field, found, f"{_text(then)}, as the run has it: {only}")
    was_timed, is_timed = (own["runtime"]["executor"] == "none" for own in (before.config, now.config))
    if was_timed != is_timed:
        then = before.config["runtime"]["executor"]
        allowed = "none: the run is timed only" if was_timed else f"{then}, ray or inline: the run trains"
        raise ChangedError("runtime.executor", now.config["runtime"]["executor"], allowed)
    for package, version in before.versions.items():
        found = now.versions.get(package)
        if found != version:
            allowed = f"{version or 'none'}, with which the run was begun; another may give other numbers"
            raise ChangedError(f"version of {package}", found or "none", allowed)
    for path, digest in before.files.items():
        if now.files.get(path) != digest:
            found = "other content" if path in now.files else "no such file"
            raise ChangedError(path, found, "the content that the run was begun with")


def check_same_data(before: str, now: str) -> None:
    """Refuse to go on with other data.

    Raises:
        ChangedError: the hashes differ.
    """
    if before != now:
        allowed = f"the data that the run was begun with (sha256 {before[:12]}…)"
        raise ChangedError("task.dataset", f"other data (sha256 {now[:12]}…)", allowed)


def _numeric(config: Mapping[str, Any], *, some_failed: bool) -> dict[str, Any]:
    """Return what the numbers so far rest on."""
    left_out = () if some_failed else ("client_failure",)
    protocol = {name: value for name, value in config["protocol"].items() if name not in left_out}
    return {**{name: value for name, value in config.items() if name != "runtime"}, "protocol": protocol}


def _first_difference(before: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return dotted path, old and new value of the first field that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = [(key, before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in dict.fromkeys([*before, *now])]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(number), *pair) for number, pair in enumerate(zip(before, now, strict=True))]
    else:
        same = type(before) is type(now) and before == now
        return None if same else (path, before, now if now is not _ABSENT else "nothing")
    inside = (_first_difference(old, new, f"{path}.{key}" if path else key) for key, old, new in pairs)
    return next((found for found in inside if found is not None), None)


def _text(value: Any) -> str:
    return "nothing" if value is _ABSENT or value is None else str(value)


def _paths(values: Any) -> Iterator[str]:
    """Yield the absolute paths of files and folders in plain values, keys included (mixes of device files)."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _paths(key)
            yield from _paths(value)
    elif isinstance(values, list):
        for value in values:
            yield from _paths(value)
    elif isinstance(values, str) and values.startswith("/") and _exists(values):
        yield values


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    if path.is_dir():
        sizes = [f"{file.relative_to(path)} {file.stat().st_size}" for file in path.rglob("*") if file.is_file()]
        return hashlib.sha256("\n".join(sorted(sizes)).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
