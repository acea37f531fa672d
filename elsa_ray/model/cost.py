"""What training costs: matrix-product FLOPs from the model's shape, and the bytes of frozen blocks.

The formulas count a multiply-add as two operations and only matrix products, as torch's own counter does; tests hold
them equal to that counter with eager attention. A backward pass through a frozen layer makes the gradient of its input
alone; below the first adapter nothing is computed.

Shapes: B texts, S tokens each (arrays of any one shape; the results have it too).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elsa_ray.config.errors import InputError
from elsa_ray.model.adapters import AdapterLayout
from elsa_ray.model.shape import BlockShape, LinearShape, ModelShape
from elsa_ray.model.split import Part, Split

IntArray = npt.NDArray[np.int64]
_MOST_FLOPS = 2.0**63
"""Operations are int64."""


@dataclass(frozen=True)
class Flops:
    """Operations per token (T = B·S) and per pair of tokens (B·S²), so that they can be taken for many shapes."""

    per_token: int = 0
    per_pair: int = 0
    per_text: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.per_token + other.per_token, self.per_pair + other.per_pair, self.per_text + other.per_text)

    def total(self, batch_B: Any, length_S: Any) -> Any:
        """Return the operations for B texts of S tokens, as int64.

        Raises:
            InputError: they are more than int64 holds.
        """
        batch, length = np.asarray(batch_B, np.int64), np.asarray(length_S, np.int64)
        texts, tokens = float(batch.max(initial=0)), float(length.max(initial=0))
        _check_countable(self.per_token * texts * tokens + self.per_pair * texts * tokens**2 + self.per_text * texts)
        return self.per_token * batch * length + self.per_pair * batch * length**2 + self.per_text * batch


@dataclass(frozen=True)
class StepFlops:
    """One training step of the five computations between the messages of a split step (methods.md 1.9).

    In an uncut model everything is in ``front_forward`` and ``front_backward``.
    """

    front_forward: Flops
    middle_forward: Flops
    back_forward_backward: Flops
    middle_backward: Flops
    front_backward: Flops

    @property
    def whole(self) -> Flops:
        """The sum over the parts."""
        parts = (self.front_forward, self.middle_forward, self.back_forward_backward, self.middle_backward)
        return sum(parts, self.front_backward)


def flops_of_steps(flops_WT: IntArray) -> IntArray:
    """Return the operations [W] of all steps together.

    Raises:
        InputError: they are more than int64 holds.
    """
    _check_countable(float(flops_WT.sum(axis=1, dtype=np.float64).max(initial=0.0)))
    return flops_WT.sum(axis=1)


def _check_countable(flops: float) -> None:
    if flops >= _MOST_FLOPS:
        allowed = f"less than {_MOST_FLOPS:.2g}: fewer or shorter samples, steps, epochs, or a smaller model"
        raise InputError("task", f"one computation of {flops:.3g} FLOPs", allowed)


def step_flops(shape: ModelShape, layout: AdapterLayout, split: Split) -> StepFlops:
    """Return the cost of one training step under a split.

    At a cut the receiver's input always needs a gradient: it is the message that goes back.
    """
    front_forward, front_backward, reached = _blocks(shape, layout, split.layers(Part.FRONT), input_has_grad=False)
    middle_forward, middle_backward, reached = _blocks(
        shape, layout, split.layers(Part.MIDDLE), input_has_grad=reached or split.is_cut
    )
    back_forward, back_backward, reached = _blocks(
        shape, layout, split.layers(Part.BACK), input_has_grad=reached or split.is_cut
    )
    head = _head(shape, layout, input_has_grad=reached)
    if not split.is_cut:
        return StepFlops(front_forward + head, Flops(), Flops(), Flops(), front_backward)
    back = back_forward + back_backward + head
    return StepFlops(front_forward, middle_forward, back, middle_backward, front_backward)


def forward_flops(shape: ModelShape, layout: AdapterLayout, split: Split) -> dict[Part, Flops]:
    """Return the cost of a forward pass without gradients of each part; the head is in the back."""
    flops = {part: _blocks(shape, layout, split.layers(part), input_has_grad=False)[0] for part in Part}
    head = Flops()
    for layer in shape.head:
        products = _product(layer.linear)
        head += Flops(per_token=products) if layer.per_token else Flops(per_text=products)
    return {**flops, Part.BACK: flops[Part.BACK] + head}


def blocks_num_bytes(shape: ModelShape, num_blocks: int, bytes_per_number: int) -> int:
    """Return the bytes of so many frozen blocks."""
    return num_blocks * shape.block.num_parameters * bytes_per_number


def frozen_num_bytes(shape: ModelShape, split: Split, part: Part, bytes_per_number: int) -> int:
    """Return the bytes of a part's frozen weights: what ``weights_down`` carries to a node.

    In an uncut model everything is in the front.
    """
    numbers = len(split.layers(part)) * shape.block.num_parameters
    if part is Part.FRONT:
        numbers += shape.embedding_parameters
    if part is (Part.BACK if split.is_cut else Part.FRONT):
        head = 0 if shape.tied_head else sum(layer.linear.num_parameters for layer in shape.head)
        numbers += shape.tail_parameters + head
    return numbers * bytes_per_number


def _blocks(
    shape: ModelShape, layout: AdapterLayout, layers: range, *, input_has_grad: bool
) -> tuple[Flops, Flops, bool]:
    forward, backward, has_grad = Flops(), Flops(), input_has_grad
    for _ in layers:
        block_forward, block_backward, has_grad = _block(shape.block, layout, has_grad)
        forward, backward = forward + block_forward, backward + block_backward
    return forward, backward, has_grad


def _block(block: BlockShape, layout: AdapterLayout, input_has_grad: bool) -> tuple[Flops, Flops, bool]:
    """Follow the gradient through a block: what needs one costs its backward product, what does not costs nothing."""
    forward = backward = 0

    def through(name: str, has_grad: bool) -> bool:
        nonlocal forward, backward
        linear = block.linear(name)
        adapted = name in layout.targets
        forward += _product(linear)
        backward += _product(linear) if has_grad else 0
        if adapted:
            low_rank = 2 * layout.rank * (linear.num_inputs + linear.num_outputs)
            forward += low_rank
            input_share = 0 if has_grad else 2 * layout.rank * linear.num_inputs
            backward += 2 * low_rank - input_share
        return has_grad or adapted

    attention_inputs = {
        name: through(name, input_has_grad) for name in dict.fromkeys((block.query, block.key, block.value))
    }
    query, key, value = attention_inputs[block.query], attention_inputs[block.key], attention_inputs[block.value]
    product_per_pair = 2 * block.attention_width
    weights_have_grad = query or key
    backward_products = query + key + weights_have_grad + value
    attended = through(block.attention_out, weights_have_grad or value)
    middle_has_grad = input_has_grad or attended
    inner = [through(name, middle_has_grad) for name in block.mlp_in]
    outer = through(block.mlp_out, any(inner))
    return (
        Flops(forward, 2 * product_per_pair),
        Flops(backward, backward_products * product_per_pair),
        middle_has_grad or outer,
    )


def _head(shape: ModelShape, layout: AdapterLayout, *, input_has_grad: bool) -> Flops:
    """Forward and backward of the layers behind the blocks; a trained one also makes its weight's gradient."""
    total, has_grad = Flops(), input_has_grad
    for layer in shape.head:
        trained = layer.linear.name in layout.trained_head
        products = _product(layer.linear) * (1 + has_grad + trained)
        total += Flops(per_token=products) if layer.per_token else Flops(per_text=products)
        has_grad = has_grad or trained
    return total


def _product(linear: LinearShape) -> int:
    return 2 * linear.num_inputs * linear.num_outputs
