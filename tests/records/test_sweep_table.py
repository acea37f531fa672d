"""A sweep's tables from records that were made by hand: means, differences, what is missing, and how it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.sweep import Grid, SweepConfig, load_grid
from elsa_ray.records.json_text import json_text
from elsa_ray.records.reading import read_run
from elsa_ray.records.statistics import Estimate, estimate
from elsa_ray.records.sweep_table import (
    BYTES_TO_TARGET,
    SECONDS_TO_TARGET,
    CellRecord,
    check_metrics,
    finished_record,
    make_table,
    metric_text,
    results_json,
    results_markdown,
)
from tests.config.test_sweep import write_grid
from tests.records.conftest import Recorded

ABOUT = {
    "executor": "inline",
    "precision": "fp32",
    "hardware": {"cpus": 2, "workers": [{"workers": "pools", "count": 1}]},
    "versions": {"python": "3.11"},
}


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    rows = {"elsa": {}, "a|b": {"protocol.rounds": 1}}
    metrics = ["accuracy", "simulated_seconds", "bytes_total"]
    return load_grid(write_grid(tmp_path, rows=rows, seeds=[0, 1, 2], metrics=metrics))


def records_of(grid: Grid, figures: dict[tuple[str, int], dict[str, float | None]]) -> list[CellRecord]:
    """Return a record a cell: finished where there are figures."""
    records = []
    for cell in grid.cells:
        metrics = figures.get((cell.condition.row, cell.seed))
        if metrics is None:
            records.append(CellRecord(cell.condition.row, {}, cell.seed, "failed", message="elsa-ray: out of luck"))
            continue
        records.append(
            CellRecord(
                cell.condition.row,
                {},
                cell.seed,
                "finished",
                folder=f"cells/{cell.slug}",
                date=f"2026-11-2{cell.seed}T10:00:00+00:00",
                metrics=metrics,
                about=ABOUT,
            )
        )
    return records


FIGURES: dict[tuple[str, int], dict[str, float | None]] = {
    ("elsa", 0): {"accuracy": 0.90, "simulated_seconds": 10.0, "bytes_total": 1000},
    ("elsa", 1): {"accuracy": 0.92, "simulated_seconds": 11.0, "bytes_total": 1000},
    ("elsa", 2): {"accuracy": 0.94, "simulated_seconds": 12.0, "bytes_total": 1000},
    ("a|b", 0): {"accuracy": 0.91, "simulated_seconds": 10.0, "bytes_total": 400},
    ("a|b", 2): {"accuracy": None, "simulated_seconds": 14.0, "bytes_total": 600},
}


def test_means_and_paired_differences(grid: Grid) -> None:
    elsa, other = make_table(grid, records_of(grid, FIGURES))
    assert elsa.differences is None and (elsa.num_finished, len(elsa.cells)) == (3, 3)
    assert elsa.means["accuracy"] == estimate([0.90, 0.92, 0.94])
    assert elsa.means["bytes_total"] == Estimate(3, 1000, 0.0)
    assert (other.num_finished, len(other.cells)) == (2, 3)
    assert other.means["accuracy"] == Estimate(1, 0.91, None), "a run without the figure is not averaged"
    assert other.differences is not None
    # Seeds 0 and 2, for seed 1 is missing: -600 and -400; mean -500, 12.7062 * (200 / sqrt 2) / sqrt 2 = 1270.62.
    assert other.differences["bytes_total"].mean == -500
    assert other.differences["bytes_total"].half_width == pytest.approx(1270.62, rel=1e-5)
    assert other.differences["simulated_seconds"].mean == 1.0, "not 12 - 11 over all seeds, by chance: (0 + 2) / 2"
    assert other.differences["accuracy"].num_values == 1
    assert other.differences["accuracy"].mean == pytest.approx(0.01)


def test_the_page_tells_what_is_missing(grid: Grid) -> None:
    records = records_of(grid, FIGURES)
    page = results_markdown(grid, records, make_table(grid, records), {"Accuracy by row": "plots/accuracy.svg"})
    lines = page.splitlines()
    assert "- runs: 2 rows × 3 seeds = 6 runs, 5 finished; seeds 0, 1, 2" in lines
    assert "- date: 2026-11-20 to 2026-11-22" in lines
    assert "- hardware: cpus 2" in lines and "- versions: python 3.11" in lines
    assert "| elsa | 3/3 | 92.0 % ± 5.0 % | 11 s ± 2.48 s | 1 kB ± 0 B |" in lines
    assert "| a\\|b | 2/3 | 91.0 % (n = 1) | 12 s ± 25.4 s | 500 B ± 1.27 kB |" in lines
    assert "## Differences to elsa, paired by seed" in lines
    assert "| a\\|b | +1.0 pp (n = 1) | +1 s ± 12.7 s | −500 B ± 1.27 kB |" in lines
    assert "| a\\|b |  | 1 | failed | elsa-ray: out of luck |" in lines
    assert "![Accuracy by row](plots/accuracy.svg)" in lines


def test_nothing_finished_makes_a_page_too(grid: Grid) -> None:
    records = records_of(grid, {})
    page = results_markdown(grid, records, make_table(grid, records), {})
    assert "| elsa | 0/3 | – | – | – |" in page.splitlines()
    assert page.count("| failed |") == 6


def test_machines_that_differ_are_both_told(grid: Grid) -> None:
    records = records_of(grid, FIGURES)
    records[0] = replace(records[0], about={**ABOUT, "hardware": {"cpus": 64, "gpus": ["H", "H"]}})
    page = results_markdown(grid, records, make_table(grid, records), {})
    assert "- hardware: cpus 64, gpus H, H (1 runs); cpus 2 (4 runs)" in page.splitlines()


def test_json_holds_a_record_a_cell_and_the_table(grid: Grid) -> None:
    records = records_of(grid, FIGURES)
    results = json.loads(json_text(results_json(grid, records, make_table(grid, records))))
    assert [(cell["row"], cell["seed"]) for cell in results["cells"]] == [
        (cell.condition.row, cell.seed) for cell in grid.cells
    ]
    finished = next(cell for cell in results["cells"] if cell["row"] == "a|b" and cell["seed"] == 0)
    assert finished["metrics"] == FIGURES["a|b", 0] and finished["versions"] == ABOUT["versions"]
    assert finished["hardware"] == ABOUT["hardware"] and finished["date"].startswith("2026-11-20")
    assert not Path(finished["folder"]).is_absolute()
    line = results["table"][1]
    assert (line["num_finished"], line["num_seeds"]) == (2, 3)
    assert line["differences"]["bytes_total"]["mean"] == -500


def test_figures_are_taken_from_the_run(trained: Recorded, grid: Grid) -> None:
    summary = json.loads((trained.path / "summary.json").read_text())
    rounds = [json.loads(line) for line in (trained.path / "rounds.jsonl").read_text().splitlines()]
    assert rounds[0]["loss"] > rounds[1]["loss"]
    metrics = ["accuracy", "metrics.macro_f1", "bytes_by_role.adapter_up", "bytes_by_role.basis", "wall_seconds"]
    target = {"metric": "loss", "value": (rounds[0]["loss"] + rounds[1]["loss"]) / 2}
    config = sweep_config(metrics=metrics, target=target)
    record = finished_record(config, grid.cells[0], read_run(trained.path), folder="f", date="d")
    assert record.metrics == {
        "accuracy": summary["accuracy"],
        "metrics.macro_f1": summary["metrics"]["macro_f1"],
        "bytes_by_role.adapter_up": summary["bytes_by_role"]["adapter_up"],
        "bytes_by_role.basis": 0,
        "wall_seconds": summary["wall_seconds"],
        SECONDS_TO_TARGET: rounds[1]["simulated_seconds"],
        BYTES_TO_TARGET: rounds[1]["num_bytes"],
    }
    assert [point["accuracy"] for point in record.curve] == [line["accuracy"] for line in rounds]
    assert record.about["config_sha256"] == summary["config_sha256"]
    never = sweep_config(metrics=metrics, target={"metric": "loss", "value": 0.0})
    missed = finished_record(never, grid.cells[0], read_run(trained.path), folder="f", date="d")
    assert missed.metrics[SECONDS_TO_TARGET] is None and missed.metrics[BYTES_TO_TARGET] is None


def sweep_config(**fields: Any) -> SweepConfig:
    return SweepConfig.model_validate({"name": "g", "base": "b.yaml", "seeds": [0], "rows": {"elsa": {}}, **fields})


def test_metrics_are_names_of_the_summary() -> None:
    good = [
        "accuracy",
        "metrics.perplexity",
        "simulated_seconds_by_activity.sum.client_compute",
        "host_peak_memory_bytes",
    ]
    check_metrics(sweep_config(metrics=[*good, "bytes_by_role.activation_up", "wall_seconds_by_phase.train"]))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("acuracy", r"^metrics.0: found acuracy; .*did you mean accuracy\?$"),
        ("metrics.macrof1", r"did you mean metrics.macro_f1\?$"),
        ("bytes_by_role.activaton_up", r"did you mean bytes_by_role.activation_up\?$"),
        ("metrics", "^metrics.0: found metrics, which is no number"),
        ("stop_reason", "^metrics.0: found stop_reason"),
        ("accuracy.mean", "^metrics.0: found accuracy.mean"),
    ],
)
def test_a_metric_that_no_summary_has_is_refused(metric: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_metrics(sweep_config(metrics=[metric]))


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("metrics.macro_f1", 0.5, "50.0 %"),
        ("bytes_by_role.key", 2e6, "2 MB"),
        ("host_peak_memory_bytes", 3e9, "3 GB"),
        ("simulated_seconds_by_activity.sum.client_compute", 90.0, "90 s"),
        ("simulated_energy_joules", 4200.0, "4.2 kJ"),
        ("compression_ratio_fp32", 3.79, "3.79"),
        ("loss", 0.12345, "0.1235"),
        ("loss", None, "–"),
    ],
)
def test_units_follow_from_the_names(metric: str, value: float | None, text: str) -> None:
    assert metric_text(metric, value) == text
