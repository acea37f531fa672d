"""What the two ends remember of a client between its work items; it travels in the protocol's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from elsa_ray.codecs.chain import Memory
from elsa_ray.model.adapters import Adapters


@dataclass(frozen=True)
class CutMemory:
    """The calibrations of one client's codecs as one end holds them, for the first and for the second cut.

    The two ends hold different things: a key that never leaves its client is in the client's only.
    """

    first: Memory = ()
    second: Memory = ()


@dataclass(frozen=True)
class ClientMemory:
    """The client's end.

    Attributes:
        calibration: keys and bases.
        errors: what its adapter messages have lost so far, by tensor; empty without error feedback.
        first_sent: the adapters that it sent first, where its misbehaviour needs them.
    """

    calibration: CutMemory = CutMemory()
    errors: Mapping[str, Memory] = field(default_factory=dict)
    first_sent: Adapters | None = None


@dataclass(frozen=True)
class Memories:
    """Both ends of one client."""

    client: ClientMemory = ClientMemory()
    edge: CutMemory = CutMemory()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remember."""
        ends = (self.client.calibration, self.edge)
        held = any(end.first or end.second for end in ends)
        return not held and not self.client.errors and self.client.first_sent is None


NOTHING = Memories()

MemoriesOfClients = Mapping[int, Memories]
"""By client index; who is missing remembers nothing."""
