from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from elsa_ray.records.human import (
    human_bandwidth,
    human_bytes,
    human_joules,
    human_number,
    human_ratio,
    human_seconds,
    human_share,
)
from elsa_ray.records.log import logged_to
from elsa_ray.records.progress import RunProgress, print_start, print_summary
from tests.records.conftest import Recorded


def _console(**options: object) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=150, **options), stream  # type: ignore[arg-type]


def test_without_a_terminal_each_round_is_a_line(trained: Recorded) -> None:
    console, stream = _console()
    with RunProgress(trained.prepared.setting, console) as progress:
        progress.status("starting [2 pools]")
        for finished in trained.rounds:
            progress.round(finished)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "starting [2 pools]"
    assert len(lines) == 3
    assert lines[1].startswith("round 1/2: 6 of 6 clients") and "accuracy" in lines[1]


def test_a_terminal_gets_a_bar(dropping: Recorded) -> None:
    console, stream = _console(force_terminal=True)
    with RunProgress(dropping.prepared.setting, console) as progress:
        for finished in dropping.rounds:
            progress.round(finished)
    assert "2/2" in stream.getvalue() and "dropped" in stream.getvalue()


def test_the_start_tells_the_defaults_that_shape_the_result(trained: Recorded) -> None:
    console, stream = _console()
    print_start(trained.prepared.setting, console)
    for needed in (
        "10 Mbit/s",
        "15 ms",
        "20 GFLOP/s",
        "fp32",
        "int8",
        "96 training",
        "3 labels",
        "split 1 + 1",
        "model fluid",
        "when all have",
    ):
        assert needed in stream.getvalue()


def test_the_end_tells_the_summary(trained: Recorded, timed: Recorded) -> None:
    for run in (trained, timed):
        console, stream = _console()
        print_summary(json.loads((run.path / "summary.json").read_text()), run.path, console)
        assert ("accuracy" in stream.getvalue()) == (run is trained)
        assert str(run.path) in stream.getvalue().replace("\n", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (human_bytes(0), "0 B"),
        (human_bytes(999), "999 B"),
        (human_bytes(999_600), "1 MB"),
        (human_bytes(17_895_320), "17.9 MB"),
        (human_bandwidth(10e6 / 8), "10 Mbit/s"),
        (human_seconds(0), "0 ms"),
        (human_seconds(0.015), "15 ms"),
        (human_seconds(1.655), "1.66 s"),
        (human_seconds(99.99), "1 min 40 s"),
        (human_seconds(3599.9), "1 h 00 min"),
        (human_seconds(7500), "2 h 05 min"),
        (human_seconds(300_000), "3 d 11 h"),
        (human_seconds(float("inf")), "–"),
        (human_joules(4200), "4.2 kJ"),
        (human_share(0.952), "95.2 %"),
        (human_number(12_000), "12,000"),
        (human_number(None), "–"),
        (human_ratio(3.916), "3.92×"),
    ],
)
def test_units_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_the_log_belongs_to_the_run_alone(tmp_path: Path) -> None:
    logger = logging.getLogger("elsa_ray")
    before = (logger.level, list(logger.handlers), logging.getLogger().handlers[:])
    logging.getLogger("elsa_ray.records").info("too early")
    with logged_to(tmp_path / "run.log"):
        logging.getLogger("elsa_ray.records").info("hello ä")
        logging.getLogger("elsa_ray.records").debug("too much")
        logging.getLogger("another").warning("not ours")
    logging.getLogger("elsa_ray.records").warning("too late")
    (line,) = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith("INFO elsa_ray.records: hello ä")
    assert (logger.level, logger.handlers, logging.getLogger().handlers) == before
