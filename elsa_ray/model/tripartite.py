"""The frozen backbone of a cohort, callable part by part: front, middle, back.

Shapes: C clients, N = C·B texts, S tokens, D hidden width, K classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from elsa_ray.model.adapters import AdapterLayout, Adapters
from elsa_ray.model.cohort_linear import CohortLinear, FullLinear, LoraLinear, bound
from elsa_ray.model.families import Family
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Part, Split, whole


class TripartiteModel:
    """One frozen model that many clients share; their adapters come with each call.

    A call is a function of its arguments: the object holds frozen weights only.

    Args:
        model: the transformers model, in evaluation mode; its targeted layers are replaced by cohort layers.
        family: how to call the architecture.
        shape: what it looks like.
        layout: which tensors are trained.
    """

    def __init__(self, model: PreTrainedModel, family: Family, shape: ModelShape, layout: AdapterLayout) -> None:
        self.model = model.requires_grad_(False).eval()
        self.family = family
        self.shape = shape
        self.layout = layout
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            # torch's fused attention is eight times slower backwards there (64 texts of 32 tokens: 49 ms against 5).
            model.set_attn_implementation("eager")
        self._layers = _insert_cohort_layers(model, shape, layout)
        self._blocks = family.blocks(model, shape)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the frozen weights."""
        return next(self.model.parameters()).device

    def front(self, ids_NS: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor], split: Split) -> Tensor:
        """Return the hidden states [N, S, D] at the first cut."""
        return self._run_blocks(self.embed(ids_NS), mask_NS, adapters, split.layers(Part.FRONT))

    def middle(self, hidden_NSD: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor], split: Split) -> Tensor:
        """Return the hidden states [N, S, D] at the second cut."""
        return self._run_blocks(hidden_NSD, mask_NS, adapters, split.layers(Part.MIDDLE))

    def back(self, hidden_NSD: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor], split: Split) -> Tensor:
        """Return the logits: [N, K] for classification, [N, S, V] for causal language modelling."""
        return self.logits(self.last_hidden(hidden_NSD, mask_NS, adapters, split), mask_NS, adapters)

    def scores(self, hidden_NSD: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor], layers: range) -> Tensor:
        """Return the logits behind the last blocks ``layers``, without computing any state that the head does not read.

        Equal to the published model's but for rounding, with less work than a device that runs the whole last block.
        """
        if layers:
            inputs = self.family.block_inputs(self.model, hidden_NSD, mask_NS)
            with bound(self._layers, self._in_blocks(adapters, layers)):
                for layer in layers[:-1]:
                    hidden_NSD = self._blocks[layer](hidden_NSD, **inputs)
                hidden_NSD = self.family.last_block(self.model, self._blocks[layers[-1]], hidden_NSD, inputs)
        return self.logits(hidden_NSD, mask_NS, adapters)

    def embed(self, ids_NS: Tensor) -> Tensor:
        """Return the embeddings [N, S, D]."""
        return self.family.embed(self.model, ids_NS)

    def last_hidden(self, hidden_NSD: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor], split: Split) -> Tensor:
        """Return the hidden states [N, S, D] behind the last block from those at the second cut."""
        return self._run_blocks(hidden_NSD, mask_NS, adapters, split.layers(Part.BACK))

    def logits(self, hidden_NSD: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor]) -> Tensor:
        """Return what the head makes of the states behind the last block."""
        adapters = {name: value for name, value in adapters.items() if not self._is_in_block(name)}
        with bound(self._layers, adapters):
            state = self.family.before_head(self.model, hidden_NSD, mask_NS)
            logits: Tensor = _head_module(self.model)(state)
        is_classification_of_one_state = logits.dim() == 3 and not self.shape.head[-1].per_token
        return logits[:, 0] if is_classification_of_one_state else logits

    def whole(self, ids_NS: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the last hidden states [N, S, D] and the logits of the uncut model, whose adapters are all given."""
        split = whole(self.shape.num_layers)
        hidden_NSD = self.front(ids_NS, mask_NS, adapters, split)
        return hidden_NSD, self.logits(hidden_NSD, mask_NS, adapters)

    def frozen_tensors(self, split: Split, parts: Collection[Part]) -> list[Tensor]:
        """Return the frozen weights of some parts, embeddings and head included, in the order of their names."""
        named = sorted(self.model.named_parameters())
        return [tensor for name, tensor in named if self._part_of_frozen(name, split) in parts]

    def frozen_blocks(self, layers: range) -> list[Tensor]:
        """Return the frozen weights of some blocks, in the order of their names."""
        prefixes = tuple(f"{self.shape.block_path}.{layer}." for layer in layers)
        return [tensor for name, tensor in sorted(self.model.named_parameters()) if name.startswith(prefixes)]

    def _is_in_block(self, name: str) -> bool:
        return name.startswith(f"{self.shape.block_path}.")

    def _part_of_frozen(self, name: str, split: Split) -> Part:
        in_block = name.removeprefix(f"{self.shape.block_path}.")
        if in_block != name:
            return split.part_of(int(in_block.partition(".")[0]))
        is_embedding = name.startswith(self.family.embedding_paths)
        return Part.FRONT if is_embedding or not split.is_cut else Part.BACK

    def _run_blocks(self, hidden_NSD: Tensor, mask_NS: Tensor, adapters: Mapping[str, Tensor], layers: range) -> Tensor:
        if not layers:
            return hidden_NSD
        inputs = self.family.block_inputs(self.model, hidden_NSD, mask_NS)
        with bound(self._layers, self._in_blocks(adapters, layers)):
            for layer in layers:
                hidden_NSD = self._blocks[layer](hidden_NSD, **inputs)
        return hidden_NSD

    def _in_blocks(self, adapters: Mapping[str, Tensor], layers: range) -> Adapters:
        prefixes = tuple(f"{self.shape.block_path}.{layer}." for layer in layers)
        return {name: tensor for name, tensor in adapters.items() if name.startswith(prefixes)}


def _insert_cohort_layers(model: nn.Module, shape: ModelShape, layout: AdapterLayout) -> dict[str, CohortLinear]:
    """Replace the trained layers by cohort layers and return these by path."""
    layers: dict[str, CohortLinear] = {}
    for layer in range(shape.num_layers):
        for target in layout.targets:
            path = f"{shape.block_path}.{layer}.{target}"
            layers[path] = LoraLinear(model.get_submodule(path), layout.scaling)
    for path in layout.trained_head:
        layers[path] = FullLinear(model.get_submodule(path))
    for path, cohort_layer in layers.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, cohort_layer)
    return layers


def _head_module(model: nn.Module) -> nn.Module:
    for name in ("classifier", "score", "lm_head"):
        if hasattr(model, name):
            head = getattr(model, name)
            assert isinstance(head, nn.Module)
            return head
    raise ValueError(f"{type(model).__name__} has no head")
