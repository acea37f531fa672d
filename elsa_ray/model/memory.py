"""What training keeps in memory, on a client and on its edge: weights, adapters, and what backward passes wait for.

An estimate for planning (methods.md 1.8, a reconstruction), in three terms:

- the frozen weights of the parts that the node holds;
- each trained tensor of these parts, its gradient, and the optimiser's moments (AdamW two, SGD none);
- the tensors that a forward pass saves for the backward pass. A frozen linear layer saves nothing, so per token of a
  block these are: the inputs of both norms (2 D); queries, keys and values, repeated for every head (3 A); the
  attention weights of eager attention (heads times S: the only term that grows with the square of the length); the
  MLP's inner states before its activation, and with a gate also the activated half (F, gated 3 F); and for the adapters
  the inputs of the layers that have one and the product with its A (rank). Behind the blocks: the inputs of the final
  norm and of the trained layers, and the last layer's output. At each cut: the hidden state and its gradient (4 D).

Not counted: the workspace of single operations, norm statistics, payloads being encoded, the program itself. An
activation function is one operation: GPT-2's, composed of several in eager torch, saves 3 F more there.

Shapes: B texts, S tokens each (arrays of any one shape; the results have it too); A attention width, D hidden width,
F inner width of the MLP; M members of an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from elsa_ray.model.adapters import AdapterLayout
from elsa_ray.model.cost import IntArray, frozen_num_bytes
from elsa_ray.model.shape import BlockShape, ModelShape
from elsa_ray.model.split import Part, Split

MOMENTS = {"adamw": 2, "sgd": 0}
"""Numbers that an optimiser keeps for each trained number."""

OptimizerKind = Literal["adamw", "sgd"]


def client_memory_bytes(
    shape: ModelShape,
    layout: AdapterLayout,
    split: Split,
    *,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
    num_heads: int,
    optimizer_kind: OptimizerKind,
    number_bytes: int = 4,
) -> IntArray:
    """Return the bytes that a client needs to train its parts of a split, or all of an uncut model.

    Args:
        shape: the model.
        layout: its trained tensors.
        split: where the model is cut.
        batch: texts of a step, B.
        length: tokens of each, S.
        num_heads: attention heads of a block.
        optimizer_kind: decides the number of moments.
        number_bytes: of a weight, an activation, a moment.
    """
    held = (Part.FRONT, Part.BACK)
    frozen = sum(frozen_num_bytes(shape, split, part, number_bytes) for part in held)
    trained = _trained_numbers(layout, split, held, optimizer_kind)
    num_blocks = sum(len(split.layers(part)) for part in held)
    saved = _saved_by_blocks(shape, layout, num_blocks, num_heads, batch, length)
    saved = saved + _saved_by_head(shape, layout, batch, length)
    if split.is_cut:
        saved = saved + _at_the_cuts(shape, batch, length)
    return frozen + number_bytes * (trained + saved)


def edge_member_bytes(
    shape: ModelShape,
    layout: AdapterLayout,
    split: Split,
    *,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
    num_heads: int,
    optimizer_kind: OptimizerKind,
    number_bytes: int = 4,
) -> IntArray:
    """Return the bytes that one member adds to its edge: a copy of the middle part's adapters, and activations.

    The arguments are those of ``client_memory_bytes``. The frozen blocks are shared: see ``edge_frozen_bytes``.
    """
    trained = _trained_numbers(layout, split, (Part.MIDDLE,), optimizer_kind)
    saved = _saved_by_blocks(shape, layout, split.middle, num_heads, batch, length)
    return number_bytes * (trained + saved + _at_the_cuts(shape, batch, length))


def edge_frozen_bytes(shape: ModelShape, splits: Iterable[Split], number_bytes: int = 4) -> int:
    """Return the bytes of all blocks that an edge holds, each once, to serve members with these splits."""
    layers = {layer for split in splits for layer in split.layers(Part.MIDDLE)}
    return len(layers) * shape.block.num_parameters * number_bytes


def edge_memory_bytes(
    shape: ModelShape,
    layout: AdapterLayout,
    splits: Sequence[Split],
    *,
    batch_M: IntArray,
    length_M: IntArray,
    num_heads: int,
    optimizer_kind: OptimizerKind,
    number_bytes: int = 4,
) -> int:
    """Return the bytes of an edge whose members, with these splits, all wait between forward and backward."""
    members = [
        edge_member_bytes(
            shape,
            layout,
            split,
            batch=batch,
            length=length,
            num_heads=num_heads,
            optimizer_kind=optimizer_kind,
            number_bytes=number_bytes,
        )
        for split, batch, length in zip(splits, batch_M, length_M, strict=True)
    ]
    return edge_frozen_bytes(shape, splits, number_bytes) + sum(int(member) for member in members)


def _trained_numbers(
    layout: AdapterLayout, split: Split, parts: tuple[Part, ...], optimizer_kind: OptimizerKind
) -> int:
    """Trained tensors, their gradients and their moments."""
    copies = 2 + MOMENTS[optimizer_kind]
    return copies * sum(tensor.num_elements for tensor in layout.part(split, *parts))


def _saved_by_blocks(
    shape: ModelShape,
    layout: AdapterLayout,
    num_blocks: int,
    num_heads: int,
    batch: npt.ArrayLike,
    length: npt.ArrayLike,
) -> IntArray:
    texts, tokens = np.asarray(batch, np.int64), np.asarray(length, np.int64)
    block = shape.block
    per_token = (
        2 * shape.hidden_size
        + 3 * block.attention_width
        + _inner_states(block)
        + _adapter_inputs(block, layout)
        + layout.rank * len(layout.targets)
    )
    return num_blocks * (per_token * texts * tokens + num_heads * texts * tokens**2)


def _inner_states(block: BlockShape) -> int:
    """States of the MLP per token: before the activation; with a gate, the activated half and what it multiplies."""
    inner = block.linear(block.mlp_out).num_inputs
    return inner * (2 * len(block.mlp_in) - 1)


def _adapter_inputs(block: BlockShape, layout: AdapterLayout) -> int:
    """Inputs of the layers with an adapter per token; layers that read the same state share it."""
    readers = ({block.query, block.key, block.value}, {block.attention_out}, set(block.mlp_in), {block.mlp_out})
    adapted = [sorted(names & set(layout.targets)) for names in readers]
    return sum(block.linear(names[0]).num_inputs for names in adapted if names)


def _saved_by_head(shape: ModelShape, layout: AdapterLayout, batch: npt.ArrayLike, length: npt.ArrayLike) -> IntArray:
    texts, tokens = np.asarray(batch, np.int64), np.asarray(length, np.int64)
    rows = texts * tokens if shape.head[0].per_token else texts
    final_norm = shape.hidden_size if shape.tail_parameters else 0
    trained_inputs = sum(layer.linear.num_inputs for layer in shape.head if layer.linear.name in layout.trained_head)
    return rows * (final_norm + trained_inputs + shape.head[-1].linear.num_outputs)


def _at_the_cuts(shape: ModelShape, batch: npt.ArrayLike, length: npt.ArrayLike) -> IntArray:
    return 4 * shape.hidden_size * np.asarray(batch, np.int64) * np.asarray(length, np.int64)
