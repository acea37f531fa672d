"""Misbehaving clients: who they are, what exactly they send, and that nobody else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from elsa_ray.config.errors import InputError
from elsa_ray.config.misbehaviour import Misbehaviour, MisbehaviourConfig, check_misbehaviour_of_task
from elsa_ray.config.section import Section
from elsa_ray.config.validate import validate
from elsa_ray.model.adapters import Adapters
from elsa_ray.training.misbehaviour import (
    misbehaviour_of_clients,
    needs_memory,
    sent_adapters,
    told_answers,
    trained_labels,
)
from elsa_ray.world.plan import WorkKey

KEY, SEED = WorkKey(2, 0, 5), 11

DEEDS: dict[str, dict[str, Any]] = {
    "label_flip": {},
    "sign_flip": {"scale": 0.5},
    "scaled_update": {"factor": 4.0},
    "gaussian_update": {"deviation": 2.0},
    "probe_liar": {},
    "stale_replay": {},
    "nan_payload": {},
}
OF_ADAPTERS = ["sign_flip", "scaled_update", "gaussian_update", "stale_replay", "nan_payload"]


class World(Section):
    misbehaviour: list[MisbehaviourConfig] = []


def specs(*entries: dict[str, Any]) -> list[Misbehaviour]:
    return validate(World, {"misbehaviour": list(entries)}, "world").misbehaviour


def spec(kind: str, **options: Any) -> Misbehaviour:
    (only,) = specs({"kind": kind, "share": 1.0, **DEEDS.get(kind, {}), **options})
    return only


def sleeper(kind: str, rounds: int) -> Misbehaviour:
    return spec("sleeper", rounds=rounds, then={"kind": kind, **DEEDS[kind]})


def adapters(seed: int, shape: tuple[int, ...] = (40, 50)) -> Adapters:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in ("a", "b")}


RECEIVED, TRAINED, PREVIOUS = adapters(0), adapters(1), adapters(2)


def sent(of: Misbehaviour | None, key: WorkKey = KEY, seed: int = SEED, previous: Any = PREVIOUS) -> Adapters:
    return sent_adapters(of, RECEIVED, TRAINED, previous, key, seed)


def same_bits(first: Adapters, second: Adapters) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Who


def test_named_clients_come_first_and_shares_are_taken_from_the_others() -> None:
    listed = specs(
        {"kind": "nan_payload", "share": 0.29},
        {"kind": "label_flip", "clients": [7, 3]},
        {"kind": "sign_flip", "share": 0.5},
    )
    deeds = misbehaviour_of_clients(listed, 100, SEED)
    assert [client for client, deed in enumerate(deeds) if deed is listed[1]] == [3, 7]
    assert sum(deed is listed[0] for deed in deeds) == 29
    assert sum(deed is listed[2] for deed in deeds) == 50
    assert sum(deed is None for deed in deeds) == 19


@given(
    shares=st.lists(st.integers(1, 40), min_size=1, max_size=4).filter(lambda parts: sum(parts) <= 100),
    num_clients=st.integers(1, 300),
    seed=st.integers(0, 2**63),
)
def test_shares_are_rounded_down_and_nobody_is_chosen_twice(shares: list[int], num_clients: int, seed: int) -> None:
    expected = [num_clients * percent // 100 for percent in shares]
    listed = specs(*({"kind": "nan_payload", "share": percent / 100} for percent in shares))
    if min(expected) == 0:
        with pytest.raises(InputError, match="at least one client"):
            misbehaviour_of_clients(listed, num_clients, seed)
        return
    deeds = misbehaviour_of_clients(listed, num_clients, seed)
    assert [sum(deed is one for deed in deeds) for one in listed] == expected
    assert len(deeds) == num_clients
    assert misbehaviour_of_clients(listed, num_clients, seed) == deeds


def test_the_choice_depends_on_the_seed_and_a_further_entry_changes_nobody_before() -> None:
    first, second = specs({"kind": "nan_payload", "share": 0.3}, {"kind": "sign_flip", "share": 0.3})
    alone = misbehaviour_of_clients([first], 50, 1)
    both = misbehaviour_of_clients([first, second], 50, 1)
    assert all(deed is first for deed, before in zip(both, alone, strict=True) if before is not None)
    assert [deed is first for deed in misbehaviour_of_clients([first], 50, 2)] != [deed is first for deed in alone]
    assert misbehaviour_of_clients([], 3, 1) == (None, None, None)


# What


@pytest.mark.parametrize("of", [None, *map(sleeper, DEEDS, [3] * len(DEEDS))], ids=["honest", *DEEDS])
def test_the_honest_and_the_sleeping_give_back_the_very_objects(of: Misbehaviour | None) -> None:
    labels, answers_QK = torch.tensor([0, 1]), torch.rand(4, 3)
    assert sent(of) is TRAINED
    assert trained_labels(of, labels, 3, KEY.round_index) is labels
    assert told_answers(of, answers_QK, KEY, SEED) is answers_QK


@pytest.mark.parametrize("kind", DEEDS)
def test_each_kind_touches_one_thing_only_and_a_sleeper_wakes_to_it(kind: str) -> None:
    labels, answers_QK = torch.tensor([0, 1]), torch.rand(4, 3)
    for of in (spec(kind), sleeper(kind, 2)):
        assert (sent(of) is TRAINED) == (kind not in OF_ADAPTERS)
        assert (trained_labels(of, labels, 3, KEY.round_index) is labels) == (kind != "label_flip")
        assert (told_answers(of, answers_QK, KEY, SEED) is answers_QK) == (kind != "probe_liar")
        assert needs_memory(of) == (kind == "stale_replay")
    awake, woken = sent(spec(kind)), sent(sleeper(kind, 2))
    assert same_bits(awake, woken) or kind == "nan_payload"


@pytest.mark.parametrize("kind", OF_ADAPTERS)
def test_inputs_are_not_changed_in_place(kind: str) -> None:
    sent(spec(kind))
    assert same_bits(RECEIVED, adapters(0)) and same_bits(TRAINED, adapters(1)) and same_bits(PREVIOUS, adapters(2))


def test_labels_are_mirrored_and_absent_texts_stay_absent() -> None:
    labels = torch.tensor([[0, 1, 5], [4, -100, -100]])
    assert trained_labels(spec("label_flip"), labels, 6, 0).tolist() == [[5, 4, 0], [1, -100, -100]]


def test_updates_by_their_formulas() -> None:
    for name, received in RECEIVED.items():
        update = TRAINED[name] - received
        assert torch.equal(sent(spec("sign_flip"))[name], received - 0.5 * update)
        assert torch.equal(sent(spec("scaled_update"))[name], received + 4.0 * update)
        assert torch.isnan(sent(spec("nan_payload"))[name]).all()
    assert same_bits(sent(spec("scaled_update", factor=1.0)), {n: r + (TRAINED[n] - r) for n, r in RECEIVED.items()})


def test_stale_replay_is_honest_at_first_and_for_tensors_that_it_had_not_sent() -> None:
    assert sent(spec("stale_replay"), previous=None) is TRAINED
    assert same_bits(sent(spec("stale_replay")), PREVIOUS)
    part = sent(spec("stale_replay"), previous={"a": PREVIOUS["a"]})
    assert part["a"] is PREVIOUS["a"] and part["b"] is TRAINED["b"]


def test_gaussian_updates_have_the_size_of_the_honest_one_and_are_independent_of_it() -> None:
    wrong = sent(spec("gaussian_update"))
    for name, received in RECEIVED.items():
        update, noise = (TRAINED[name] - received).flatten(), (wrong[name] - received).flatten()
        # 2000 numbers: standard deviation of the mean square sqrt(2/2000) = 3 %, of a correlation 1/sqrt(2000) = 2 %.
        assert float(noise.square().mean()) == pytest.approx(4 * float(update.square().mean()), rel=0.15)
        assert abs(torch.corrcoef(torch.stack([update, noise]))[0, 1]) < 0.1
    noises = [(wrong[name] - RECEIVED[name]).flatten() for name in RECEIVED]
    assert abs(torch.corrcoef(torch.stack(noises))[0, 1]) < 0.1


def test_a_liar_tells_probability_vectors_that_have_nothing_to_do_with_its_answers() -> None:
    answers_QK = torch.softmax(5 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    told_QK = told_answers(spec("probe_liar"), answers_QK, KEY, SEED)
    assert told_QK.shape == answers_QK.shape and told_QK.dtype == answers_QK.dtype
    assert bool((told_QK >= 0).all()) and torch.allclose(told_QK.sum(dim=1), torch.ones(500))
    agreement = (told_QK.argmax(dim=1) == answers_QK.argmax(dim=1)).double().mean()
    assert abs(float(agreement) - 0.25) < 0.1  # 5 standard deviations
    assert torch.equal(told_QK, told_answers(spec("probe_liar"), 1 - answers_QK, KEY, SEED))


@pytest.mark.parametrize("other", [WorkKey(3, 0, 5), WorkKey(2, 1, 5), WorkKey(2, 0, 6), None], ids=str)
def test_draws_are_a_function_of_seed_client_and_round(other: WorkKey | None) -> None:
    noisy, liar, answers_QK = spec("gaussian_update"), spec("probe_liar"), torch.rand(4, 3)
    key, seed = (KEY, SEED + 1) if other is None else (other, SEED)
    assert same_bits(sent(noisy), sent(noisy))
    assert not torch.equal(sent(noisy)["a"], sent(noisy, key, seed)["a"])

    def told(key: WorkKey, seed: int) -> Tensor:
        return told_answers(liar, answers_QK, key, seed)

    assert torch.equal(told(KEY, SEED), told(KEY, SEED))
    assert not torch.equal(told(KEY, SEED), told(key, seed))


def test_draws_leave_the_global_streams_alone() -> None:
    before = torch.get_rng_state()
    sent(spec("gaussian_update"))
    told_answers(spec("probe_liar"), torch.rand(0, 3), KEY, SEED)
    assert torch.equal(before, torch.get_rng_state())


# Wrong input

BAD_ENTRIES: list[tuple[dict[str, Any], list[str]]] = [
    ({"kind": "lable_flip", "share": 0.1}, ["misbehaviour.0.kind: found lable_flip; allowed: ", "mean label_flip?"]),
    ({"share": 0.1}, ["misbehaviour.0.kind: found nothing"]),
    ({"kind": "nan_payload"}, ["misbehaviour.0: found", "exactly one of share and clients"]),
    ({"kind": "nan_payload", "share": 0.1, "clients": [0]}, ["exactly one of share and clients"]),
    ({"kind": "nan_payload", "share": 0.0}, ["misbehaviour.0.share: found 0.0; allowed: greater than 0"]),
    ({"kind": "nan_payload", "share": 1.5}, ["misbehaviour.0.share: found 1.5; allowed: less than or equal to 1"]),
    ({"kind": "nan_payload", "clients": []}, ["misbehaviour.0.clients: found []"]),
    ({"kind": "nan_payload", "clients": [-1]}, ["misbehaviour.0.clients.0: found -1"]),
    ({"kind": "nan_payload", "share": 0.1, "scale": 2.0}, ["misbehaviour.0.scale: found an unknown key"]),
    ({"kind": "sign_flip", "share": 0.1, "scale": float("inf")}, ["misbehaviour.0.scale: found inf"]),
    ({"kind": "sleeper", "share": 0.1, "rounds": 2}, ["misbehaviour.0.then: found nothing"]),
    (
        {"kind": "sleeper", "share": 0.1, "rounds": 2, "then": {"kind": "sleeper"}},
        ["misbehaviour.0.then.kind: found sleeper; allowed: "],
    ),
    (
        {"kind": "sleeper", "share": 0.1, "rounds": 2, "then": {"kind": "nan_payload", "share": 0.1}},
        ["misbehaviour.0.then: found", "neither share nor clients here"],
    ),
]


@pytest.mark.parametrize(("entry", "parts"), BAD_ENTRIES)
def test_wrong_entries_are_told_in_one_line(entry: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        specs(entry)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


BAD_CHOICES: list[tuple[list[dict[str, Any]], str]] = [
    ([{"clients": [10]}], "world.misbehaviour.0.clients: found 10; allowed: indices from 0 to 9"),
    ([{"clients": [1, 1]}], "world.misbehaviour.0.clients: found client 1 twice; allowed: each client once"),
    ([{"clients": [1]}, {"clients": [2, 1]}], "world.misbehaviour.1.clients: found client 1 twice"),
    ([{"share": 0.6}, {"share": 0.6}], "world.misbehaviour.1.share: found 0.6 of 10 clients; allowed: at most the 4"),
    ([{"share": 1.0}, {"clients": [2]}], "world.misbehaviour.0.share: found 1.0 of 10 clients; allowed: at most the 9"),
    ([{"share": 0.09}], "world.misbehaviour.0.share: found 0.09 of 10 clients; allowed: a share of at least one"),
]


@pytest.mark.parametrize(("entries", "message"), BAD_CHOICES)
def test_wrong_choices_are_told_in_one_line(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        misbehaviour_of_clients(specs(*({"kind": "nan_payload", **entry} for entry in entries)), 10, SEED)
    assert str(caught.value).startswith(message), str(caught.value)


def test_there_are_no_labels_to_flip_in_a_causal_language_model() -> None:
    for of, path in ((spec("label_flip"), "1.kind"), (sleeper("label_flip", 2), "1.then.kind")):
        check_misbehaviour_of_task([spec("sign_flip"), of], causal_lm=False)
        with pytest.raises(InputError, match=f"world.misbehaviour.{path}: found label_flip; allowed: any other kind"):
            check_misbehaviour_of_task([spec("sign_flip"), of], causal_lm=True)
    check_misbehaviour_of_task([spec(kind) for kind in DEEDS if kind != "label_flip"], causal_lm=True)
