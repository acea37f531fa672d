"""Where a model is cut: front blocks on the client, middle blocks on the edge, back blocks on the client again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from elsa_ray.config.errors import InputError


class Part(StrEnum):
    """A part of a split model. The embeddings belong to the front, pooler and head to the back."""

    FRONT = "front"
    MIDDLE = "middle"
    BACK = "back"


@dataclass(frozen=True, order=True)
class Split:
    """Numbers of blocks of the three parts: p, q and o of methods.md 1.8.

    ``middle == 0`` means that nothing leaves the client: the whole model is trained there (federated averaging).
    """

    front: int
    middle: int
    back: int

    @property
    def num_layers(self) -> int:
        """Blocks of the whole model."""
        return self.front + self.middle + self.back

    @property
    def is_cut(self) -> bool:
        """Whether hidden states cross to an edge."""
        return self.middle > 0

    def layers(self, part: Part) -> range:
        """Return the absolute indices of the part's blocks."""
        second_cut = self.front + self.middle
        bounds = {
            Part.FRONT: range(0, self.front),
            Part.MIDDLE: range(self.front, second_cut),
            Part.BACK: range(second_cut, self.num_layers),
        }
        return bounds[part]

    def part_of(self, layer: int | None) -> Part:
        """Return the part that holds a block, or the head (``None``)."""
        if layer is None:
            return Part.BACK
        if layer < self.front:
            return Part.FRONT
        return Part.MIDDLE if layer < self.front + self.middle else Part.BACK


def cut(num_layers: int, front: int, back: int) -> Split:
    """Return the split of a model with ``num_layers`` blocks.

    Raises:
        InputError: no block is left for the edge.
    """
    middle = num_layers - front - back
    if middle < 1:
        raise InputError(
            "protocol.split",
            f"front {front} + back {back} of {num_layers} blocks",
            f"front >= 1, back >= 0, front + back <= {num_layers - 1}, so that the edge has a block",
        )
    return Split(front, middle, back)


def whole(num_layers: int) -> Split:
    """Return the split that keeps the whole model on the client."""
    return Split(num_layers, 0, 0)
