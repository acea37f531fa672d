"""The interface of a codec, and what it declares about itself.

A codec maps rows to rows: T token vectors of width D become T rows of width E, and on the receiver's side back. It may
also send fewer rows than it gets: then ``rows_out`` says how many.
A calibrated codec first looks at some rows and makes tensors of them (a key, a basis) that both ends then work with.
Shapes: T rows before, T' after, D width before, E width after, K side numbers a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from elsa_ray.config.section import Section
from elsa_ray.world.roles import Role

Tensors = tuple[Tensor, ...]


class Maker(Enum):
    """Who makes a codec's calibration, and how many there are."""

    CLIENT = "client"
    """The client makes one of what it sends at the first cut; it serves the messages of both cuts."""
    SENDER = "sender"
    """Each cut has its own, made by the sender of its activations: the client at the first, the edge at the second."""


@dataclass(frozen=True)
class Calibration:
    """What a calibrated codec declares about its calibration.

    Attributes:
        maker: who makes it.
        role: of the message that carries it to the other end: KEY or BASIS; None if it never leaves its maker.
        refresh_rounds: global rounds after which it is made anew.
    """

    maker: Maker
    role: Role | None
    refresh_rounds: int


@dataclass(frozen=True)
class CodecContext:
    """What both ends know about a message without sending it; randomness may depend on nothing else.

    Attributes:
        seed: the run's seed.
        round_index, edge_round, step: when; ``step`` is -1 for adapters.
        client: index of the client; between the cloud and an edge -2 minus the edge's node index.
        role: the payload's role label.
        memory: what this end holds for the stage (its calibration, the error it has kept); empty where it holds none.
        tensor: position of the tensor in its message; 0 but for adapters.
        num_rows: T, rows in front of the stage; the chain sets it.
    """

    seed: int = 0
    round_index: int = 0
    edge_round: int = 0
    step: int = -1
    client: int = -1
    role: str = ""
    memory: Tensors = ()
    tensor: int = 0
    num_rows: int = -1

    @property
    def moment(self) -> tuple[int | str, ...]:
        """Which message and tensor of the run this is: what fresh randomness is derived from, with a purpose."""
        return self.seed, self.round_index, self.edge_round, self.step, self.client, self.role, self.tensor

    @property
    def is_gradient(self) -> bool:
        """Whether the message carries a gradient."""
        return self.role in (Role.GRADIENT_UP.label, Role.GRADIENT_DOWN.label)


@dataclass(frozen=True)
class Rows:
    """Rows on their way through a chain.

    Attributes:
        values: [T', E]: floats, or a terminal codec's numbers in its ``number_format``.
        side: one tensor [T', K_i] for each entry of ``Codec.side_layout_for``.
    """

    values: Tensor
    side: tuple[Tensor, ...] = ()


class Codec(ABC):
    """One stage of a chain. Subclass it, give it a ``Config`` model, and name it in the config.

    Attributes:
        Config: the pydantic model of the codec's parameters, with a field ``kind``.
        number_format: None if the output is floats that a further codec may take; else the wire type of the output,
            and the codec must be the last of its chain.
        linear: encode and decode together are a linear map.
        unbiased: the decoded value's expectation over the codec's own randomness is the input.
        lossless: decode undoes encode, up to the rounding of floats; gradients pass it unchanged.
        straight_through: gradients pass as if the codec were the identity; else they take the exact adjoint of
            encode and decode, which must then be built of differentiable torch operations.
        size_is_exact: ``width_out``, ``rows_out`` and the side layout give the exact size; else an upper bound.
        calibration: None for a codec that needs none; else ``calibration_layout`` and ``calibrate`` are defined.
    """

    Config: ClassVar[type[Section]]
    number_format: torch.dtype | None = None
    linear: bool = False
    unbiased: bool = False
    lossless: bool = False
    straight_through: bool = True
    size_is_exact: bool = True
    calibration: Calibration | None = None

    def __init__(self, config: Any) -> None:
        self.config = config

    def width_out(self, width: int) -> int:
        """Return E for rows of width D."""
        return width

    def rows_out(self, num_rows: Any) -> Any:
        """Return T' for T rows, an integer or an array of them; both ends know T."""
        return num_rows

    def side_layout(self, width: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return type and count K of the side numbers that each row sends along, for rows of width D in front."""
        return ()

    def side_layout_for(self, width: int, num_rows: Any) -> tuple[tuple[torch.dtype, Any], ...]:
        """Return the side layout where T rows, an integer or an array of them, are in front: then K may depend on T.

        This is what a chain asks; a codec whose layout does not depend on T defines ``side_layout`` only.
        """
        return self.side_layout(width)

    def calibration_layout(self, width: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Return type and shape of each tensor of the calibration for rows of width D, as they travel."""
        return ()

    def calibrate(self, x_TD: Tensor, context: CodecContext) -> Tensors:
        """Return the calibration made of some rows; tensors of ``calibration_layout``."""
        raise NotImplementedError(f"{type(self).__name__} declares no calibration")

    @abstractmethod
    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return the rows to send."""

    @abstractmethod
    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return the reconstruction [T, D], D = ``width``, as floats of the side numbers' or the values' type.

        T is ``context.num_rows``; without ``rows_out`` it is the number of the received rows.
        """
