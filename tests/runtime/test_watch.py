"""What takes long is told, more and more seldom, and says what is waited for; a cohort tells where it is."""

import pickle
import time

import pytest

from elsa_ray.runtime.failure import WaitTimeoutError, WorkerError, WorkerLostError
from elsa_ray.runtime.watch import Watch
from elsa_ray.training.cohort import PlanMismatchError
from elsa_ray.training.failure import ClientError, Whereabouts
from elsa_ray.world.plan import WorkKey

KEYS = (WorkKey(0, 0, 3), WorkKey(0, 0, 5))


def test_the_longest_wait_is_told_of_when_its_age_has_doubled() -> None:
    said: list[str] = []
    watch = Watch(said.append)
    with watch.waiting("edge-group-0 to do gather") as first, watch.waiting("pool-1 to train cohort c"):
        for age in range(100):
            watch.look(first.since + age)
        first.what = "edge-group-0 to do what it says"
        watch.look(first.since + 200)
    assert said == [
        *(f"waiting {age} s for edge-group-0 to do gather (and 1 more)" for age in (10, 20, 40, 80)),
        "waiting 200 s for edge-group-0 to do what it says (and 1 more)",
    ]
    watch.look(time.monotonic() + 1000)
    assert len(said) == 5, "nothing is waited for any more"


class TestWhereabouts:
    def test_it_tells_stage_and_clients(self) -> None:
        where = Whereabouts(KEYS)
        with where.at("training"):
            where.step("step 0")
            assert where.now()[:2] == ("training: step 0", KEYS)
            with where.of_member(KEYS[1], "activation_up of step 0"):
                assert where.now()[:2] == ("training: activation_up of step 0", KEYS[1:])
            with where.waiting("the edge's answer"):
                assert where.now()[:2] == ("the edge's answer", ())
            assert where.now()[:2] == ("training", KEYS)

    def test_an_error_is_the_members_whose_turn_it_is(self) -> None:
        where = Whereabouts(KEYS)
        one, all_ = (rf"^training: round 0, client {who}: ValueError: bad$" for who in ("5: its data", "3, 5"))
        with (
            pytest.raises(ClientError, match=one) as caught,
            where.at("training"),
            where.of_member(KEYS[1], "its data"),
        ):
            raise ValueError("bad")
        assert caught.value.keys == KEYS[1:] and "raise ValueError" in caught.value.cause_traceback
        with pytest.raises(ClientError, match=all_) as caught, where.at("training"):
            raise ValueError("bad")
        assert caught.value.keys == KEYS

    @pytest.mark.parametrize(
        "error", [PlanMismatchError("size"), WorkerError("w"), WaitTimeoutError("w"), WorkerLostError("w", "cloud")]
    )
    def test_what_no_client_can_help_passes(self, error: Exception) -> None:
        with pytest.raises(type(error)) as caught, Whereabouts(KEYS).at("training"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [ClientError("c", KEYS, "trace"), WorkerError("w", "trace"), WorkerLostError("w", "cloud", "trace")],
)
def test_errors_travel_whole(error: Exception) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error) and vars(there) == vars(error) and str(there) == str(error)
