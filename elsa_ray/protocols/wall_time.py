"""What the host's wall time is spent on, in the words that workers, records and the terminal share."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class WallStage(StrEnum):
    """What an actor's wall time is spent on; at any moment it is one of these."""

    COMPUTE = "compute"
    """Training, testing, aggregating; of the driver: planning, playing the network, concluding, recording."""
    CODEC = "codec"
    """Encoding and decoding payloads."""
    MESSAGES = "messages"
    """Handing over calls and results: the process works, but for nobody's training."""
    WAITING = "waiting"
    """Nothing to do."""


WallSeconds = Mapping[WallStage, float]

DRIVER = "driver"
"""The process that plans and conducts, among the names of actors."""
