"""The architectures that can be split: where their embeddings, blocks and head are, and how to call each.

Shapes: N texts, S tokens, D hidden width, K classes, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from elsa_ray.config.errors import InputError
from elsa_ray.model.shape import BlockShape, HeadLayer, LinearShape, ModelShape

BlockInputs = dict[str, Any]


class Family(ABC):
    """An architecture family. Stateless: each method gets the transformers model it works on."""

    name: str
    model_types: tuple[str, ...]
    default_targets: tuple[str, ...]
    """Names of the linear layers that get an adapter with ``targets: auto``: query and value."""
    embedding_paths: tuple[str, ...]
    """What stands in front of the blocks."""

    @abstractmethod
    def shape(self, config: PretrainedConfig, *, causal_lm: bool) -> ModelShape:
        """Describe the model of this config without building it."""

    @abstractmethod
    def embed(self, model: PreTrainedModel, ids_NS: Tensor) -> Tensor:
        """Return the embeddings [N, S, D] of token ids."""

    @abstractmethod
    def block_inputs(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> BlockInputs:
        """Return the keyword arguments that every block needs beside the hidden states."""

    @abstractmethod
    def before_head(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        """Return what the head reads: [N, D] for classification, [N, S, D] for causal language modelling."""

    def last_block(self, model: PreTrainedModel, block: nn.Module, hidden_NSD: Tensor, inputs: BlockInputs) -> Tensor:
        """Run the last block for the states that ``before_head`` reads, at their places; by default for all."""
        states: Tensor = block(hidden_NSD, **inputs)
        return states

    def summary_state(self, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        """Return the one state [N, D] that stands for a whole text: of a causal model its last real token's."""
        last_N = mask_NS.long().sum(dim=1).clamp(min=1) - 1
        return hidden_NSD[torch.arange(len(hidden_NSD), device=hidden_NSD.device), last_N]

    def blocks(self, model: PreTrainedModel, shape: ModelShape) -> nn.ModuleList:
        """Return the list of blocks."""
        blocks = model.get_submodule(shape.block_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks


class EncoderFamily(Family):
    """BERT and RoBERTa: bidirectional blocks; classification by the first token's state."""

    name = "encoder"
    model_types = ("bert", "roberta")
    default_targets = ("query", "value")
    embedding_paths = ("bert.embeddings.", "roberta.embeddings.")

    def shape(self, config: PretrainedConfig, *, causal_lm: bool) -> ModelShape:
        """Describe a BERT-family classifier."""
        if causal_lm:
            raise InputError("task.kind", f"causal_lm with a {config.model_type} encoder", "classification")
        width, inner, labels = config.hidden_size, config.intermediate_size, config.num_labels
        attention = [LinearShape(f"attention.self.{role}", width, width, True) for role in ("query", "key", "value")]
        block = BlockShape(
            linears=(
                *attention,
                LinearShape("attention.output.dense", width, width, True),
                LinearShape("intermediate.dense", width, inner, True),
                LinearShape("output.dense", inner, width, True),
            ),
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            attention_out="attention.output.dense",
            mlp_in=("intermediate.dense",),
            mlp_out="output.dense",
            attention_width=width,
            other_parameters=4 * width,
        )
        classifier: tuple[HeadLayer, ...]
        if config.model_type == "bert":
            classifier = (
                HeadLayer(LinearShape("bert.pooler.dense", width, width, True), False, "pooler"),
                HeadLayer(LinearShape("classifier", width, labels, True), False, "head"),
            )
        else:
            classifier = (
                HeadLayer(LinearShape("classifier.dense", width, width, True), False, "head"),
                HeadLayer(LinearShape("classifier.out_proj", width, labels, True), False, "head"),
            )
        embeddings = width * (config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2)
        positions = config.max_position_embeddings - (2 if config.model_type == "roberta" else 0)
        return ModelShape(
            family=self.name,
            num_layers=config.num_hidden_layers,
            hidden_size=width,
            block=block,
            block_path=f"{config.model_type}.encoder.layer",
            embedding_parameters=embeddings,
            tail_parameters=0,
            head=classifier,
            tied_head=False,
            max_positions=positions,
        )

    def embed(self, model: PreTrainedModel, ids_NS: Tensor) -> Tensor:
        """Word, position and type embeddings, normalised."""
        embedded: Tensor = model.base_model.embeddings(input_ids=ids_NS)
        return embedded

    def block_inputs(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> BlockInputs:
        """Return the bidirectional attention mask."""
        mask = create_bidirectional_mask(config=model.config, inputs_embeds=hidden_NSD, attention_mask=mask_NS)
        return {"attention_mask": mask}

    def last_block(self, model: PreTrainedModel, block: nn.Module, hidden_NSD: Tensor, inputs: BlockInputs) -> Tensor:
        """Return the first token's state [N, 1, D] alone: all others only give their keys and values."""
        first_N1D, attention = hidden_NSD[:, :1], block.get_submodule("attention")
        own, mask = attention.get_submodule("self"), inputs["attention_mask"]

        def heads(layer: str, states: Tensor) -> Tensor:
            projected: Tensor = own.get_submodule(layer)(states)
            return projected.unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(model.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(
            own,
            heads("query", first_N1D),
            heads("key", hidden_NSD),
            heads("value", hidden_NSD),
            None if mask is None else mask[:, :, :1],
            dropout=0.0,
            scaling=own.scaling,
        )
        attended = attention.get_submodule("output")(mixed.flatten(2), first_N1D)
        state: Tensor = block.get_submodule("output")(block.get_submodule("intermediate")(attended), attended)
        return state

    def before_head(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        """Return the first token's state, pooled where the architecture has a pooler."""
        pooler = getattr(model.base_model, "pooler", None)
        state: Tensor = hidden_NSD[:, :1]
        return pooler(state) if pooler is not None else state

    def summary_state(self, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        """Return the first token's state [N, D]."""
        return hidden_NSD[:, 0]


class LlamaFamily(Family):
    """Llama, Mistral and Qwen2: causal blocks with rotary positions and a gated MLP."""

    name = "llama"
    model_types = ("llama", "mistral", "qwen2")
    default_targets = ("q_proj", "v_proj")
    embedding_paths = ("model.embed_tokens.",)

    def shape(self, config: PretrainedConfig, *, causal_lm: bool) -> ModelShape:
        """Describe a Llama-family model."""
        width, inner = config.hidden_size, config.intermediate_size
        head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
        queries, keys = config.num_attention_heads * head_width, config.num_key_value_heads * head_width
        qkv_bias = config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False))
        out_bias = config.model_type == "llama" and bool(config.attention_bias)
        mlp_bias = bool(getattr(config, "mlp_bias", False))
        block = BlockShape(
            linears=(
                LinearShape("self_attn.q_proj", width, queries, qkv_bias),
                LinearShape("self_attn.k_proj", width, keys, qkv_bias),
                LinearShape("self_attn.v_proj", width, keys, qkv_bias),
                LinearShape("self_attn.o_proj", queries, width, out_bias),
                LinearShape("mlp.gate_proj", width, inner, mlp_bias),
                LinearShape("mlp.up_proj", width, inner, mlp_bias),
                LinearShape("mlp.down_proj", inner, width, mlp_bias),
            ),
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            attention_out="self_attn.o_proj",
            mlp_in=("mlp.gate_proj", "mlp.up_proj"),
            mlp_out="mlp.down_proj",
            attention_width=queries,
            other_parameters=2 * width,
        )
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        return ModelShape(
            family=self.name,
            num_layers=config.num_hidden_layers,
            hidden_size=width,
            block=block,
            block_path="model.layers",
            embedding_parameters=config.vocab_size * width,
            tail_parameters=width,
            head=(_decoder_head(config, causal_lm),),
            tied_head=causal_lm and bool(config.tie_word_embeddings),
            max_positions=min(config.max_position_embeddings, window or config.max_position_embeddings),
        )

    def embed(self, model: PreTrainedModel, ids_NS: Tensor) -> Tensor:
        """Return the token embeddings; positions enter in the blocks."""
        embedded: Tensor = model.base_model.embed_tokens(ids_NS)
        return embedded

    def block_inputs(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> BlockInputs:
        """Return the causal mask and the rotary position embeddings."""
        position_ids = torch.arange(hidden_NSD.shape[1], device=hidden_NSD.device)[None]
        rotary = model.base_model.rotary_emb(hidden_NSD, position_ids)
        return {**_causal(model, hidden_NSD, mask_NS), "position_embeddings": rotary}

    def before_head(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        """Return the normalised states: of all tokens for causal_lm, of the last real one for classification."""
        return model.base_model.norm(_states_for_head(model, hidden_NSD, mask_NS))


class Gpt2Family(Family):
    """GPT-2: causal blocks with learned positions and a fused query-key-value layer."""

    name = "gpt2"
    model_types = ("gpt2",)
    default_targets = ("c_attn",)
    embedding_paths = ("transformer.wte.", "transformer.wpe.")

    def shape(self, config: PretrainedConfig, *, causal_lm: bool) -> ModelShape:
        """Describe a GPT-2 model."""
        width = config.hidden_size
        inner = config.n_inner if config.n_inner is not None else 4 * width
        block = BlockShape(
            linears=(
                LinearShape("attn.c_attn", width, 3 * width, True),
                LinearShape("attn.c_proj", width, width, True),
                LinearShape("mlp.c_fc", width, inner, True),
                LinearShape("mlp.c_proj", inner, width, True),
            ),
            query="attn.c_attn",
            key="attn.c_attn",
            value="attn.c_attn",
            attention_out="attn.c_proj",
            mlp_in=("mlp.c_fc",),
            mlp_out="mlp.c_proj",
            attention_width=width,
            other_parameters=4 * width,
        )
        return ModelShape(
            family=self.name,
            num_layers=config.num_hidden_layers,
            hidden_size=width,
            block=block,
            block_path="transformer.h",
            embedding_parameters=width * (config.vocab_size + config.max_position_embeddings),
            tail_parameters=2 * width,
            head=(_decoder_head(config, causal_lm),),
            tied_head=causal_lm and bool(config.tie_word_embeddings),
            max_positions=config.max_position_embeddings,
        )

    def embed(self, model: PreTrainedModel, ids_NS: Tensor) -> Tensor:
        """Token plus position embeddings."""
        body = model.base_model
        embedded: Tensor = body.wte(ids_NS) + body.wpe(torch.arange(ids_NS.shape[1], device=ids_NS.device))
        return embedded

    def block_inputs(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> BlockInputs:
        """Return the causal mask."""
        return _causal(model, hidden_NSD, mask_NS)

    def before_head(self, model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
        """Return the normalised states: of all tokens for causal_lm, of the last real one for classification."""
        return model.base_model.ln_f(_states_for_head(model, hidden_NSD, mask_NS))


FAMILIES: tuple[Family, ...] = (EncoderFamily(), LlamaFamily(), Gpt2Family())


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a model.

    Raises:
        InputError: the architecture cannot be split; the message lists those that can.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    splittable = ", ".join(model_type for family in FAMILIES for model_type in family.model_types)
    raise InputError("task.model", f"the architecture {config.model_type}", f"those that can be split: {splittable}")


def _decoder_head(config: PretrainedConfig, causal_lm: bool) -> HeadLayer:
    if causal_lm:
        return HeadLayer(LinearShape("lm_head", config.hidden_size, config.vocab_size, False), True, "head")
    return HeadLayer(LinearShape("score", config.hidden_size, config.num_labels, False), False, "head")


def _causal(model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> BlockInputs:
    mask = create_causal_mask(
        config=model.config, inputs_embeds=hidden_NSD, attention_mask=mask_NS, past_key_values=None
    )
    return {"attention_mask": mask}


def _states_for_head(model: PreTrainedModel, hidden_NSD: Tensor, mask_NS: Tensor) -> Tensor:
    if hasattr(model, "lm_head"):
        return hidden_NSD
    last_N = mask_NS.sum(dim=1) - 1
    return hidden_NSD[torch.arange(len(last_N), device=hidden_NSD.device), last_N][:, None]
