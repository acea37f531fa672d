"""Reads a config file with ``--set`` overrides, and writes the complete one that reproduces a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from elsa_ray.config.availability import FedScaleTrace, Trace
from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.task import FileDataset, FileProbes, HubDataset
from elsa_ray.config.topology import FileTopology
from elsa_ray.config.validate import validate
from elsa_ray.config.world import DeviceFile, DeviceMix, is_device_file


class _Loader(yaml.SafeLoader):
    """YAML with three repairs: ``2e-3`` is a number; a key that stands twice and a wrong date are told as errors."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError) as error:
            # What PyYAML's own constructors raise for 2023-02-30, !!int x, or a number of thousands of digits.
            raise yaml.constructor.ConstructorError(None, None, f"the value {node.value}", node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key}", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML text.

    Raises:
        InputError: the text is no YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise InputError(where, "lists or mappings too deep inside each other", "valid YAML") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        raise InputError(place, str(getattr(error, "problem", None) or error), "valid YAML") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read the config file at ``path``; paths inside become absolute, relative to the file's folder.

    Args:
        path: the YAML file.
        overrides: ``a.b=c`` texts; the value is YAML.

    Raises:
        InputError: the file or an override is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), getattr(error, "strerror", None) or "no UTF-8 text", "a readable YAML file"
        ) from None
    data = read_yaml(text, str(path))
    if data is None:
        data = {}
    return make_config(data, overrides, base_folder=path.parent, where=str(path))


def make_config(
    data: object, overrides: Sequence[str] = (), *, base_folder: Path | None = None, where: str = "config"
) -> ExperimentConfig:
    """Build the config from plain values; see ``load_config``.

    Raises:
        InputError: a value or an override is wrong.
    """
    if not isinstance(data, dict):
        raise InputError(where, type(data).__name__, "a mapping of sections")
    for override in overrides:
        data = _with_override(data, override)
    config = validate(ExperimentConfig, data)
    return _with_absolute_paths(config, (base_folder or Path()).resolve())


def dump_config(config: ExperimentConfig) -> str:
    """Return the complete config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_sha256(config: ExperimentConfig) -> str:
    """Return the hash of the complete config, ``runtime`` excepted: what cannot change a number is not part of it."""
    values = config.model_dump(mode="json", exclude={"runtime"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the config file."""
    schema = ExperimentConfig.model_json_schema()
    from elsa_ray.config.experiment import PROTOCOL_CONFIGS

    variants = []
    for name, model in PROTOCOL_CONFIGS.items():
        variant = model.model_json_schema(ref_template="#/$defs/{model}")
        schema["$defs"].update(variant.pop("$defs", {}))
        schema["$defs"][f"{name}_protocol"] = variant
        variants.append({"$ref": f"#/$defs/{name}_protocol"})
    schema["properties"]["protocol"] = {"anyOf": variants}
    return schema


def _with_override(data: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError("--set", override, "KEY.KEY=VALUE, such as protocol.rounds=3")
    value = read_yaml(text, f"--set {path}")
    return _replaced(data, path.split("."), value, f"--set {path}")


def _replaced(node: Any, keys: list[str], value: Any, where: str) -> Any:
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not (key.isascii() and key.isdigit()) or int(key) >= len(node):
            raise InputError(where, key, f"an index from 0 to {len(node) - 1}")
        return [_replaced(item, rest, value, where) if i == int(key) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise InputError(where, key, f"no further keys: the value here is {node!r}")
    return {**node, key: _replaced(node.get(key), rest, value, where)}


def _with_absolute_paths(config: ExperimentConfig, base_folder: Path) -> ExperimentConfig:
    """Anchor every path; a name that is no existing path (a hub id, a packaged model) stays as it is."""

    def anchored(name: str) -> str:
        try:
            return str((base_folder / Path(name).expanduser()).resolve())
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(name, f"what cannot be a path here ({error})", "the path of a file or folder") from None

    def anchored_if_there(name: str) -> str:
        looks_like_a_path = name.startswith((".", "/", "~"))
        return anchored(name) if looks_like_a_path or os.path.isdir(base_folder / name) else name

    task = config.task.model_copy(update={"model": anchored_if_there(config.task.model)})
    dataset = task.dataset
    if isinstance(dataset, FileDataset):
        paths = {"train": anchored(dataset.train), "test": None if dataset.test is None else anchored(dataset.test)}
        task = task.model_copy(update={"dataset": dataset.model_copy(update=paths)})
    elif isinstance(dataset, HubDataset):
        task = task.model_copy(update={"dataset": dataset.model_copy(update={"hub": anchored_if_there(dataset.hub)})})
    if isinstance(task.probes, FileProbes):
        probes = task.probes.model_copy(update={"file": anchored(task.probes.file)})
        task = task.model_copy(update={"probes": probes})
    world = config.world
    for role in ("clients", "edges"):
        section = getattr(world, role)
        device = _device_anchored(section.device, anchored)
        world = world.model_copy(update={role: section.model_copy(update={"device": device})})
    topology = config.topology
    if isinstance(topology, FileTopology):
        topology = topology.model_copy(update={"file": anchored(topology.file)})
    if isinstance(world.availability, Trace | FedScaleTrace):
        availability = world.availability.model_copy(update={"file": anchored(world.availability.file)})
        world = world.model_copy(update={"availability": availability})
    if world.clients.capacities is not None:
        capacities = world.clients.capacities
        capacities = capacities.model_copy(update={"file": anchored(capacities.file)})
        world = world.model_copy(update={"clients": world.clients.model_copy(update={"capacities": capacities})})
    return config.model_copy(update={"task": task, "topology": topology, "world": world})


def _device_anchored(device: Any, anchored: Callable[[str], str]) -> Any:
    """Return a ``device`` field with the paths of its files absolute."""
    if isinstance(device, DeviceFile):
        return device.model_copy(update={"file": anchored(device.file)})
    if isinstance(device, DeviceMix):
        mix = {anchored(name) if is_device_file(name) else name: share for name, share in device.mix.items()}
        return device.model_copy(update={"mix": mix})
    return anchored(device) if isinstance(device, str) and is_device_file(device) else device
