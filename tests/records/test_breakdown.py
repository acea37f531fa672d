"""Breakdowns of recorded runs: each sum is one that the records have already, and tables tell what the figures say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elsa_ray.model.memory import client_memory_bytes, edge_memory_bytes
from elsa_ray.model.split import Split, whole
from elsa_ray.records.answers import CAUSES, all_tables, seconds_of_rounds, short_tables
from elsa_ray.records.breakdown import memory_bytes
from elsa_ray.records.reading import read_run
from elsa_ray.records.report import write_report
from elsa_ray.records.slowest import REASONS
from elsa_ray.records.totals import Totals
from tests.records.conftest import Recorded
from tests.records.helpers import prepared_run, recorded


def test_sums_are_those_of_the_other_records(timed: Recorded) -> None:
    run = read_run(timed.path)
    figures = run.figures
    own = figures["breakdown"]
    assert {role: one["num_bytes"] for role, one in own["transfers"].items() if one["num_bytes"]} == {
        role: num_bytes for role, num_bytes in sorted(figures["bytes_by_role"].items(), key=lambda item: item[0])
    }
    joules = sum(tier["compute_joules"] + tier["radio_joules"] + tier["idle_joules"] for tier in own["tiers"].values())
    assert joules == pytest.approx(figures["simulated_energy_joules"], rel=1e-9)
    for way in ("sent", "received"):
        assert sum(tier[f"bytes_{way}"] for tier in own["tiers"].values()) == figures["bytes_total"]
    by_activity = figures["simulated_seconds_by_activity"]["sum"]
    by_cause = own["where_time_goes"]["sum"]
    assert sum(by_cause.values()) == pytest.approx(sum(by_activity.values()), rel=1e-9)
    transfers = by_activity["transfer_up"] + by_activity["transfer_down"]
    assert sum(by_cause[part] for part in ("latency", "bandwidth", "sharing")) == pytest.approx(transfers, rel=1e-9)
    assert sum(own["rounds_waited_for"].values()) == pytest.approx(figures["simulated_seconds"], rel=1e-9)
    assert sum(seconds_of_rounds(figures).values()) == pytest.approx(figures["simulated_seconds"], rel=1e-9)


def test_each_round_waited_for_as_long_as_it_took(timed: Recorded) -> None:
    for line in read_run(timed.path).rounds:
        length = line["simulated_seconds"] - line["begin_simulated_seconds"]
        assert sum(line["waited_for"].values()) == pytest.approx(length, rel=1e-9)
        assert all(seconds > 0 for seconds in line["waited_for"].values())
        assert set(line["waited_for_clients"]) <= set(range(6))


def test_stages_and_tiers_are_those_of_the_timelines(timed: Recorded) -> None:
    own = read_run(timed.path).figures["breakdown"]
    seconds = sum(
        float(np.nansum((one.timeline.finish_seconds - one.timeline.start_seconds)[one.timeline.activities.flops > 0]))
        for one in timed.rounds
    )
    stages = [stage for tier in own["computations"].values() for stage in tier.values()]
    assert sum(stage["compute_seconds"] for stage in stages) == pytest.approx(seconds, rel=1e-9)
    assert own["computations"].keys() <= {"client", "edge"}
    for tier, found in own["computations"].items():
        assert own["tiers"][tier]["compute_seconds"] == pytest.approx(sum(s["compute_seconds"] for s in found.values()))


def test_slowest_clients_are_told_with_all_of_their_time(timed: Recorded) -> None:
    slowest = read_run(timed.path).figures["slowest_clients"]
    assert len({entry["client"] for entry in slowest}) == len(slowest) == 6
    assert [entry["seconds"] for entry in slowest] == sorted((entry["seconds"] for entry in slowest), reverse=True)
    for entry in slowest:
        assert math.fsum(entry[reason] for reason in REASONS) == pytest.approx(entry["seconds"], rel=1e-9)


def test_memory_is_that_of_the_client_and_the_edge_that_need_most(timed: Recorded) -> None:
    setting = timed.prepared.setting
    config = setting.config
    is_split = config.protocol.name == "elsa"
    layers = setting.shape.num_layers
    split = Split(1, layers - 2, 1) if is_split else whole(layers)
    plan = timed.rounds[0].plan
    first = plan.work.take(plan.work.edge_round == 0)
    sizes = {"num_heads": 4, "optimizer_kind": "adamw"}
    batch = np.minimum(config.protocol.batch_size, setting.num_examples)
    longest = np.array([setting.task.train.lengths[own].max() for own in setting.task.partition])
    on_client = client_memory_bytes(setting.shape, setting.layout, split, batch=batch, length=longest, **sizes)
    on_edge = [0]
    for edge in np.unique(first.edge):
        own = first.client[first.edge == edge]
        if is_split:
            splits = [split] * len(own)
            figures = {"batch_M": batch[own], "length_M": longest[own], **sizes}
            on_edge.append(edge_memory_bytes(setting.shape, setting.layout, splits, **figures))
    assert memory_bytes(plan, setting) == {"client": int(on_client.max()), "edge": max(on_edge)}


def test_tables_have_a_row_for_each_figure(timed: Recorded) -> None:
    figures = read_run(timed.path).figures
    tables = all_tables(figures)
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    where, transfers, computations, tiers, slowest = tables
    assert len(transfers.rows) == len(figures["breakdown"]["transfers"])
    assert len(computations.rows) == sum(map(len, figures["breakdown"]["computations"].values()))
    assert [row[0] for row in tiers.rows] == ["client", "edge", "cloud"]
    assert len(slowest.rows) == 6
    assert {row[0].replace(" ", "_") for row in where.rows} <= set(CAUSES)
    assert [table.title for table in short_tables(figures)] == [where.title, slowest.title]


def test_a_run_without_a_round_has_no_table(timed: Recorded) -> None:
    assert all_tables(Totals().figures()) == []


WORLDS: dict[str, dict[str, Any]] = {
    "crash": {"faults": {"edges": [{"edge": "edge0", "round": 1, "duration_seconds": 5.0}]}},
    "away": {"availability": {"kind": "markov", "mean_on_seconds": 2.0, "mean_off_seconds": 1.0}},
    "dropout": {
        "faults": {"dropout": {"before": 0.1, "during": 0.2, "after": 0.1}},
        "round_policy": {"deadline_seconds": 0.9, "late": "keep"},
    },
    "stragglers": {"faults": {"stragglers": {"kind": "pareto", "shape": 1.2}}, "round_policy": {"quorum": 0.5}},
    "outage": {"faults": {"cloud": [{"start_seconds": 0.5, "duration_seconds": 3}]}},
    "spoilt": {"faults": {"corruption": {"probability": 0.2}}, "network": "tcp"},
}


@pytest.mark.parametrize("name", list(WORLDS))
def test_times_add_up_whatever_goes_wrong(name: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "task": {"dataset": {"sizes": {"min": 4, "max": 40}}, "model": "tiny", "max_length": 16},
        "topology": {"clients": 12, "edges": 3},
        "world": WORLDS[name],
    }
    prepared = prepared_run(tmp_path, "protocol.edge_rounds=2", "protocol.rounds=4", **sections)
    run = read_run(recorded(prepared, tmp_path / "run")[0])
    assert sum(sum(line["incidents"].values()) + len(line["dropped_because"]) for line in run.rounds) > 0
    for line in run.rounds:
        length = line["simulated_seconds"] - line["begin_simulated_seconds"]
        assert sum(line["waited_for"].values()) == pytest.approx(length, rel=1e-9)
        assert all(seconds > 0 for seconds in line["waited_for"].values())
        for entry in line["slowest_clients"]:
            assert math.fsum(entry[reason] for reason in REASONS) == pytest.approx(entry["seconds"], rel=1e-9)
    figures = run.figures
    own = figures["breakdown"]
    by_activity = sum(figures["simulated_seconds_by_activity"]["sum"].values())
    assert sum(own["where_time_goes"]["sum"].values()) == pytest.approx(by_activity, rel=1e-9)
    assert sum(tier["bytes_sent"] for tier in own["tiers"].values()) == figures["bytes_total"]
    if name in ("crash", "away"):
        write_report(run.path)
