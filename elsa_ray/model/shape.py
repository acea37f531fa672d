"""What a model looks like without its weights: blocks, linear layers, head; all that planning needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearShape:
    """A linear layer: its name inside the block (or the model), inputs, outputs, and whether it has a bias."""

    name: str
    num_inputs: int
    num_outputs: int
    has_bias: bool

    @property
    def num_parameters(self) -> int:
        """Weights and biases."""
        return self.num_outputs * (self.num_inputs + self.has_bias)


@dataclass(frozen=True)
class BlockShape:
    """A transformer block. The roles say how gradients flow through it; each names linear layers.

    Attributes:
        linears: all linear layers.
        query, key, value: the layers that make them (GPT-2: the same fused layer three times).
        attention_out: the projection after attention.
        mlp_in: the layers that read the MLP's input (a gated MLP has two).
        mlp_out: the layer that writes the MLP's output.
        attention_width: heads times the width of a head.
        other_parameters: norms.
    """

    linears: tuple[LinearShape, ...]
    query: str
    key: str
    value: str
    attention_out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    attention_width: int
    other_parameters: int

    def linear(self, name: str) -> LinearShape:
        """Return the linear layer of that name."""
        return next(linear for linear in self.linears if linear.name == name)

    @property
    def num_parameters(self) -> int:
        """Frozen parameters of the block."""
        return sum(linear.num_parameters for linear in self.linears) + self.other_parameters


@dataclass(frozen=True)
class HeadLayer:
    """A linear layer behind the blocks: how many rows it is applied to, and what the config may train of it.

    Attributes:
        linear: the layer, by its path in the model.
        per_token: applied to every token (a language-model head), else to one state a text.
        part_of: ``pooler`` or ``head``.
    """

    linear: LinearShape
    per_token: bool
    part_of: str


@dataclass(frozen=True)
class ModelShape:
    """A splittable model without weights.

    Attributes:
        family: name of the architecture's family.
        num_layers: L, the number of blocks.
        hidden_size: D, the width of the hidden states.
        block: the shape that every block has.
        block_path: path of the list of blocks in the model, such as ``bert.encoder.layer``.
        embedding_parameters: parameters in front of the blocks.
        tail_parameters: norms between the blocks and the head.
        head: the layers behind the blocks, in order.
        tied_head: the head's weight is the embeddings' weight.
        max_positions: longest sequence.
    """

    family: str
    num_layers: int
    hidden_size: int
    block: BlockShape
    block_path: str
    embedding_parameters: int
    tail_parameters: int
    head: tuple[HeadLayer, ...]
    tied_head: bool
    max_positions: int

    @property
    def num_parameters(self) -> int:
        """Frozen parameters of the whole model; a tied head counts once."""
        head = 0 if self.tied_head else sum(layer.linear.num_parameters for layer in self.head)
        return self.embedding_parameters + self.num_layers * self.block.num_parameters + self.tail_parameters + head
