from __future__ import annotations

import io

from rich.console import Console

from elsa_ray.records.compare_breakdown import ComparedFigure, compare_breakdowns, print_breakdowns
from elsa_ray.records.human import human_seconds
from elsa_ray.records.reading import read_run
from tests.records.conftest import Recorded


def figure(before: float | None, after: float | None) -> ComparedFigure:
    return ComparedFigure("the rounds", "sharing", (before, after), human_seconds)


def printed(kind: str, *runs: Recorded) -> str:
    stream = io.StringIO()
    print_breakdowns([run.path for run in runs], kind, Console(file=stream, width=200))
    return stream.getvalue()


def test_differences_are_signed_and_in_percent() -> None:
    assert figure(2.0, 3.0).difference() == "+1 s (+50%)"
    assert figure(2.0, 0.5).difference() == "−1.5 s (−75%)"
    assert figure(None, 2.0).difference() == "+2 s"
    assert figure(2.0, None).difference() == "−2 s (−100%)"
    assert figure(2.0, 2.0 + 1e-12).difference() == "="


def test_figures_are_those_of_the_runs(trained: Recorded, dropping: Recorded) -> None:
    compared = {(one.group, one.name): one.values for one in compare_breakdowns([trained.path, dropping.path])}
    for place, run in enumerate((trained, dropping)):
        figures = read_run(run.path).figures
        assert (
            sum(values[place] or 0 for (group, _), values in compared.items() if group == "bytes")
            == (figures["bytes_total"])
        )
        assert compared["memory", "edge"][place] == figures["breakdown"]["memory_bytes"]["edge"]
        rounds = sum(values[place] or 0 for (group, _), values in compared.items() if group == "the rounds")
        assert abs(rounds - figures["simulated_seconds"]) < 1e-9


def test_two_runs_have_a_column_of_differences(trained: Recorded, dropping: Recorded) -> None:
    for kind in ("table", "md"):
        assert "difference" in printed(kind, trained, dropping)
        assert "difference" not in printed(kind, trained, dropping, trained)
        assert "activation up" in printed(kind, trained)
    header, rule, *lines = printed("md", trained, dropping).strip().splitlines()
    assert {line.count("|") for line in (header, rule, *lines)} == {6}
    assert printed("json", trained, dropping) == printed("csv", trained, dropping) == ""
