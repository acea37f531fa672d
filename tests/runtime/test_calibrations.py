"""Keys and bases in whole runs: what they are made of, who holds them, how long they serve, and that they lose nothing.

Shapes: T tokens, D hidden width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elsa_ray.codecs.chain import CodecChain, Memory
from elsa_ray.codecs.codec import CodecContext, Maker
from elsa_ray.codecs.wire import hidden_num_bytes
from elsa_ray.model.cost import step_flops
from elsa_ray.model.split import Part, Split
from elsa_ray.protocols.auto_split import SplitChooser
from elsa_ray.protocols.protocol import RoundResults
from elsa_ray.training.batches import calibration_examples, examples_of_steps
from elsa_ray.training.memory import Memories
from elsa_ray.world.plan import ActivityKind, WorkKey
from elsa_ray.world.roles import Role
from tests.helpers import PAD, own_batch, relative_difference, run_config, run_inline, write_texts
from tests.stepwise import Stepwise, planted_rows

SSOP = {"kind": "ssop", "rank": 8, "refresh_rounds": 3}
SUBSPACE = {"kind": "subspace", "rank": 16, "basis_dtype": "fp32", "refresh_rounds": 3}
OPTIMIZERS = [{"kind": "sgd", "learning_rate": 0.1}, {"kind": "adamw", "learning_rate": 2e-3}]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=72)


def protocol(*codecs: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"codec": list(codecs), "rounds": 9, "local_steps": 1, **values}


def same(first: Memory, second: Memory) -> bool:
    assert len(first) == len(second) > 0
    pairs = [(len(a) == len(b), zip(a, b, strict=False)) for a, b in zip(first, second, strict=True)]
    return all(alike and all(torch.equal(*pair) for pair in tensors) for alike, tensors in pairs)


def watch_calibrations(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, frozenset[Maker]], list[Tensor]]:
    """Return what will have the rows of each calibration, by client and makers."""
    made: dict[tuple[int, frozenset[Maker]], list[Tensor]] = {}
    real = CodecChain.calibrate

    def watched(self: CodecChain, x_TD: Tensor, context: CodecContext, *arguments: Any) -> Memory:
        made.setdefault((context.client, arguments[-1]), []).append(x_TD.clone())
        return real(self, x_TD, context, *arguments)

    monkeypatch.setattr(CodecChain, "calibrate", watched)
    return made


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda own: str(own["kind"]))
def test_with_the_key_at_the_edge_training_is_what_it_is_without(
    dataset: dict[str, str], optimizer: dict[str, Any]
) -> None:
    """Oracle 7 of methods.md 1.16: keys are rounded to fp32, all else is fp64."""
    common = {"rounds": 3, "local_steps": 2, "optimizer": optimizer}
    plain = run_inline(run_config(dataset, protocol=common))
    turned = run_inline(run_config(dataset, protocol={**common, "codec": [SSOP]}))
    for ours, theirs in zip(turned.rounds, plain.rounds, strict=True):
        assert ours.state.adapters is not None and theirs.state.adapters is not None
        assert 0 < relative_difference(ours.state.adapters, theirs.state.adapters) < 1e-6
        assert ours.report.train_loss == pytest.approx(theirs.report.train_loss, rel=1e-6)
    common["rounds"] = 1
    hidden = run_inline(run_config(dataset, protocol={**common, "codec": [{**SSOP, "invert": "client"}]}))
    first = plain.rounds[0].state.adapters
    assert first is not None
    assert relative_difference(hidden.adapters, first) > 1e-3, "whereas an edge without the key errs"


@pytest.mark.parametrize("invert", ["edge", "client"])
def test_both_ends_hold_the_same_but_for_a_key_that_stays_with_its_client(dataset: dict[str, str], invert: str) -> None:
    config = run_config(dataset, protocol=protocol({**SSOP, "invert": invert}, SUBSPACE), topology={"edges": 2})
    with Stepwise(config) as run:
        first = run.round()
    assert sorted(first.state.memories) == list(range(6))
    for client, memories in first.state.memories.items():
        ours, edge = memories.client.calibration, memories.edge
        key = ours.first[0]
        assert len(key) == 2 and ours.second[0] is key, "one key for both cuts"
        assert not torch.equal(key[1], torch.eye(len(key[1])))
        assert same(ours.first[1:], edge.first[1:]) and same(ours.second[1:], edge.second[1:])
        assert not same(ours.first[1:], ours.second[1:]), "each cut has its own basis"
        if invert == "edge":
            assert same(ours.first, edge.first) and same(ours.second, edge.second)
        else:
            assert edge.first[0] == edge.second[0] == ()
        others = [own.client.calibration.first[0][1] for c, own in first.state.memories.items() if c != client]
        assert not any(torch.equal(key[1], other) for other in others), "each client has its own key"
    assert ("key" in first.results.encoded_bytes) == (invert == "edge")


def test_an_edge_that_shall_not_have_the_key_never_gets_it_at_any_time(
    dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an edge encodes or decodes in the run, it holds nothing for the stage; the client holds two tensors."""
    used: dict[str, set[int]] = {"client": set(), "edge": set()}
    by_sender = {
        Role.ACTIVATION_UP.label: ("client", "edge"),
        Role.GRADIENT_UP.label: ("client", "edge"),
        Role.ACTIVATION_DOWN.label: ("edge", "client"),
        Role.GRADIENT_DOWN.label: ("edge", "client"),
    }
    for position, name in enumerate(("encode", "decode")):
        real = getattr(CodecChain, name)

        def watched(self: CodecChain, *arguments: Any, real: Any = real, position: int = position, **named: Any) -> Any:
            context = next(own for own in arguments if isinstance(own, CodecContext))
            if self.stages and context.role in by_sender:
                memory = named["memory"] if "memory" in named else arguments[-1]
                used[by_sender[context.role][position]].add(len(memory[0]) if memory else 0)
            return real(self, *arguments, **named)

        monkeypatch.setattr(CodecChain, name, watched)
    run_inline(run_config(dataset, protocol=protocol({**SSOP, "invert": "client", "refresh_rounds": 1}, rounds=2)))
    assert used == {"client": {2}, "edge": {0}}


def test_a_basis_is_made_of_the_real_tokens_of_the_first_batch(
    dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watch_calibrations(monkeypatch)
    config = run_config(dataset, protocol=protocol(SSOP, SUBSPACE, local_steps=2))
    with Stepwise(config) as run:
        run.round()
        setting, model = run.prepared.setting, run.model
        tokens, padding = setting.task.train, 0
        held = {name: tensor[None] for name, tensor in run.first_adapters.items()}
        assert len(made) == 12 and {len(calls) for calls in made.values()} == {1}, "once at each cut of each client"
        for client, indices in enumerate(setting.task.partition):
            row = examples_of_steps(WorkKey(0, 0, client), indices, setting.config.protocol, setting.seed)[0]
            ids_BS, mask_BS, _ = own_batch(tokens, row)
            ids_BS = torch.where(ids_BS == PAD, setting.task.backbone.config.pad_token_id, ids_BS)
            padding += int((~mask_BS).sum())
            split = Split(1, 2, 1)
            own = {tensor.name: held[tensor.name] for tensor in setting.layout.part(split, Part.FRONT)}
            expected_TD = model.front(ids_BS, mask_BS, own, split)[mask_BS]
            (at_first,) = made[client, frozenset({Maker.CLIENT, Maker.SENDER})]
            (at_second,) = made[client, frozenset({Maker.SENDER})]
            torch.testing.assert_close(at_first, expected_TD, rtol=0, atol=1e-9)
            assert len(at_second) == int(mask_BS.sum())
        assert padding > 0, "there was padding to leave out"


@pytest.mark.parametrize("num_texts", [5, 1000])
def test_a_basis_may_be_made_of_texts_set_apart_for_it(
    dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch, num_texts: int
) -> None:
    """They pass once, without learning; the plan has just the forward computations and states that this takes."""
    made = watch_calibrations(monkeypatch)
    codec = {"activation": [SSOP, SUBSPACE], "gradient": [SSOP, SUBSPACE], "calibration_texts": num_texts}
    with Stepwise(run_config(dataset, protocol={"codec": codec, "rounds": 9, "local_steps": 2})) as run:
        finished = run.round()
        setting, model, plan = run.prepared.setting, run.model, finished.plan
        tokens, split = setting.task.train, Split(1, 2, 1)
        flops = step_flops(setting.shape, setting.layout, split)
        own = {tensor.name: run.first_adapters[tensor.name][None] for tensor in setting.layout.part(split, Part.FRONT)}
        width = setting.shape.hidden_size
        for client, indices in enumerate(setting.task.partition):
            chosen = calibration_examples(WorkKey(0, 0, client), indices, num_texts, setting.seed)
            assert len(chosen) == min(num_texts, len(indices)) == len({*chosen}) and {*chosen} <= {*indices}
            ids_BS, mask_BS, _ = own_batch(tokens, chosen)
            ids_BS = torch.where(ids_BS == PAD, setting.task.backbone.config.pad_token_id, ids_BS)
            (at_first,) = made[client, frozenset({Maker.CLIENT, Maker.SENDER})]
            (at_second,) = made[client, frozenset({Maker.SENDER})]
            torch.testing.assert_close(at_first, model.front(ids_BS, mask_BS, own, split)[mask_BS], rtol=0, atol=1e-9)
            assert len(at_second) == int(mask_BS.sum())
            rows = plan.activities
            passed = (rows.client == client) & (rows.step == -1)
            computed = passed & (rows.kind == ActivityKind.COMPUTE)
            shape = len(chosen), int(mask_BS.sum(dim=1).max())
            expected = [flops.front_forward.total(*shape), flops.middle_forward.total(*shape)]
            assert rows.flops[computed].tolist() == expected
            sent = [(int(rows.label[row]), int(rows.num_bytes[row])) for row in np.flatnonzero(passed & ~computed)]
            states = hidden_num_bytes(setting.chains.activation, Role.ACTIVATION_UP, *shape, width)
            assert sent.count((int(Role.ACTIVATION_UP), int(states))) == 1
            assert [label for label, _ in sent].count(int(Role.BASIS)) == 2
    first, later = finished.state.memories[0], finished.results.encoded_bytes
    assert same(first.client.calibration.second, first.edge.second)
    assert later["basis"] > 0 and later["key"] > 0


def test_a_key_alone_needs_no_states_at_the_edge(dataset: dict[str, str]) -> None:
    codec = {"activation": [SSOP], "gradient": [SSOP], "calibration_texts": 5}
    with Stepwise(run_config(dataset, protocol={"codec": codec, "rounds": 2, "local_steps": 1})) as run:
        rows = run.round().plan.activities
    passed = rows.step == -1
    assert not (passed & (rows.kind == ActivityKind.TRANSFER) & (rows.label == Role.ACTIVATION_UP)).any()
    assert (passed & (rows.kind == ActivityKind.COMPUTE)).sum() == 6


def test_a_calibration_serves_its_rounds_also_when_its_client_sits_some_of_them_out(dataset: dict[str, str]) -> None:
    config = run_config(dataset, protocol=protocol(SSOP, SUBSPACE, participation=0.5))
    made: dict[int, tuple[int, Memories]] = {}
    gaps, renewed = set(), 0
    with Stepwise(config) as run:
        for round_index in range(7):
            finished = run.round()
            clients, calibrates = finished.plan.work.client.tolist(), finished.plan.work.calibrates.tolist()
            for client, calibrated in zip(clients, calibrates, strict=True):
                before = made.get(client)
                assert calibrated == (before is None or round_index - before[0] >= 3)
                own = finished.state.memories[client]
                if not calibrated:
                    assert before is not None
                    for old, new in (
                        (before[1].client.calibration, own.client.calibration),
                        (before[1].edge, own.edge),
                    ):
                        assert same(old.first, new.first) and same(old.second, new.second)
                    gaps.add(round_index - before[0])
                    continue
                if before is not None:
                    renewed += 1
                    old, new = before[1].client.calibration, own.client.calibration
                    assert not any(same(o, n) for o, n in ((old.first, new.first), (old.second, new.second)))
                made[client] = (round_index, own)
            assert ("key" in finished.results.encoded_bytes) == ("basis" in finished.results.encoded_bytes)
            assert ("key" in finished.results.encoded_bytes) == any(calibrates)
            idle = {c: m for c, (_, m) in made.items() if c not in clients}
            assert all(same(finished.state.memories[c].edge.first, m.edge.first) for c, m in idle.items())
    assert 2 in gaps and renewed > 0, "somebody sat a round out, and somebody's time was up"


def test_a_client_with_another_edge_calibrates_anew_and_nobody_else_does(dataset: dict[str, str]) -> None:
    config = run_config(
        dataset,
        task={"probes": {"kind": "dataset", "count": 10}},
        topology={"edges": 2},
        protocol=protocol(SSOP, SUBSPACE, clustering={"dimensions": 4, "latency_weight": 0.0}),
    )
    groups = {client: client // 3 for client in range(6)}

    def planted(results: RoundResults) -> RoundResults:
        return replace(results, fingerprints=planted_rows(groups, 4))

    with Stepwise(config) as run:
        first = run.round(planted)
        moved = {client for client, _ in first.report.moved}
        assert 0 < len(moved) < 6
        second = run.round()
    work = second.plan.work
    assert {int(client) for client in work.client[work.calibrates == 1]} == moved
    for client in range(6):
        old, new = (finished.state.memories[client] for finished in (first, second))
        assert same(old.client.calibration.first, new.client.calibration.first) == (client not in moved)
        assert same(new.client.calibration.first, new.edge.first)


def test_a_client_with_another_split_calibrates_anew(dataset: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(
        dataset,
        task={"probes": {"kind": "dataset", "count": 10}},
        protocol=protocol(SSOP, SUBSPACE, split="auto", clustering={"dimensions": 4}),
    )
    private, other, recut = Split(3, 1, 0), Split(2, 2, 0), {1, 4}
    with Stepwise(config) as run:
        chosen = tuple(other if client in recut else private for client in range(6))
        monkeypatch.setattr(SplitChooser, "choose", lambda *arguments: chosen)
        run.change(splits=(private,) * 6)
        first = run.round()
        assert first.state.splits == chosen and not first.report.moved
        second = run.round()
    work = second.plan.work
    assert {int(client) for client in work.client[work.calibrates == 1]} == recut
    for client in range(6):
        old, new = (finished.state.memories[client] for finished in (first, second))
        assert same(old.edge.first, new.edge.first) == (client not in recut)
