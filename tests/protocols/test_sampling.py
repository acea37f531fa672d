"""Who takes part in a round."""

import numpy as np

from elsa_ray.protocols.sampling import sample_clients


def test_the_configured_share_takes_part_whoever_is_absent() -> None:
    for round_index in range(50):
        sampled = sample_clients(10, 0.3, seed=1, round_index=round_index, absent={0, 1, 2, 3, 4})
        assert len(sampled) == 3 and sampled.min() >= 5
        assert np.array_equal(sampled, np.unique(sampled))


def test_at_least_one_client_takes_part_while_any_is_there() -> None:
    assert sample_clients(5, 0.01, seed=0, round_index=0, absent={0, 1, 2, 4}).tolist() == [3]
    assert sample_clients(2, 1.0, seed=0, round_index=0, absent={0, 1}).tolist() == []


def test_an_absent_client_gives_its_place_to_the_next_and_changes_nothing_else() -> None:
    everybody = set(sample_clients(20, 0.5, seed=3, round_index=7).tolist())
    gone = min(everybody)
    without = set(sample_clients(20, 0.5, seed=3, round_index=7, absent={gone}).tolist())
    assert len(without) == 10 and len(without & everybody) == 9
