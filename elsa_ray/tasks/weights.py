"""Build a backbone's model: weights from its checkpoint, and the rest initialised by seed, parameter by parameter."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.backbones import FIELD, Backbone, cached_first, first_line
from elsa_ray.tasks.dataset import TaskKind
from elsa_ray.tasks.quiet import quiet_transformers
from elsa_ray.tasks.seeds import derive_seed


def load_model(backbone: Backbone, kind: TaskKind, seed: int) -> PreTrainedModel:
    """Build the frozen model on the CPU in fp32: evaluation mode, no gradients, attention by sdpa.

    Parameters that the checkpoint lacks (a new head; all of them for a model without weights) depend on ``seed`` and
    their name alone. Global random state is left as it was.

    Raises:
        InputError: the checkpoint cannot be had, or lacks weights of the backbone itself.
    """
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": torch.float32}
    config = copy.deepcopy(backbone.config)
    # transformers initialises what a checkpoint lacks from the global generator before it is done again here.
    with torch.random.fork_rng(devices=[]):
        if backbone.weights is None:
            with quiet_transformers():
                model = auto.from_config(config, **options)
            lacking = {name for name, _ in model.named_parameters()}
        else:
            model, lacking = _from_checkpoint(auto, backbone, {"config": config, **options})
    _initialise(model, lacking, seed)
    return model.eval().requires_grad_(False)


def _from_checkpoint(auto: Any, backbone: Backbone, options: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """Return the model and the names of its parameters that the checkpoint has not, or in another shape."""

    def load(local_files_only: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        return auto.from_pretrained(
            backbone.weights,
            local_files_only=local_files_only,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )

    if isinstance(backbone.weights, str):
        allowed = "a model whose weights the hub or its local cache has"
        model, report = cached_first(load, backbone.weights, backbone.name, allowed)
    else:
        try:
            with quiet_transformers():
                model, report = load(True)
        except Exception as error:
            allowed = "a folder with weights that transformers can read"
            raise InputError(FIELD, f"{backbone.name} ({first_line(error)})", allowed) from error
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]}
    lacking = set(report["missing_keys"]) | mismatched
    # A pooler is not part of every checkpoint of a backbone that can have one.
    essential = f"{model.base_model_prefix}."
    broken = sorted(name for name in lacking if name.startswith(essential) and ".pooler." not in name)
    if broken:
        found = f"{backbone.name} without {len(broken)} of the backbone's weights, such as {broken[0]}"
        raise InputError(FIELD, found, "a complete checkpoint")
    return model, lacking


def _initialise(model: PreTrainedModel, names: Iterable[str], seed: int) -> None:
    """Fill the named parameters: matrices from a normal distribution, biases with 0, other vectors (norms) with 1."""
    std = getattr(model.config, "initializer_range", 0.02)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(names):
            # A tied parameter is listed under its first name only, and has its weights from there.
            parameter = parameters.get(name)
            if parameter is None:
                continue
            if parameter.ndim >= 2:
                generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
