"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from elsa_ray.tasks.seeds import numpy_generator


def sample_clients(
    num_clients: int, participation: float, *, seed: int, round_index: int, absent: Collection[int] = ()
) -> npt.NDArray[np.int64]:
    """Return the sampled clients in order: ``participation`` of all, at least one, without those that are absent.

    The draw depends on seed and round alone, so that protocols can be compared on the same samples.
    """
    count = max(1, round(participation * num_clients))
    order = numpy_generator(seed, "participation", round_index).permutation(num_clients)
    drawn = np.sort(order[:count])
    return drawn[~np.isin(drawn, sorted(absent))].astype(np.int64)
