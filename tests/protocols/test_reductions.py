"""Proof: ELSA without its extras is federated averaging, and edge rounds save exactly the cloud traffic they should.

Whole runs in this process, in fp64 with an fp64 wire, from the config to the global adapters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from elsa_ray.experiment import rounds
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import load_backbone, prepare
from elsa_ray.runtime.executor import NoExecutor
from elsa_ray.world.plan import ActivityKind
from elsa_ray.world.roles import Role

from ..helpers import Run, largest_difference, run_config, run_inline, write_texts

TOLERANCE = 1e-9

OPTIMIZERS = {
    "sgd": {"kind": "sgd", "learning_rate": 0.1},
    "adamw": {"kind": "adamw", "learning_rate": 2e-3, "weight_decay": 0.1},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"))


def protocol(name: str, **values: Any) -> dict[str, Any]:
    return {"name": name, **values} if name == "fedavg" else {"name": name, "split": {"front": 1, "back": 2}, **values}


def first_adapters(run: Run) -> Adapters:
    """Return the adapters before the first round."""
    return load_backbone(run.prepared)[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_elsa_with_one_edge_and_one_edge_round_is_fedavg_on_the_same_sample(
    dataset: dict[str, str], optimizer: str
) -> None:
    settings = {"optimizer": OPTIMIZERS[optimizer], "participation": 0.5}
    elsa = run_inline(run_config(dataset, protocol=protocol("elsa", **settings)))
    fedavg = run_inline(run_config(dataset, protocol=protocol("fedavg", **settings)))
    assert [r.report.participated for r in elsa.rounds] == [r.report.participated for r in fedavg.rounds]
    assert {len(r.report.participated) for r in elsa.rounds} == {3}
    for ours, theirs in zip(elsa.rounds, fedavg.rounds, strict=True):
        assert largest_difference(ours.state.adapters, theirs.state.adapters) < TOLERANCE
        assert ours.report.train_loss == pytest.approx(theirs.report.train_loss, abs=TOLERANCE)
    ours, theirs = elsa.rounds[-1].report.score, fedavg.rounds[-1].report.score
    assert ours.loss == pytest.approx(theirs.loss, abs=TOLERANCE)
    assert np.array_equal(ours.confusion, theirs.confusion)
    assert largest_difference(elsa.adapters, first_adapters(elsa)) > 1e-4


@pytest.mark.parametrize("local_work", [{"local_steps": 2}, {"local_steps": None, "local_epochs": 1}], ids=str)
def test_elsa_with_one_edge_round_is_fedavg_however_many_edges_there_are(
    dataset: dict[str, str], local_work: dict[str, int]
) -> None:
    """Weighted means of weighted means, by examples, are the weighted mean; clients' data differ in size."""
    common = {"task": {"partition": {"kind": "dirichlet", "alpha": 0.5}}, "topology": {"edges": 3}}
    elsa = run_inline(run_config(dataset, protocol=protocol("elsa", **local_work), **common))
    fedavg = run_inline(run_config(dataset, protocol=protocol("fedavg", **local_work), **common))
    assert len(set(elsa.prepared.setting.num_examples.tolist())) > 2
    assert len(set(elsa.rounds[0].state.edge_of_client)) == 3
    assert largest_difference(elsa.adapters, fedavg.adapters) < TOLERANCE


def test_edge_rounds_on_one_edge_are_rounds_of_fedavg(dataset: dict[str, str]) -> None:
    """With whole-set batches (whose order does not matter) two edge rounds are two rounds of federated averaging."""
    whole_set = {"batch_size": 100, "local_steps": 2, "optimizer": OPTIMIZERS["adamw"]}
    elsa = run_inline(run_config(dataset, protocol=protocol("elsa", rounds=2, edge_rounds=2, **whole_set)))
    fedavg = run_inline(run_config(dataset, protocol=protocol("fedavg", rounds=4, **whole_set)))
    assert largest_difference(elsa.rounds[0].state.adapters, fedavg.rounds[1].state.adapters) < TOLERANCE
    assert largest_difference(elsa.adapters, fedavg.adapters) < TOLERANCE
    assert largest_difference(elsa.adapters, fedavg.rounds[2].state.adapters) > 1e-5


@pytest.mark.parametrize("split", [{"front": 1, "back": 0}, {"front": 1, "back": 2}, {"front": 3, "back": 0}], ids=str)
def test_the_place_of_the_cuts_does_not_change_the_model(dataset: dict[str, str], split: dict[str, int]) -> None:
    common = {"topology": {"edges": 2}}
    elsa = run_inline(run_config(dataset, protocol={"split": split, "rounds": 1}, **common))
    other = run_inline(run_config(dataset, protocol={"split": {"front": 2, "back": 1}, "rounds": 1}, **common))
    assert largest_difference(elsa.adapters, other.adapters) < TOLERANCE


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_causal_language_models_reduce_to_fedavg_too(dataset: dict[str, str], model: str) -> None:
    task = {"task": {"kind": "causal_lm", "model": model}}
    settings = {"rounds": 1, "participation": 0.5}
    elsa = run_inline(run_config(dataset, protocol=protocol("elsa", **settings), **task))
    fedavg = run_inline(run_config(dataset, protocol=protocol("fedavg", **settings), **task))
    assert largest_difference(elsa.adapters, fedavg.adapters) < TOLERANCE
    assert elsa.rounds[-1].report.score.loss == pytest.approx(fedavg.rounds[-1].report.score.loss, abs=TOLERANCE)


def bytes_by_ends(config: Any) -> dict[tuple[str, str, str], int]:
    """Return what the links carried in a run without training, by kinds of the two ends and role."""
    prepared = prepare(config)
    kinds = prepared.setting.network.node_kinds
    carried: dict[tuple[str, str, str], int] = {}
    for finished in rounds(prepared, prepared.protocol.start(None), NoExecutor()):
        activities = finished.timeline.activities
        for row in np.flatnonzero(activities.kind == ActivityKind.TRANSFER).tolist():
            ends = (kinds[activities.source[row]], kinds[activities.target[row]], Role(activities.label[row]).label)
            carried[ends] = carried.get(ends, 0) + int(finished.timeline.carried_bytes[row])
    return carried


@pytest.mark.parametrize("edge_rounds", [2, 4])
def test_cloud_traffic_falls_exactly_by_the_number_of_edge_rounds(dataset: dict[str, str], edge_rounds: int) -> None:
    common: dict[str, Any] = {"topology": {"edges": 2}}
    often = bytes_by_ends(run_config(dataset, protocol={"rounds": 4, "edge_rounds": 1}, **common))
    rarely = bytes_by_ends(
        run_config(dataset, protocol={"rounds": 4 // edge_rounds, "edge_rounds": edge_rounds}, **common)
    )
    for ends in (("edge", "cloud", "adapter_up"), ("cloud", "edge", "adapter_down")):
        assert often[ends] == edge_rounds * rarely[ends] > 0
    for ends in (("client", "edge", "adapter_up"), ("edge", "client", "adapter_down")):
        assert often[ends] == rarely[ends] > 0
    assert {ends for ends in rarely if "cloud" in ends[:2]} == {
        ("edge", "cloud", "adapter_up"),
        ("cloud", "edge", "adapter_down"),
    }


def test_fedavg_sends_adapters_between_clients_and_cloud_and_nothing_else(dataset: dict[str, str]) -> None:
    carried = bytes_by_ends(run_config(dataset, protocol={"name": "fedavg", "rounds": 1}))
    assert carried.keys() == {("client", "cloud", "adapter_up"), ("cloud", "client", "adapter_down")}


def test_what_was_encoded_is_what_the_links_carried(dataset: dict[str, str]) -> None:
    settings = {"codec": [{"kind": "sketch", "rows": 2, "buckets": 16}, {"kind": "int8"}], "edge_rounds": 2}
    config = run_config(dataset, protocol=protocol("elsa", **settings), topology={"edges": 2})
    run, carried = run_inline(config), bytes_by_ends(config)
    by_role: dict[str, int] = {}
    for (_, _, role), num_bytes in carried.items():
        by_role[role] = by_role.get(role, 0) + num_bytes
    encoded: dict[str, int] = {}
    for finished in run.rounds:
        for role, num_bytes in finished.results.encoded_bytes.items():
            encoded[role] = encoded.get(role, 0) + num_bytes
    assert encoded == by_role


def test_bf16_and_fp32_runs_have_the_identical_plan(dataset: dict[str, str]) -> None:
    plans = {}
    for precision in ("fp32", "bf16", "fp64"):
        config = run_config(dataset, protocol={"wire_dtype": "fp32"}, numerics={"precision": precision})
        prepared = prepare(config)
        plans[precision] = [finished.plan for finished in rounds(prepared, prepared.protocol.start(None), NoExecutor())]
    for precision in ("bf16", "fp64"):
        for plan, other in zip(plans["fp32"], plans[precision], strict=True):
            for table, other_table in (
                (plan.activities, other.activities),
                (plan.work, other.work),
                (plan.gathers, other.gathers),
            ):
                for name, column in vars(table).items():
                    assert np.array_equal(column, getattr(other_table, name)), name
            assert np.array_equal(plan.predecessors, other.predecessors)
            assert np.array_equal(plan.successors, other.successors)


def test_the_executors_plan_and_timeline_are_those_of_a_run_without_training(dataset: dict[str, str]) -> None:
    config = run_config(dataset, protocol=protocol("elsa", participation=0.5))
    prepared = prepare(config)
    untrained = list(rounds(prepared, prepared.protocol.start(None), NoExecutor()))
    for trained, planned in zip(run_inline(config).rounds, untrained, strict=True):
        assert np.array_equal(trained.timeline.finish_seconds, planned.timeline.finish_seconds)
        assert trained.report.num_bytes == planned.report.num_bytes
