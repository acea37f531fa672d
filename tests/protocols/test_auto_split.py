"""Splits of each client's own in whole runs: who gets which, what a change of it costs, and that training is the same.

Shapes: N clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.codecs.chain import Memory
from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.model.cost import blocks_num_bytes
from elsa_ray.model.split import Part, Split
from elsa_ray.prepare import Prepared, prepare
from elsa_ray.protocols.auto_split import SplitChooser
from elsa_ray.protocols.elsa import Elsa
from elsa_ray.protocols.estimates import usual_step
from elsa_ray.protocols.split_choice import split_options
from elsa_ray.records.round import Round
from elsa_ray.training.recipe import Recipe
from elsa_ray.world.devices import Device
from elsa_ray.world.fleet import Fleet
from elsa_ray.world.plan import ActivityKind, Stage, WorkKey
from elsa_ray.world.roles import Role
from elsa_ray.world.timeline import Outcome

from ..helpers import largest_difference, run_config, run_inline, write_texts
from ..stepwise import Stepwise, write_towns
from ..world.test_bytes_of_runs import carried_by_role
from ..world.towns import DOWN, UP, town_config
from .memory import needed

MIXED = {
    "clients": {"device": {"mix": {"phone": 0.5, "laptop": 0.5}}},
    "edges": {"device": {"flops_per_second": 4e10}},
}
"""Laptops are faster than an edge, phones slower."""
EAGER = {"auto": {"hysteresis": 0.0}}
NEAR, FAR = Split(2, 2, 0), Split(3, 1, 0)
"""The most that the edge takes, and the least."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=72)


def make(dataset: dict[str, str], **sections: Any) -> ExperimentConfig:
    protocol = {"split": EAGER, "rounds": 3, "local_steps": 2, **sections.pop("protocol", {})}
    config: ExperimentConfig = run_config(dataset, protocol=protocol, world=MIXED, **sections)
    return config


def test_slow_devices_leave_blocks_to_the_edge_and_fast_ones_keep_them(dataset: dict[str, str]) -> None:
    prepared = prepare(make(dataset))
    wants = {"phone": NEAR, "laptop": FAR}
    devices = [device.name for device in prepared.setting.fleet.clients]
    assert prepared.protocol.start(None).splits == tuple(wants[name] for name in devices) and set(devices) == set(wants)


@pytest.fixture(scope="module")
def laboratory(dataset: dict[str, str]) -> Prepared:
    return prepare(make(dataset))


SPEEDS = st.floats(1e8, 1e13)
ROOM = st.floats(0.0, 1.0)


class TestAnyFleet:
    @given(st.lists(st.tuples(SPEEDS, ROOM), min_size=6, max_size=6), st.integers(1, 3), SPEEDS)
    @settings(max_examples=40, deadline=None)
    def test_memory_holds_every_split_and_they_are_few(
        self, laboratory: Prepared, figures: list[tuple[float, float]], max_splits: int, edge_speed: float
    ) -> None:
        """Each device has at least what the smallest split of its client needs, and at most what the largest does."""
        setting = laboratory.setting
        options = split_options(4, min_front=1)
        need_NX = np.array([[needed(laboratory, client, split) for split in options] for client in range(6)])
        memory_N = [
            float(need.min() + room * (need.max() - need.min()))
            for need, (_, room) in zip(need_NX, figures, strict=True)
        ]
        devices = tuple(
            Device("made", speed, 0.0, 0.0, memory) for (speed, _), memory in zip(figures, memory_N, strict=True)
        )
        fleet = Fleet(devices, Device("edge", edge_speed, 0.0, 0.0))
        auto = {"auto": {"max_splits": max_splits, "min_front": 1}}
        config = laboratory.config.protocol.model_validate({**laboratory.config.protocol.model_dump(), "split": auto})
        splits = Elsa(config, replace(setting, fleet=fleet)).start(None).splits
        assert 1 <= len(set(splits)) <= max_splits
        for client, split in enumerate(splits):
            assert need_NX[client][options.index(split)] <= memory_N[client]


@pytest.mark.parametrize(
    ("hysteresis", "holds_all", "left", "moves"),
    [
        (0.0, False, 1, False),
        (0.0, False, 10**6, True),
        (0.0, True, 1, True),
        (0.9, True, 10**6, False),
    ],
    ids=["too-few-steps-to-come", "many-steps-to-come", "blocks-at-hand", "too-small-a-gain"],
)
def test_the_transfer_of_new_blocks_and_the_hysteresis_weigh_in_the_choice(
    dataset: dict[str, str], hysteresis: float, holds_all: bool, left: int, moves: bool
) -> None:
    """Laptops that all hold the smaller part would be faster with a block more, which must come from the cloud."""
    world = {**MIXED, "clients": {"device": "laptop"}}
    config = run_config(
        dataset, protocol={"split": {"auto": {"hysteresis": hysteresis}}, "local_steps": 2}, world=world
    )
    setting = prepare(config).setting
    chooser = SplitChooser(setting, config.protocol, usual_step(setting, config.protocol))
    held = frozenset(range(4) if holds_all else NEAR.layers(Part.FRONT))
    edge = int(setting.network.edges[0])
    chosen = chooser.choose((edge,) * 6, (held,) * 6, (NEAR,) * 6, left)
    assert set(chosen) == {FAR if moves else NEAR}


def weights_down(finished: Round) -> dict[int, int]:
    """Return the bytes of frozen weights that each client got."""
    activities = finished.timeline.activities
    rows = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.WEIGHTS_DOWN)
    rows &= (activities.client >= 0) & (finished.timeline.outcome == Outcome.DONE)
    return {int(activities.client[row]): int(activities.num_bytes[row]) for row in np.flatnonzero(rows)}


@pytest.mark.parametrize("preloaded", [True, False])
def test_a_split_that_grows_is_charged_once_and_blocks_come_before_work(
    dataset: dict[str, str], preloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first clustering three clients are given a larger split than the one that they were begun with."""
    wanted, held = (FAR, NEAR, FAR, NEAR, NEAR, FAR), frozenset(NEAR.layers(Part.FRONT))
    grown = [client for client, split in enumerate(wanted) if split == FAR]
    config = make(
        dataset,
        task={"probes": {"kind": "dataset", "count": 10}, "preloaded": preloaded},
        protocol={"clustering": {"dimensions": 4, "every": 9}},
    )
    with Stepwise(config) as run:
        monkeypatch.setattr(SplitChooser, "choose", lambda *arguments: wanted)
        run.change(splits=(NEAR,) * 6, held_layers=(held if preloaded else frozenset(),) * 6)
        first, second, third = run.round(), run.round(), run.round()
        block = HEADER_BYTES + blocks_num_bytes(run.prepared.setting.shape, 1, 4)
        assert set(weights_down(first)) == (set() if preloaded else set(range(6)))
        assert weights_down(second) == dict.fromkeys(grown, block) and weights_down(third) == {}
        for finished in (first, second, third):
            assert carried_by_role(finished.timeline) == finished.results.encoded_bytes
        for client, split in enumerate(wanted):
            assert third.state.held_layers[client] == {*split.layers(Part.FRONT)}
    timeline = second.timeline
    activities, is_compute = timeline.activities, timeline.activities.kind == ActivityKind.COMPUTE
    for client in grown:
        own = activities.client == client
        starts = timeline.start_seconds[own & is_compute & (activities.label == Stage.FRONT_FORWARD)]
        arrives = timeline.finish_seconds[own & ~is_compute & (activities.label == Role.WEIGHTS_DOWN)]
        assert arrives.max() <= starts.min()


def test_blocks_that_arrive_late_are_those_of_the_split_they_were_sent_for(tmp_path: Path) -> None:
    """A client's split grows while the blocks of the old one are still on their way: the growth is sent after them."""
    fast, narrow = (UP, 4 * DOWN, 2.0**-6), (UP, DOWN / 2, 2.0**-6)
    config = town_config(
        tmp_path,
        topology=write_towns(tmp_path, [{0: fast}, {0: narrow}], [(2.0**26, 2.0**-5)]),
        task={"preloaded": False},
        protocol={"split": EAGER, "rounds": 9, "local_steps": 1},
        world={"round_policy": {"deadline_seconds": 3.0, "late": "keep"}},
    )
    with Stepwise(config) as run:
        run.change(splits=(NEAR, NEAR))
        first = run.round()
        assert first.timeline.pending == (WorkKey(0, 0, 1),) and weights_down(first).keys() == {0}
        run.change(splits=(NEAR, FAR))
        later = [run.round()]
        while 1 not in later[-1].report.participated:
            later.append(run.round())
        assert any(1 in weights_down(finished) for finished in later)
        assert run.state.held_layers[1] == {*NEAR.layers(Part.FRONT)}
        (again,) = [finished for finished in [run.round()] if 1 in finished.plan.work.client]
        activities = again.plan.activities
        rows = (activities.kind == ActivityKind.TRANSFER) & (activities.label == Role.WEIGHTS_DOWN)
        assert activities.client[rows].tolist() == [1]
        block = blocks_num_bytes(run.prepared.setting.shape, 1, 4)
        assert activities.uncompressed_bytes[rows].tolist() == [block]


def test_training_with_mixed_and_changing_splits_is_training_of_whole_models(dataset: dict[str, str]) -> None:
    """One edge, no codec: federated averaging, where no model is cut at all. Between rounds layers change hands."""
    optimizer = {"kind": "adamw", "learning_rate": 2e-3, "weight_decay": 0.1}
    whole = run_inline(run_config(dataset, protocol={"name": "fedavg", "rounds": 3, "optimizer": optimizer}))
    config = make(dataset, protocol={"optimizer": optimizer})
    others = (Split(1, 1, 2), Split(3, 1, 0), Split(1, 3, 0), Split(2, 1, 1), Split(1, 2, 1), Split(2, 2, 0))
    with Stepwise(config) as run:
        assert len(set(run.state.splits)) > 1
        for expected in whole.rounds:
            finished = run.round()
            assert finished.state.adapters is not None and expected.state.adapters is not None
            assert largest_difference(finished.state.adapters, expected.state.adapters) < 1e-9
            assert finished.report.train_loss == pytest.approx(expected.report.train_loss, abs=1e-9)
            assert len(finished.results.cohort_sizes) > 1
            run.change(splits=others[run.state.round_index :] + others[: run.state.round_index])


def test_what_an_update_has_lost_stays_with_its_tensor_when_the_split_changes(
    dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second split has as many tensors as the first, of the same shapes, in another block."""
    given_errors: list[Mapping[str, Memory]] = []
    real = Recipe.pack_upload

    def watched(self: Recipe, tensors: Any, received: Any, trained: Any, context: Any, errors: Any) -> Any:
        given_errors.append(errors)
        return real(self, tensors, received, trained, context, errors)

    monkeypatch.setattr(Recipe, "pack_upload", watched)
    update = [{"kind": "residual", "codec": [{"kind": "topk", "share": 0.2}]}]
    config = make(dataset, topology={"clients": 1}, protocol={"codec": {"update": update}})
    with Stepwise(config) as run:
        layout, seen = run.prepared.setting.layout, []
        for split in (Split(2, 1, 1), Split(1, 1, 2), Split(1, 3, 0)):
            run.change(splits=(split,))
            finished = run.round()
            held = {tensor.name for tensor in layout.part(split, Part.FRONT, Part.BACK)}
            seen.append(finished.state.memories[0].client.errors)
            assert seen[-1].keys() == held
            assert any(error.any() for ((error,),) in seen[-1].values())
    assert given_errors == [{}, *seen[:2]]
    names = [set(errors) for errors in seen]
    assert len(names[0]) == len(names[1]) > len(names[0] & names[1]) > 0
