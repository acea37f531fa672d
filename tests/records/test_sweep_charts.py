"""A sweep's plots: which points are on the front, which rounds are averaged, and files that stand alone."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.config.sweep import Grid, load_grid
from elsa_ray.records.sweep_charts import mean_curve, pareto_front, sweep_plots
from elsa_ray.records.sweep_table import CellRecord, make_table
from tests.config.test_sweep import write_grid

NUMBERS = st.integers(0, 5).map(float)


def points_of(accuracies: list[float], seconds: float, first_round: int = 0) -> list[dict[str, float]]:
    return [
        {"round": index, "simulated_seconds": seconds * (index + 1), "num_bytes": 1, "accuracy": accuracy, "loss": 1.0}
        for index, accuracy in enumerate(accuracies, start=first_round)
    ]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=8))
def test_the_front_has_all_that_nobody_beats(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
    for i, (cost, gain) in enumerate(points):
        beaten = any((c <= cost and g > gain) or (c < cost and g >= gain) for c, g in points)
        assert (i in front) == (not beaten)


def test_a_curve_averages_rounds_that_all_runs_have() -> None:
    cells = [
        CellRecord("a", {}, 0, "finished", curve=points_of([0.2, 0.4, 0.9], 1.0)),
        CellRecord("a", {}, 1, "finished", curve=points_of([0.4, 0.5], 3.0)),
        CellRecord("a", {}, 2, "interrupted", curve=points_of([1.0], 9.0)),
    ]
    expected = [(2.0, 0.3), (4.0, 0.45)]
    found = mean_curve(cells, "accuracy", "simulated_seconds")
    assert [tuple(round(value, 12) for value in point) for point in found] == expected
    assert [x for x, _ in mean_curve(cells, "accuracy", "round")] == [1, 2], "people count rounds from 1"
    assert mean_curve(cells[2:], "accuracy", "round") == []


def records_of(grid: Grid, trained: bool) -> list[CellRecord]:
    records = []
    for number, cell in enumerate(grid.cells):
        accuracy = 0.5 + 0.01 * number if trained else None
        metrics = {"accuracy": accuracy, "simulated_seconds": 10.0 + number, "bytes_total": 1000 * (number + 1)}
        curve = points_of([0.1, 0.2, 0.5 + 0.01 * number], 2.0) if trained else []
        condition = cell.condition
        records.append(
            CellRecord(condition.row, dict(condition.values), cell.seed, "finished", metrics=metrics, curve=curve)
        )
    return records


def plots(tmp_path: Path, trained: bool = True) -> dict[str, tuple[str, str]]:
    metrics = ["accuracy", "simulated_seconds", "bytes_total"]
    rows = {"<elsa> & co": {}, "fedavg": {"protocol": {"name": "fedavg"}}}
    vary = {"protocol.batch_size": [2, 4]}
    grid = load_grid(write_grid(tmp_path, rows=rows, vary=vary, metrics=metrics, baseline=None))
    return sweep_plots(grid, make_table(grid, records_of(grid, trained)))


def test_each_plot_is_a_file_that_stands_alone(tmp_path: Path) -> None:
    drawn = plots(tmp_path)
    names = [name for name, _ in drawn.values()]
    assert names == [
        *("accuracy.svg", "simulated_seconds.svg", "bytes_total.svg", "pareto.svg"),
        *("accuracy-by-round.svg", "accuracy-by-simulated-seconds.svg"),
    ]
    for name, svg in drawn.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg", name
        assert "var(" not in svg and not re.search(r"(?:href|src)=\"(?!#)", svg), "nothing is left to a page"
        texts = "".join(ElementTree.fromstring(svg).itertext())
        assert "<elsa> & co, batch_size=2" in texts and "fedavg, batch_size=4" in texts
    assert drawn == plots(tmp_path), "the same figures, the same bytes"


def test_without_accuracy_only_what_is_known_is_drawn(tmp_path: Path) -> None:
    names = [name for name, _ in plots(tmp_path, trained=False).values()]
    assert names == ["simulated_seconds.svg", "bytes_total.svg"]
