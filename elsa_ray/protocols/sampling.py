"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from elsa_ray.tasks.seeds import numpy_generator


def sampled_share(participation: float, over_sample: float | None) -> float:
    """Return the share of all clients that is sampled: ``over_sample`` times what is wanted, at most all."""
    return min(1.0, (over_sample or 1.0) * participation)


def sample_clients(
    num_clients: int, participation: float, *, seed: int, round_index: int, absent: Collection[int] = ()
) -> npt.NDArray[np.int64]:
    """Return the sampled clients in order: ``participation`` of all, at least one, of those that are not absent.

    The draw depends on seed and round alone, so that protocols can be compared on the same samples; a client that is
    absent gives its place to the next one of the draw.
    """
    count = max(1, round(participation * num_clients))
    order = numpy_generator(seed, "participation", round_index).permutation(num_clients)
    present = order[~np.isin(order, sorted(absent))]
    return np.sort(present[:count]).astype(np.int64)
