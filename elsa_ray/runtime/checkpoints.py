"""Checkpoints: all that goes on from round to round, written after each, so that a killed run can go on.

A checkpoint is two files named by the number of finished rounds: tensors (safetensors), then what is no tensor (JSON),
which has the tensors' hash and its own. So a part of a checkpoint is never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import safetensors.torch

from elsa_ray.config.errors import InputError
from elsa_ray.protocols.protocol import ProtocolState
from elsa_ray.records.folder import RecordsState
from elsa_ray.records.json_text import write_whole
from elsa_ray.runtime.fingerprint import NumericFingerprint
from elsa_ray.runtime.forms import Form, TensorBox, UnknownTypeError, WrongDataError, form_of
from elsa_ray.runtime.provenance import ChangedError, Provenance
from elsa_ray.world.timeline import WorldState

SCHEMA_VERSION = 1
FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        protocol, world, records: the states that the loop and the records carry.
        wall_seconds: that the run has taken so far.
        workers: fingerprints of those that have computed it, each once, by kind.
    """

    protocol: ProtocolState
    world: WorldState
    records: RecordsState
    wall_seconds: float
    workers: Mapping[str, tuple[NumericFingerprint, ...]]


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint as it was read: whole, but not yet turned into values.

    Attributes:
        num_rounds: that were finished.
        provenance: what the run rests on.
        data_sha256: of its data.
    """

    num_rounds: int
    provenance: Provenance
    data_sha256: str
    _states: Mapping[str, Any]
    _tensors: bytes

    def checkpoint(self, kind: type[ProtocolState]) -> Checkpoint:
        """Return the states; ``kind`` is the class of the protocol's.

        Raises:
            ChangedError: another version of the code has written them.
        """
        tensors = safetensors.torch.load(self._tensors)
        try:
            values = {name: form.unpack(self._states[name], tensors) for name, form in _forms(kind).items()}
        except (WrongDataError, LookupError, TypeError, AttributeError) as error:
            allowed = "one that this version of elsa-ray, and of the protocol, has written"
            raise ChangedError(f"checkpoint {self.num_rounds}", f"another state ({error})", allowed) from None
        return Checkpoint(**values)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: its folder.
        keep: how many of the last ones are kept; none is written where that is 0.
        provenance: what the run rests on.
        data_sha256: of its data.
        kind: class of the protocol's state.

    Raises:
        InputError: the protocol's state has a type that no checkpoint can hold.
    """

    def __init__(
        self, run: Path, keep: int, provenance: Provenance, data_sha256: str, kind: type[ProtocolState]
    ) -> None:
        self._path, self._keep = run / FOLDER, keep
        self._about = {"data_sha256": data_sha256, "provenance": vars(provenance)}
        self._forms = _forms(kind) if keep else {}

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove the oldest beyond those to keep."""
        if not self._keep:
            return
        box = TensorBox()
        states = {name: form.pack(getattr(checkpoint, name), box, name) for name, form in self._forms.items()}
        tensors = safetensors.torch.save(box.tensors)
        num_rounds = checkpoint.protocol.round_index
        content = {
            "num_rounds": num_rounds,
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
            **self._about,
            "states": states,
        }
        text = _json(content)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._path.mkdir(exist_ok=True)
        write_whole(_tensors_path(self._path, num_rounds), tensors)
        head = f'{{"schema_version":{SCHEMA_VERSION},"sha256":"{digest}","content":'
        write_whole(_states_path(self._path, num_rounds), f"{head}{text}}}\n")
        keep_last(self._path.parent, self._keep)


def checkpoint_numbers(run: Path) -> list[int]:
    """Return the numbers of finished rounds for which a run has a checkpoint, the last first."""
    names = (path.stem for path in (run / FOLDER).glob("*.json"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def cut_after(run: Path, num_rounds: int) -> None:
    """Remove the checkpoints after more finished rounds than these, and what a kill has left of such."""
    # Sorted: of each checkpoint first what makes it one.
    for path in sorted((run / FOLDER).glob("[0-9]*.*")):
        if path.stem.isdecimal() and int(path.stem) > num_rounds:
            path.unlink()


def keep_last(run: Path, count: int) -> None:
    """Remove all but the last checkpoints of a run, that of its start where it has more, and what a kill has left."""
    numbers = checkpoint_numbers(run)
    # From its start no run goes on in which a round was finished: that would undo it all.
    kept = {_states_path(run, number).stem for number in numbers[:count] if number or len(numbers) == 1}
    # Sorted: of each checkpoint first what makes it one.
    for path in sorted((run / FOLDER).glob("[0-9]*.*")):
        if path.stem not in kept:
            path.unlink()


def read_checkpoint(run: Path, number: int) -> StoredCheckpoint:
    """Read a checkpoint and check that it is whole.

    Raises:
        WrongDataError: it is damaged.
        InputError: another version of the code has written it.
    """
    path = _states_path(run / FOLDER, number)
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
        tensors = _tensors_path(run / FOLDER, number).read_bytes()
        version, content = file["schema_version"], file["content"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WrongDataError(f"{path.name}: {error}") from None
    if version != SCHEMA_VERSION:
        raise InputError(str(path), f"schema_version {version}", f"{SCHEMA_VERSION}, which this elsa-ray writes")
    if hashlib.sha256(_json(content).encode()).hexdigest() != file["sha256"]:
        raise WrongDataError(f"{path.name}: not what was written")
    if hashlib.sha256(tensors).hexdigest() != content["tensors_sha256"]:
        raise WrongDataError(f"{_tensors_path(path.parent, number).name}: not what was written")
    about = Provenance(**content["provenance"])
    return StoredCheckpoint(number, about, content["data_sha256"], content["states"], tensors)


def _forms(kind: type[ProtocolState]) -> dict[str, Form]:
    try:
        hints: dict[str, Any] = {**get_type_hints(Checkpoint), "protocol": kind}
        return {name: form_of(hint) for name, hint in hints.items()}
    except UnknownTypeError as error:
        allowed = "numbers, texts, enums, tensors, arrays, and tuples, sets, mappings and dataclasses of them; or"
        raise InputError("protocol.name", f"a state with {error}", f"{allowed} runtime.keep_checkpoints: 0") from None


def _states_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _tensors_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _json(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False, default=_of_numpy)


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    raise UnknownTypeError(f"{type(value).__name__} in a state")
