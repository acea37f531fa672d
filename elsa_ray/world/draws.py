"""Random draws for many clients at once: the same number for the same purpose, round and client, whoever asks.

A generator for each client would cost more than all that it decides. Here a seed is hashed for the purpose, and each
client's (or row's) number is mixed into it by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from elsa_ray.tasks.seeds import derive_seed
from elsa_ray.world.plan import Floats

_STEP = np.uint64(0x9E3779B97F4A7C15)


def uniforms(numbers: npt.ArrayLike, *purpose: int | str) -> Floats:
    """Return for each number (a client's, or a row's) a draw in the open interval (0, 1).

    Args:
        numbers: >= 0, of any shape.
        purpose: what is hashed into the seed, such as the run's seed, a name and the round.
    """
    key = np.array(derive_seed(*purpose), np.uint64)
    mixed = _mix(key + _STEP * (np.asarray(numbers).astype(np.uint64) + np.uint64(1)))
    # 52 bits, and half a step, so that neither 0 nor 1 occurs.
    return ((_mix(mixed ^ key) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
