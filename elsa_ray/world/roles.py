"""What a transfer carries."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """The role of a payload; the numbers are part of the wire format."""

    ACTIVATION_UP = 1
    ACTIVATION_DOWN = 2
    GRADIENT_UP = 3
    GRADIENT_DOWN = 4
    ADAPTER_UP = 5
    ADAPTER_DOWN = 6
    PROBE = 7
    FINGERPRINT = 8
    KEY = 9
    BASIS = 10
    WEIGHTS_DOWN = 11
    CONTROL = 12

    @property
    def label(self) -> str:
        """The name in records, such as ``activation_up``."""
        return self.name.lower()
