from __future__ import annotations

import json

import pyarrow.compute as pc
import pytest

from elsa_ray.records.assumptions import assumptions
from elsa_ray.records.json_text import json_text
from elsa_ray.records.reading import read_run
from elsa_ray.records.summary import make_summary, peak_memory_bytes
from elsa_ray.records.totals import Totals
from elsa_ray.world.energy import energy_joules
from tests.records.conftest import Recorded

PROMISED = {
    "schema_version", "name", "seed", "protocol", "executor", "rounds_completed", "stop_reason", "accuracy", "loss",
    "metrics", "simulated_seconds", "wall_seconds", "bytes_total", "bytes_by_role", "bytes_uncompressed_total",
    "clients_total", "clients_participated", "clients_dropped", "clients_excluded", "simulated_energy_joules",
    "host_peak_memory_bytes", "config_sha256", "data_sha256", "assumptions", "versions", "hardware", "precision",
    "wall_seconds_by_phase", "clients_parked", "simulated_seconds_by_activity", "compression_ratio_fp32",
    "compression_ratio_bf16",
}  # fmt: skip


def test_the_summary_of_a_trained_run(trained: Recorded) -> None:
    summary = json.loads((trained.path / "summary.json").read_text())
    assert set(summary) >= PROMISED
    last = trained.rounds[-1].report
    assert last.score is not None
    assert (summary["accuracy"], summary["loss"]) == (last.score.accuracy, last.score.loss)
    assert summary["metrics"]["macro_f1"] == last.score.macro_f1
    assert summary["metrics"]["best_accuracy"] == max(r.report.score.accuracy for r in trained.rounds)  # type: ignore
    assert summary["stop_reason"] == "rounds"
    assert summary["rounds_completed"] == 2
    assert summary["clients_total"] == summary["clients_participated"] == 6
    assert summary["simulated_seconds"] == last.simulated_seconds
    assert summary["precision"] == "fp32"
    assert summary["host_peak_memory_bytes"] > 50e6
    assert summary["wall_seconds"] == pytest.approx(sum(summary["wall_seconds_by_phase"].values()))
    assert all(summary["versions"].values())


def test_how_full_cohorts_were_is_told_of_each_round_and_of_all(trained: Recorded) -> None:
    """Two edge rounds a round; in each, six clients at two edges of one group are a single cohort."""
    run = read_run(trained.path)
    assert trained.prepared.config.numerics.edges_per_group == 2
    assert [line["cohorts"] for line in run.rounds] == [{"count": 2, "members": 12}] * 2
    assert run.figures["cohorts"] == {"count": 4, "mean_members": 6.0}


def test_unlike_workers_are_told_in_a_sentence_and_by_a_flag(trained: Recorded) -> None:
    def told(*unlike: str) -> tuple[object, list[str]]:
        totals = Totals(read_run(trained.path).rounds)
        summary = make_summary(trained.prepared.setting, totals, hardware={}, unlike_workers=unlike)
        return summary["bit_reproducible"], [text for text in summary["assumptions"] if "bit-reproducible" in text]

    assert told() == (True, [])
    difference = "pools differ in cpu_capability: 1 × AVX2, 1 × AVX512"
    why = "which worker computes what is an accident of time, and"
    assert told(difference) == (False, [f"Not bit-reproducible: {why} {difference}."])


def test_bytes_of_summary_tables_and_report_agree(timed: Recorded) -> None:
    run = read_run(timed.path)
    figures, transfers = run.figures, run.transfers
    assert figures["bytes_total"] == timed.rounds[-1].report.num_bytes == pc.sum(transfers["num_bytes"]).as_py()
    assert sum(figures["bytes_by_role"].values()) == figures["bytes_total"]
    by_role = transfers.group_by("role").aggregate([("num_bytes", "sum")]).to_pylist()
    assert figures["bytes_by_role"] == {row["role"]: row["num_bytes_sum"] for row in by_role}
    ended = transfers.filter(pc.not_equal(pc.cast(transfers["outcome"], "string"), "pending"))
    assert figures["bytes_uncompressed_total"] == pc.sum(ended["uncompressed_bytes"]).as_py()
    ratio = figures["bytes_uncompressed_total"] / figures["bytes_total"]
    assert figures["compression_ratio_fp32"] == pytest.approx(ratio)
    assert figures["compression_ratio_bf16"] == pytest.approx(ratio / 2)


def test_energy_is_the_worlds(timed: Recorded) -> None:
    setting = timed.prepared.setting
    expected = sum(energy_joules(finished.timeline, setting.network, setting.fleet) for finished in timed.rounds)
    assert read_run(timed.path).figures["simulated_energy_joules"] == pytest.approx(expected) and expected > 0


def test_time_by_activity_is_the_mean_of_the_clients(timed: Recorded) -> None:
    figures = read_run(timed.path).figures
    by_activity, count = figures["simulated_seconds_by_activity"], figures["clients_participated"]
    for kind, seconds in by_activity["sum"].items():
        assert by_activity["mean_per_client"][kind] == pytest.approx(seconds / count)


def test_distinct_clients_are_counted_over_rounds(dropping: Recorded) -> None:
    figures = read_run(dropping.path).figures
    dropped = {client for finished in dropping.rounds for client in finished.report.dropped}
    assert figures["clients_dropped"] == len(dropped) > 0


def test_a_summary_can_be_made_again_from_the_lines(trained: Recorded) -> None:
    lines = read_run(trained.path).rounds
    written = json.loads((trained.path / "summary.json").read_text())
    again = make_summary(trained.prepared.setting, Totals(lines), hardware={"machine": "test"})
    again["host_peak_memory_bytes"] = written["host_peak_memory_bytes"]
    assert json.loads(json_text(again)) == written


def test_extra_figures_enter_the_summary(trained: Recorded) -> None:
    summary = make_summary(
        trained.prepared.setting,
        Totals(),
        hardware={},
        stop_reason="interrupted",
        wall_seconds_by_phase={"prepare": 2.5},
        worker_memory_bytes=10**12,
    )
    assert summary["stop_reason"] == "interrupted"
    assert summary["wall_seconds"] == 2.5
    assert summary["host_peak_memory_bytes"] >= peak_memory_bytes() * 0.5 + 10**12
    assert summary["compression_ratio_fp32"] is None
    assert summary["accuracy"] is None


def test_assumptions_tell_models_devices_and_defaults(trained: Recorded, timed: Recorded) -> None:
    setting = trained.prepared.setting
    text = "\n".join(assumptions(setting, "inline"))
    for needed in ("max-min", "20 GFLOP/s", "1 TFLOP/s", "10 Mbit/s", "15 ms", "access_up", "task.preloaded"):
        assert needed in text
    assert "nothing was trained" not in text
    assert "nothing was trained" in "\n".join(assumptions(setting, "none"))
    bounded = any(not chain.size_is_exact for chain in (setting.chains.activation, setting.chains.adapter))
    assert ("upper bounds" in text) == bounded
    assert timed.prepared.setting.config.task.preloaded == (
        "task.preloaded: " in "\n".join(assumptions(timed.prepared.setting, "none"))
    )


def test_json_is_strict() -> None:
    assert (
        json_text({"a": float("inf"), "b": [float("nan"), 1.5], "c": (1, "ä")})
        == '{"a": null, "b": [null, 1.5], "c": [1, "ä"]}'
    )
