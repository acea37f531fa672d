"""Which tensors are trained and sent, keyed by absolute layer, and their first values.

An adapter set is a plain dict from name to tensor, names as in PEFT's files without the prefix ``base_model.model.``:
``bert.encoder.layer.3.attention.self.query.lora_A.weight``, ``classifier.weight``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elsa_ray.config.errors import InputError, nearest_name
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.families import Family
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Part, Split
from elsa_ray.tasks.seeds import derive_seed

Adapters = dict[str, Tensor]
"""Tensors by name; each with the client first (``[C, ...]``) where the adapters are a cohort's."""


@dataclass(frozen=True)
class AdapterTensor:
    """One trained tensor: its name, shape, and the absolute block that it belongs to (None: pooler or head)."""

    name: str
    shape: tuple[int, ...]
    layer: int | None

    @property
    def num_elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class AdapterLayout:
    """All trained tensors of a model, in the fixed order in which they are summed and sent.

    Attributes:
        tensors: the tensors, by block, then pooler and head.
        targets: names of the linear layers in a block that have an adapter.
        trained_head: paths of the layers behind the blocks that are trained whole.
        rank: of the factors.
        scaling: alpha / rank.
    """

    tensors: tuple[AdapterTensor, ...]
    targets: tuple[str, ...]
    trained_head: tuple[str, ...]
    rank: int
    scaling: float

    def part(self, split: Split, *parts: Part) -> tuple[AdapterTensor, ...]:
        """Return the tensors that lie in the given parts of a split."""
        return tuple(tensor for tensor in self.tensors if split.part_of(tensor.layer) in parts)


def make_layout(shape: ModelShape, family: Family, config: LoraConfig, *, causal_lm: bool) -> AdapterLayout:
    """Return the trained tensors that the config asks for.

    Raises:
        InputError: a target is no linear layer of a block, or a tied head is to be trained.
    """
    targets = _targets(shape, family, config)
    tensors = []
    for layer in range(shape.num_layers):
        for target in targets:
            linear = shape.block.linear(target)
            path = f"{shape.block_path}.{layer}.{target}"
            tensors.append(AdapterTensor(f"{path}.lora_A.weight", (config.rank, linear.num_inputs), layer))
            tensors.append(AdapterTensor(f"{path}.lora_B.weight", (linear.num_outputs, config.rank), layer))
    trained_head = _trained_head(shape, config, causal_lm=causal_lm)
    for head_layer in shape.head:
        linear = head_layer.linear
        if linear.name in trained_head:
            tensors.append(AdapterTensor(f"{linear.name}.weight", (linear.num_outputs, linear.num_inputs), None))
            if linear.has_bias:
                tensors.append(AdapterTensor(f"{linear.name}.bias", (linear.num_outputs,), None))
    return AdapterLayout(tuple(tensors), targets, trained_head, config.rank, config.alpha / config.rank)


def initial_adapters(layout: AdapterLayout, model: nn.Module, seed: int, dtype: torch.dtype) -> Adapters:
    """Return the common first adapters: A uniform in ±1/sqrt(inputs), B zero (as PEFT), the head as in the model."""
    adapters = {}
    frozen = dict(model.named_parameters())
    for tensor in layout.tensors:
        if tensor.name.endswith("lora_A.weight"):
            generator = torch.Generator().manual_seed(derive_seed(seed, "lora", tensor.name) % 2**63)
            uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            value = (2 * uniform - 1) / math.sqrt(tensor.shape[1])
        elif tensor.name.endswith("lora_B.weight"):
            value = torch.zeros(tensor.shape)
        else:
            value = frozen[tensor.name].detach().clone()
        adapters[tensor.name] = value.to(dtype)
    return adapters


def _targets(shape: ModelShape, family: Family, config: LoraConfig) -> tuple[str, ...]:
    names = [linear.name for linear in shape.block.linears]
    asked = list(family.default_targets) if config.targets == "auto" else config.targets
    for target in asked:
        if not any(_matches(name, target) for name in names):
            nearest = nearest_name(target, [name.rsplit(".", 1)[-1] for name in names])
            raise InputError("task.lora.targets", target, ", ".join(names), nearest=nearest)
    chosen = tuple(name for name in names if any(_matches(name, target) for target in asked))
    if not chosen:
        raise InputError("task.lora.targets", "an empty list", f"auto, or some of {', '.join(names)}")
    return chosen


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _trained_head(shape: ModelShape, config: LoraConfig, *, causal_lm: bool) -> tuple[str, ...]:
    train_head = not causal_lm if config.train_head is None else config.train_head
    if train_head and shape.tied_head:
        raise InputError("task.lora.train_head", "true", "false: this model's head shares the embeddings' weights")
    if config.train_pooler and not any(layer.part_of == "pooler" for layer in shape.head):
        raise InputError("task.lora.train_pooler", "true", "false: this model has no pooler")
    wanted = {"pooler": config.train_pooler, "head": train_head}
    return tuple(layer.linear.name for layer in shape.head if wanted[layer.part_of])
