"""Random numbers of the network's generators: each purpose has its own, hashed from the run's seed."""

from __future__ import annotations

import hashlib

import numpy as np


def generator_of(seed: int, purpose: str) -> np.random.Generator:
    """Return random numbers that depend on the run's seed and the purpose only."""
    return np.random.default_rng(number_of(seed, purpose))


def number_of(seed: int, purpose: str) -> int:
    """Return one large number, which seeds what has random numbers of its own."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest, "big")
