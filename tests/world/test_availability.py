"""When clients are there: by coin, chain, clock and trace; and who is asked must not matter to what is answered."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from elsa_ray.config.availability import Always, Bernoulli, Diurnal, FedScaleTrace, Markov, Trace
from elsa_ray.config.errors import InputError
from elsa_ray.world.availability import Availability, MarkovAvailability, make_availability
from elsa_ray.world.draws import uniforms
from elsa_ray.world.traces import read_behaviour_trace, read_device_capacities, read_intervals


def made(config: object, num_clients: int, seed: int = 0) -> Availability:
    availability = make_availability(config, num_clients, seed)  # type: ignore[arg-type]
    assert availability is not None
    return availability


def assert_consistent(availability: Availability, instants: Sequence[float]) -> None:
    """Hold what is said of the next change against who is there before and after it."""
    for instant in instants:
        there, off = availability.present(instant, 0), availability.off_seconds(instant)
        assert (off > instant).all() and not np.isfinite(off[~there]).any()
        arrival = availability.next_arrival(instant)
        assert arrival > instant
        if math.isfinite(arrival):
            assert (availability.present(arrival, 0) & ~there).any()
        first = float(off.min())
        if math.isfinite(first):
            client = int(np.argmin(off))
            assert there[client] and not availability.present(first, 0)[client]
            assert availability.present(np.nextafter(first, 0), 0)[client]


def test_a_draw_is_its_own_whoever_else_is_drawn_for() -> None:
    numbers = np.arange(100_000)
    drawn = uniforms(numbers, 7, "a purpose", 3)
    assert (uniforms([4], 7, "a purpose", 3)[0], uniforms([99_999], 7, "a purpose", 3)[0]) == (drawn[4], drawn[-1])
    assert drawn.min() > 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    # Chi-square with 99 degrees of freedom: 160 has a probability of about 1e-4.
    assert ((counts - 1000) ** 2 / 1000).sum() < 160
    for other in (uniforms(numbers, 8, "a purpose", 3), uniforms(numbers, 7, "a purpose", 4)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.015
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.015


def test_everybody_is_always_there_by_default() -> None:
    assert make_availability(Always(), 3, 0) is None


def test_a_coin_is_tossed_for_each_client_and_round() -> None:
    coin = made(Bernoulli(kind="bernoulli", probability=0.2), 20_000)
    first, second = coin.present(0.0, 0), coin.present(0.0, 1)
    assert abs(first.mean() - 0.2) < 0.01 and abs((first & second).mean() - 0.04) < 0.006
    assert np.array_equal(first, coin.present(1e9, 0)), "time has no part in it"
    assert np.isinf(coin.off_seconds(0.0)).all() and math.isinf(coin.next_arrival(0.0))


def test_the_chain_has_its_means_and_does_not_depend_on_when_it_is_asked() -> None:
    chain = made(Markov(kind="markov", mean_on_seconds=30, mean_off_seconds=10), 4000)
    for instant in (0.0, 25.0, 400.0):
        assert abs(chain.present(instant, 0).mean() - 0.75) < 0.025
    there = chain.present(400.0, 0)
    assert abs((chain.off_seconds(400.0)[there] - 400.0).mean() - 30) < 2
    again = MarkovAvailability(4000, 30, 10, 0)
    assert np.array_equal(again.present(400.0, 0), there)
    assert np.array_equal(again.present(25.0, 0), chain.present(25.0, 0)), "asked backwards too"
    assert_consistent(MarkovAvailability(5, 3.0, 2.0, 1), [0.0, 1.0, 5.5, 20.0, 4.0])


def test_the_clock_has_each_client_there_for_its_part_of_the_period() -> None:
    together = made(Diurnal(kind="diurnal", period_seconds=8, on_share=0.25, spread=0), 2)
    seen = [bool(together.present(instant, 0)[0]) for instant in (0.0, 1.0, 1.999, 2.0, 7.0, 8.0, 9.5, 10.0, 8e6)]
    assert seen == [True, True, True, False, False, True, True, False, True]
    assert (together.off_seconds(8.5).tolist(), together.next_arrival(2.0)) == ([10.0, 10.0], 8.0)
    spread = made(Diurnal(kind="diurnal", period_seconds=8, on_share=0.25), 10_000)
    for instant in (0.0, 3.0, 801.0):
        assert abs(spread.present(instant, 0).mean() - 0.25) < 0.02, "also at the very start"
    assert_consistent(made(Diurnal(kind="diurnal", period_seconds=8, on_share=0.25), 5), [0.0, 0.7, 3.0, 17.1, 802.9])
    whole = made(Diurnal(kind="diurnal", period_seconds=8, on_share=1.0), 5)
    assert whole.present(5.0, 0).all() and np.isinf(whole.off_seconds(5.0)).all()


class TestCsv:
    def write(self, folder: Path, *rows: str, header: str = "client,start_seconds,end_seconds,repeat_seconds") -> str:
        path = folder / "trace.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return str(path)

    def test_clients_are_there_in_their_intervals(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "1,5,7,", "0,0,2,", "0,2,3,", "2,1,3,10", "2,9,10,10", "2,0,1,10")
        trace = made(Trace(kind="trace", file=file), 4)
        assert [trace.present(s, 0).tolist() for s in (0.0, 3.0, 6.0, 12.5)] == [
            [True, False, True, False],
            [False, False, False, False],
            [False, True, False, False],
            [False, False, True, False],
        ]
        # Client 0's intervals touch, and so do client 2's from 9 over the end of its period to 13.
        assert trace.off_seconds(0.0).tolist() == [3.0, math.inf, 3.0, math.inf]
        assert trace.off_seconds(9.5).tolist() == [math.inf, math.inf, 13.0, math.inf]
        assert (trace.next_arrival(3.0), trace.next_arrival(7.0), trace.next_arrival(13.0)) == (5.0, 9.0, 19.0)
        assert_consistent(trace, [0.0, 3.0, 6.5, 9.5, 29.0, 33.0])

    def test_the_last_column_may_be_left_out(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "0,0.5,2", header="client,start_seconds,end_seconds")
        assert made(Trace(kind="trace", file=file), 1).off_seconds(1.0).tolist() == [2.0]

    def test_who_never_goes_never_goes(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "0,0,4,8", "0,4,8,8")
        assert np.isinf(made(Trace(kind="trace", file=file), 1).off_seconds(3.0)).all()

    @pytest.mark.parametrize(
        ("rows", "told"),
        [
            (["0,0,2,", "4,1,2,"], "row 2: client: found 4; allowed: a client's index, 0 to 3"),
            (["one,0,2,"], "row 1: client: found one; allowed: a finite number >= 0"),
            (["0,2,2,"], "row 1: end_seconds: found 2; allowed: a number above start_seconds"),
            (["0,-1,2,"], "row 1: start_seconds: found -1; allowed: a finite number >= 0"),
            (["0,1"], "row 1: end_seconds: found nothing; allowed: a finite number >= 0"),
            (["0,0,2,1"], "row 1: repeat_seconds: found 1; allowed: a number not below end_seconds, or nothing"),
            (["0,0,2,", "0,1,3,"], "row 2: start_seconds: found 1; allowed: at least 2, no overlap"),
            (["0,0,2,9", "0,3,4,8"], "row 2: repeat_seconds: found 8; allowed: 9, as this client's others"),
            ([], "found no row; allowed: at least one interval"),
        ],
    )
    def test_a_wrong_row_is_named(self, tmp_path: Path, rows: list[str], told: str) -> None:
        with pytest.raises(InputError) as error:
            read_intervals(self.write(tmp_path, *rows), 4)
        assert told in str(error.value)

    def test_a_wrong_file_is_named(self, tmp_path: Path) -> None:
        for file, told in (
            (
                self.write(tmp_path, header="client,start"),
                "found no column start_seconds; allowed: client, start_seconds",
            ),
            (str(tmp_path / "none.csv"), "No such file or directory; allowed: a readable CSV file"),
        ):
            with pytest.raises(InputError, match=told):
                read_intervals(file, 4)


USER = {
    "duration": 211625,
    "inactive": [65881, 133574],
    "finish_time": 518400,
    "active": [12788, 100044],
    "model": "CPH1801",
}


class _Harm:
    """What a hostile pickle would run."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


class TestFedScale:
    def write(self, folder: Path, content: object) -> str:
        path = folder / "client_trace"
        path.write_bytes(pickle.dumps(content))
        return str(path)

    def test_users_are_free_between_active_and_inactive_again_and_again(self, tmp_path: Path) -> None:
        trace = made(FedScaleTrace(kind="fedscale", file=self.write(tmp_path, {3834: USER})), 2)
        for start in (0.0, 518400.0):
            seen = [trace.present(start + s, 0).tolist() for s in (12787.0, 12788.0, 65880.0, 65881.0, 100044.0)]
            assert seen == [[False] * 2, [True] * 2, [True] * 2, [False] * 2, [True] * 2]
        assert trace.next_arrival(133574.0) == 518400.0 + 12788.0

    def test_users_are_dealt_by_seed_each_once_before_any_twice(self, tmp_path: Path) -> None:
        users = {number: {**USER, "active": [number], "inactive": [1000]} for number in range(1, 7)}
        file = self.write(tmp_path, users)
        dealt = [read_behaviour_trace(file, 9, seed).start_seconds.tolist() for seed in (0, 0, 1)]
        assert sorted(dealt[0][:6]) == [1, 2, 3, 4, 5, 6] and dealt[0][6:] == dealt[0][:3]
        assert dealt[0] == dealt[1] != dealt[2]

    def test_capacities_are_in_milliseconds_a_sample_and_kilobits_a_second(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, {432802: {"computation": 162.0, "communication": 5648.0}})
        capacities = read_device_capacities(file, 2, 0, flops_per_sample=1.62e9)
        assert capacities.flops_per_second.tolist() == [1e10, 1e10]
        assert capacities.bytes_per_second.tolist() == [706000.0, 706000.0]

    @pytest.mark.parametrize("numpy_name", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
    def test_numbers_of_numpy_are_read_as_the_published_file_has_them(self, tmp_path: Path, numpy_name: bytes) -> None:
        """Its 39.4 MB are the size of 500,000 users with two float64 each by protocol 3; plain numbers take 17.4 MB."""
        path = tmp_path / "client_device_capacity"
        users = {user: {"computation": np.float64(162.0), "communication": np.float64(5648.5)} for user in range(3)}
        path.write_bytes(pickle.dumps(users, protocol=3).replace(b"numpy._core.multiarray", numpy_name))
        capacities = read_device_capacities(str(path), 2, 0, flops_per_sample=1.62e9)
        assert capacities.flops_per_second.tolist() == [1e10, 1e10]
        assert capacities.bytes_per_second.tolist() == [706062.5, 706062.5]

    def test_numbers_of_numpy_keep_their_kind_and_order_of_bytes(self, tmp_path: Path) -> None:
        kinds = (np.int64, np.int32, np.uint32, np.uint64, np.float32, lambda value: np.array(value, ">f8")[()])
        numbers = [kind(40 + place) for place, kind in enumerate(kinds)]
        user = {**USER, "active": numbers[::2], "inactive": numbers[1::2]}
        intervals = read_behaviour_trace(self.write(tmp_path, {1: user}), 1, 0)
        assert intervals.start_seconds.tolist() == [40, 42, 44] and intervals.end_seconds.tolist() == [41, 43, 45]

    def test_no_code_in_a_file_is_run(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        harms = (_Harm(victim.touch), _Harm(exec, f"open({str(victim)!r}, 'w')"), _Harm(eval, "1"), np.ones(2))
        for harm in harms:
            file = self.write(tmp_path, {1: {**USER, "duration": harm}})
            for reading in (
                lambda file=file: read_behaviour_trace(file, 1, 0),
                lambda file=file: read_device_capacities(file, 1, 0, 1e9),
            ):
                with pytest.raises(
                    InputError, match="allowed: a pickle of plain dicts, lists, numbers and texts"
                ) as error:
                    reading()
                assert "\n" not in str(error.value)
        assert not victim.exists()

    @pytest.mark.parametrize(
        "pickled",
        [
            b"cnumpy._core.multiarray\nscalar\n(S'f8'\nS'12345678'\ntR.",  # no form
            b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'12345678'\ntR.",  # an object's form
            b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\ntRS'1234567'\ntR.",  # too short
            b"cnumpy._core.multiarray\nscalar\n}S'x'\nI1\nsb.",  # gives the maker of numbers an attribute
            b"cnumpy._core.multiarray\nscalar\n(N}S'__call__'\nI1\nstb.",
            b"cnumpy\ndtype\n.",
            b"cnumpy\ndtype.__init__\n.",
        ],
    )
    def test_what_stands_for_numpy_has_no_other_use(self, tmp_path: Path, pickled: bytes) -> None:
        path = tmp_path / "odd"
        path.write_bytes(pickled)
        with pytest.raises(InputError, match=r"allowed: a (pickle of plain dicts|dict with an entry)"):
            read_device_capacities(str(path), 1, 0, 1e9)
        self.test_numbers_of_numpy_are_read_as_the_published_file_has_them(tmp_path, b"numpy._core.multiarray")

    @pytest.mark.parametrize(
        ("entry", "told"),
        [
            ({**USER, "active": 3}, "user 1: active: found 3; allowed: a list of seconds"),
            ({**USER, "active": [1]}, "user 1: inactive: found 2 times; allowed: 1, as many as active"),
            ({**USER, "active": [70000, 100044]}, "user 1: found from 70000 to 65881; allowed: times in order"),
            ({**USER, "finish_time": 3}, "user 1: found from 100044 to 133574; allowed: times in order"),
            ({"active": [1], "inactive": [2]}, "user 1: finish_time: found nothing; allowed: a number > 0"),
            ({**USER, "active": [True, 100044]}, "user 1: active: found [True, 100044]; allowed: a list of seconds"),
            ([], "user 1: found list; allowed: a dict"),
        ],
    )
    def test_a_wrong_entry_is_named(self, tmp_path: Path, entry: object, told: str) -> None:
        with pytest.raises(InputError) as error:
            read_behaviour_trace(self.write(tmp_path, {1: entry}), 1, 0)
        assert told in str(error.value)

    def test_a_wrong_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "broken"
        path.write_bytes(b"client,start_seconds\n")
        for file, told in (
            (str(path), "allowed: a pickle of plain dicts"),
            (str(tmp_path / "none"), "No such file or directory; allowed: a readable file"),
            (self.write(tmp_path, [USER]), "found list; allowed: a dict with an entry for each user"),
        ):
            with pytest.raises(InputError, match=told):
                read_behaviour_trace(file, 1, 0)
