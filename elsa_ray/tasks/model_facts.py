"""Models that are planned with and never loaded: a config from the bundled facts, a folder or the hub; no tokenizer."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PreTrainedConfig

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.tasks.backbones import FIELD, Backbone, cached_first, check_kind, first_line
from elsa_ray.tasks.dataset import TaskKind
from elsa_ray.tasks.quiet import quiet_transformers
from elsa_ray.tasks.tiny import TINY_MODELS
from elsa_ray.tasks.tokenizers import VOCAB_SIZE


@cache
def model_facts() -> dict[str, dict[str, Any]]:
    """Return the bundled facts by name: ``hub_id``, and the ``config`` values that decide sizes."""
    text = (files("elsa_ray.tasks") / "model_facts.yaml").read_text(encoding="utf-8")
    facts: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return facts


def facts_config(name: str) -> PreTrainedConfig:
    """Return the config of a bundled model; everything that the facts do not say is transformers' default."""
    values = dict(model_facts()[name]["config"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


def check_has_weights(name: str, base_folder: Path) -> None:
    """Refuse to train a model of which there are figures only.

    Raises:
        InputError: the name is a bundled one without weights. A folder of that name goes first, and so does ``gpt2``,
            which is a name of the hub too.
    """
    facts = model_facts().get(name)
    if facts is None or name == "minilm" or name.startswith("gpt2") or (base_folder / name).is_dir():
        return
    found = f"{name}, of which there are figures and no weights here"
    allowed = f"elsa-ray plan with dataset {{sizes: N}}; to train, a folder, or the hub id {facts['hub_id']}"
    raise InputError(FIELD, found, allowed)


def planned_model(name: str, *, kind: TaskKind, num_labels: int, base_folder: Path) -> Backbone:
    """Find the config of a model that is only planned with; neither weights nor tokenizer are asked for.

    Args:
        name: a bundled name, ``tiny``, ``tiny_llama``, ``tiny_gpt2``, a folder with a ``config.json``, or a hub id.
        kind: what the model is for; ``causal_lm`` needs a decoder.
        num_labels: width of a classification's head.
        base_folder: what a relative folder is relative to.

    Raises:
        InputError: there is no such model, its config cannot be read, or it does not fit the task.
    """
    if name in TINY_MODELS:
        config = TINY_MODELS[name](VOCAB_SIZE)
    elif (base_folder / name).is_dir():
        config = _from_folder(name, base_folder / name)
    elif name in model_facts():
        config = facts_config(name)
    elif name.startswith((".", "/", "~")):
        raise InputError(FIELD, name, f"an existing folder, a hub id, or {_names()}")
    else:
        config = _from_hub(name)
    check_kind(name, config, kind)
    if kind == "classification":
        config.num_labels = num_labels
    return Backbone(name, config, None, None, model_facts().get(name, {}).get("hub_id"))


def _names() -> str:
    return ", ".join([*TINY_MODELS, *model_facts()])


def _from_folder(name: str, folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").is_file():
        raise InputError(FIELD, f"{name}, a folder without config.json", "a folder with a model's config.json")
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        allowed = "a folder whose config.json transformers can read without running code from it"
        raise InputError(FIELD, f"{name} ({first_line(error)})", allowed) from error
    return config


def _from_hub(name: str) -> PreTrainedConfig:
    def load(local_files_only: bool) -> PreTrainedConfig:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, local_files_only=local_files_only, trust_remote_code=False
        )
        return config

    # A mistyped bundled name would look like a hub id, and an unreachable hub would be all that is told.
    if "/" not in name:
        nearest = nearest_name(name, [*TINY_MODELS, *model_facts()])
        raise InputError(
            FIELD, name, f"{_names()}, a folder with a config.json, or OWNER/NAME of the hub", nearest=nearest
        )
    return cached_first(load, name, name, f"{_names()}, a folder with a config.json, or a hub id")
