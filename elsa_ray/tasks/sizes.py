"""How many samples each client has, where a data set is sizes only: a number for all, or a draw for each.

Shapes: C clients.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import DrawnSizes, LognormalSizes, NormalSizes, ParetoSizes, SizeRange, SizesDataset
from elsa_ray.tasks.seeds import numpy_generator

Ints = npt.NDArray[np.int64]
_MOST_SAMPLES = 2**40
"""Of all clients together: positions of examples are int64, and sums over them must be so too."""


def draw_sizes(config: SizesDataset, num_clients: int, seed: int) -> Ints:
    """Return the samples [C] of each client; the same seed gives the same sizes.

    Draws are rounded to the nearest whole number; no client has less than one sample.

    Raises:
        InputError: the clients together have more samples than can be counted.
    """
    sizes = config.sizes
    if isinstance(sizes, int):
        drawn = np.full(num_clients, sizes, np.int64)
    elif isinstance(sizes, SizeRange):
        generator = numpy_generator(seed, "sizes")
        drawn = generator.integers(sizes.min, sizes.max, size=num_clients, endpoint=True)
    else:
        drawn = _rounded(_draw(sizes, num_clients, numpy_generator(seed, "sizes")), sizes)
    if float(drawn.sum(dtype=np.float64)) > _MOST_SAMPLES:
        found = f"{drawn.sum(dtype=np.float64):.3g} samples of all clients together"
        raise InputError("task.dataset.sizes", found, f"at most {_MOST_SAMPLES:.3g}; a distribution may have a max")
    return drawn


def sizes_sha256(sizes_C: Ints, length: int) -> str:
    """Return the hash (hexadecimal) of sizes and of the length that each sample is planned at."""
    return hashlib.sha256(length.to_bytes(8, "big") + sizes_C.astype(">i8").tobytes()).hexdigest()


def _draw(sizes: DrawnSizes, num_clients: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    if isinstance(sizes, LognormalSizes):
        # The mean of exp(N(mu, sigma²)) is exp(mu + sigma² / 2).
        mu = math.log(sizes.lognormal.mean) - sizes.lognormal.sigma**2 / 2
        return generator.lognormal(mu, sizes.lognormal.sigma, num_clients)
    if isinstance(sizes, ParetoSizes):
        return sizes.pareto.min * (1 + generator.pareto(sizes.pareto.shape, num_clients))
    assert isinstance(sizes, NormalSizes)
    return generator.normal(sizes.normal.mean, sizes.normal.sigma, num_clients)


def _rounded(drawn: npt.NDArray[np.float64], sizes: DrawnSizes) -> Ints:
    most = _MOST_SAMPLES if sizes.max is None else sizes.max
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)
