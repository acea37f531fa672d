"""What is written down is what was sent, what an attacker reads is what an edge decodes, and the truth is true."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from elsa_ray.codecs import wire
from elsa_ray.privacy.capture import Attacker, ships_keys
from elsa_ray.privacy.channel import through, true_rotation
from elsa_ray.privacy.victims import earlier_work, victims_of
from elsa_ray.training import messages
from elsa_ray.training.cohort import STEP_ROLES
from elsa_ray.training.edge import EdgeCohort
from elsa_ray.world.plan import WorkKey
from elsa_ray.world.roles import Role

from ..helpers import run_inline
from .captured import CLIENTS, SSOP, capture, config_of

CODECS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "basis and int8": [{"kind": "subspace", "rank": 9}, {"kind": "int8"}],
    "key at the edge": [SSOP, {"kind": "sketch", "rows": 2, "buckets": 16, "hash": "fresh"}],
    "key kept, reused, and basis": [{**SSOP, "invert": "client", "refresh_rounds": 2}, {"kind": "subspace", "rank": 9}],
}


@pytest.mark.parametrize("codec", CODECS)
def test_every_payload_is_written_down_and_the_training_is_the_runs(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: Counter[bytes] = Counter()

    def caught(function: Any) -> Any:
        def encode(*arguments: Any) -> Any:
            payload = function(*arguments)
            sent.update(payload if isinstance(payload, list) else [payload])
            return payload

        return encode

    monkeypatch.setattr(messages, "encode_hidden", caught(wire.encode_hidden))
    monkeypatch.setattr(messages, "encode_calibrations", caught(wire.encode_calibrations))
    config = config_of(tmp_path, CODECS[codec])
    plain = run_inline(config)
    expected, sent = sent, Counter()
    found = capture(config)
    kept = [message for own in found.tap.messages.values() for message in own]
    assert Counter(p for message in kept for p in (*message.calibrations, message.payload)) == sent == expected
    by_role = Counter[str]()
    for message in kept:
        by_role[message.role.label] += len(message.payload)
        by_role["calibrations"] += sum(map(len, message.calibrations))
    encoded = Counter[str]()
    for finished in plain.rounds:
        encoded.update(finished.results.encoded_bytes)
    assert {role: by_role[role.label] for role in STEP_ROLES} == {role: encoded[role.label] for role in STEP_ROLES}
    assert by_role["calibrations"] == encoded["key"] + encoded["basis"]
    adapters = found.rounds[-1].state.adapters
    assert all(torch.equal(adapters[name], tensor) for name, tensor in plain.adapters.items())
    assert found.rounds[-1].results.score is None and plain.rounds[-1].results.score is not None


def test_only_the_first_clients_are_written_down(tmp_path: Path) -> None:
    found = capture(config_of(tmp_path, []), num_clients=2)
    assert {work.client for work in found.tap.members} == {0, 1}
    assert {work.client for work, _ in found.tap.plain} == {0, 1}
    assert sorted(found.tap.models) == [0, 1]


def test_without_a_codec_the_edge_reads_the_plain_states(tmp_path: Path) -> None:
    found = capture(config_of(tmp_path, []))
    observed, truth, task = found.observed(), found.truth, found.prepared.setting.task
    assert sorted(observed.works) == sorted(truth.steps) == [WorkKey(r, 0, c) for r in range(2) for c in range(CLIENTS)]
    for work, seen in observed.works.items():
        assert len(seen.steps) == len(truth.steps[work]) == 2
        for read, true in zip(seen.steps, truth.steps[work], strict=True):
            assert torch.equal(read.states_BSD, true.states_BSD)
            assert set(true.examples_B) <= set(task.partition[work.client])
            for row, example in enumerate(true.examples_B.tolist()):
                own = task.train.ids(example).tolist()
                assert true.ids_BS[row, : int(read.lengths_B[row])].tolist() == own
                assert true.labels_B is not None and int(true.labels_B[row]) == int(task.train.labels[example])


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_read_is_what_the_edge_has_decoded(codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge's own tensors, caught while it decodes; its padding of the cohort is cut off."""
    decoded: dict[tuple[WorkKey, int, Role], torch.Tensor] = {}
    real_answer, real_decode, at_edge = EdgeCohort.answer, messages.CohortMessenger.decode, []

    def answer(self: Any, request: Any) -> Any:
        at_edge.append(True)
        try:
            return real_answer(self, request)
        finally:
            at_edge.pop()

    def decode(self: Any, role: Role, step: int, *arguments: Any) -> Any:
        values_NSD, lengths_CB, sizes = real_decode(self, role, step, *arguments)
        if at_edge:
            values_CBSD = values_NSD.detach().reshape(len(sizes), -1, *values_NSD.shape[1:])
            for member, own, (batch, length) in zip(self._cohort.members, values_CBSD, sizes, strict=True):
                decoded[member.key, step, role] = own[:batch, :length].clone()
        return values_NSD, lengths_CB, sizes

    monkeypatch.setattr(EdgeCohort, "answer", answer)
    monkeypatch.setattr(messages.CohortMessenger, "decode", decode)
    found = capture(config_of(tmp_path, CODECS[codec]))
    count = 0
    for work, seen in found.observed().works.items():
        for step, read in enumerate(seen.steps):
            assert torch.equal(read.states_BSD, decoded[work, step, Role.ACTIVATION_UP])
            assert torch.equal(read.gradients_BSD, decoded[work, step, Role.GRADIENT_UP])
            count += 2
    assert count == len(decoded) == 2 * 2 * 2 * CLIENTS


def test_who_gets_the_key_and_who_does_not(tmp_path: Path) -> None:
    found = capture(config_of(tmp_path, [SSOP]))
    edge, keyless, truth = found.observed(), found.observed(Attacker.KEYLESS), found.truth
    assert ships_keys(found.recipe.chains.activation)
    for work, seen in edge.works.items():
        own, held = truth.keys[work], seen.held.first
        assert all(torch.equal(one, two) for one, two in zip(own[0], held[0], strict=True))
        assert keyless.works[work].held.first == keyless.works[work].held.second == ((),)
    roles = {name: Counter(_roles(observed)) for name, observed in (("edge", edge), ("keyless", keyless))}
    assert roles["edge"][Role.KEY] == 2 * CLIENTS and Role.KEY not in roles["keyless"]
    assert roles["edge"] - Counter({Role.KEY: 2 * CLIENTS}) == roles["keyless"]


def _roles(observed: Any) -> list[Role]:
    """The sixth byte of each header says what a payload is."""
    return [Role(p[5]) for message in observed.messages for p in (*message.calibrations, message.payload)]


def test_without_the_key_rows_are_read_rotated(tmp_path: Path) -> None:
    found = capture(config_of(tmp_path, [SSOP]))
    keyless, truth = found.observed(Attacker.KEYLESS), found.truth
    for work, seen in keyless.works.items():
        for read, true in zip(seen.steps, truth.steps[work], strict=True):
            rows_TD = true.states_BSD.flatten(0, 1)
            turned_TD = true_rotation(found.recipe, truth, work, rows_TD)
            assert torch.allclose(read.states_BSD.flatten(0, 1), turned_TD, atol=1e-12)
            assert not torch.allclose(turned_TD, rows_TD, atol=1e-3)


@pytest.mark.parametrize(("refresh_rounds", "is_reused"), [(1, False), (2, True)])
def test_a_key_that_stays_is_nobody_elses_and_lives_as_long_as_it_should(
    refresh_rounds: int, is_reused: bool, tmp_path: Path
) -> None:
    found = capture(config_of(tmp_path, [{**SSOP, "invert": "client", "refresh_rounds": refresh_rounds}]))
    observed, keys = found.observed(), found.truth.keys
    assert not ships_keys(found.recipe.chains.activation)
    assert all(seen.held.first == ((),) for seen in observed.works.values())
    for client in range(CLIENTS):
        first, second = (keys[WorkKey(round_index, 0, client)][0][1] for round_index in range(2))
        assert torch.equal(first, second) == is_reused
    assert not torch.equal(keys[WorkKey(0, 0, 0)][0][1], keys[WorkKey(0, 0, 1)][0][1])


def test_bases_are_read_from_their_payloads(tmp_path: Path) -> None:
    """With them, and with nothing else, what was sent decodes to what the codec leaves of the plain states."""
    found = capture(config_of(tmp_path, CODECS["basis and int8"]))
    observed, truth, recipe = found.observed(Attacker.KEYLESS), found.truth, found.recipe
    for work, seen in observed.works.items():
        assert len(seen.held.first) == len(seen.held.second) == 2
        assert not torch.equal(seen.held.first[0][0], seen.held.second[0][0])
        rows_TD = truth.steps[work][1].states_BSD.flatten(0, 1)
        context = recipe.context(work, Role.ACTIVATION_UP, 1)
        expected_TD = through(recipe.chains.activation, rows_TD, context, truth.keys[work], seen.held.first)
        assert torch.equal(seen.steps[1].states_BSD.flatten(0, 1), expected_TD)


def test_each_text_of_a_victim_counts_once(tmp_path: Path) -> None:
    """Twelve texts a client in four steps of four: some come twice."""
    found = capture(config_of(tmp_path, [], local_steps=4, edge_rounds=2))
    observed, truth, tokens = found.observed(), found.truth, found.prepared.setting.task.train
    victims = victims_of(observed, truth)
    assert [victim.work for victim in victims] == [WorkKey(1, 1, client) for client in range(CLIENTS)]
    for victim in victims:
        examples = [example for step in truth.steps[victim.work] for example in step.examples_B.tolist()]
        once = list(dict.fromkeys(examples))
        assert len(once) == victim.num_texts < len(examples)
        assert victim.states.ids_T.tolist() == [token for example in once for token in tokens.ids(example).tolist()]
        assert victim.gradients.ids_T.tolist() == victim.states.ids_T.tolist()
        assert victim.label_N is not None and victim.label_N.tolist() == tokens.labels[once].tolist()
        true_TD = torch.cat([step.states_BSD.flatten(0, 1) for step in truth.steps[victim.work]])
        assert all((true_TD == row).all(dim=1).any() for row in victim.states.rows_TD)
        assert earlier_work(observed, victim.work) == WorkKey(0, 1, victim.work.client)
    assert earlier_work(observed, WorkKey(0, 1, 0)) is None
