"""The interface of a codec, and what it declares about itself.

A codec maps rows to rows: T token vectors of width D become T rows of width E, and on the receiver's side back.
A calibrated codec first looks at some rows and makes tensors of them (a key, a basis) that both ends then work with.
Shapes: T rows, D width before, E width after, K side numbers a row.
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
    """

    seed: int = 0
    round_index: int = 0
    edge_round: int = 0
    step: int = -1
    client: int = -1
    role: str = ""
    memory: Tensors = ()
    tensor: int = 0

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
        values: [T, E]: floats, or a terminal codec's numbers in its ``number_format``.
        side: one tensor [T, K_i] for each entry of ``Codec.side_layout``.
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
        size_is_exact: ``width_out`` and ``side_layout`` give the exact size; else an upper bound.
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

    def side_layout(self, width: int) -> tuple[tuple[torch.dtype, int], ...]:
        """Return type and count K of the side numbers that each row of width D sends along."""
        return ()

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
        """Return the reconstruction [T, D], D = ``width``, as floats of the side numbers' or the values' type."""
