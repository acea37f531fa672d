"""The attacks on real runs: a reused key falls to an earlier round's plaintexts, a fresh one does not, secrets stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from elsa_ray.codecs import ssop
from elsa_ray.config.errors import InputError
from elsa_ray.privacy import suite as suite_module
from elsa_ray.privacy.capture import Attacker, Truth
from elsa_ray.privacy.channel import NUM_KEYS, OwnChannel, hidden_rank, known_pairs, own_context, true_rotation
from elsa_ray.privacy.suite import attacker_text, attackers_of, keys_text
from elsa_ray.privacy.table import AttackRow
from elsa_ray.privacy.victims import victims_of
from elsa_ray.tasks.seeds import derive_seed
from elsa_ray.world.roles import Role

from ..helpers import chain
from .captured import RANK, SSOP, Captured, capture, config_of

CLIENT = {**SSOP, "invert": "client"}
ORACLE = "tokens: key"


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def of(name: str) -> Captured:
        codecs: dict[str, list[dict[str, Any]]] = {
            "none": [],
            "edge": [SSOP],
            "client": [CLIENT],
            "reused": [{**CLIENT, "refresh_rounds": 2}],
            "basis": [{"kind": "subspace", "rank": 9}],
        }
        return capture(config_of(tmp_path_factory.mktemp("run"), codecs[name]))

    return of


def by_attack(rows: list[AttackRow]) -> dict[str, AttackRow]:
    assert len({row.attack for row in rows}) == len(rows)
    return {row.attack: row for row in rows}


def rates(rows: Mapping[str, AttackRow]) -> dict[str, float]:
    return {attack: row.success.rate for attack, row in rows.items() if row.success is not None}


def test_a_reused_key_falls_to_an_earlier_round_and_a_fresh_one_does_not(captured: Any) -> None:
    """Eight pairs are enough for rank 6; what is undone is then inverted as if there had been no codec."""
    plain = by_attack(list(captured("none").suite().rows()))["tokens: nearest neighbour"]
    fresh, reused = (by_attack(list(captured(name).suite().rows())) for name in ("client", "reused"))
    for rows in (fresh, reused):
        this = rows["tokens: key by 8 known, this round"]
        assert this.key_error is not None and this.key_error < 1e-6
        assert this.success is not None and this.success.rate > 0.9
        assert this.success.guess_rate == pytest.approx(plain.success.guess_rate)
    error = {
        name: rows["tokens: key by 64 known, earlier round"].key_error
        for name, rows in (("fresh", fresh), ("reused", reused))
    }
    assert error["reused"] < 1e-6 and error["fresh"] > 0.5
    last = "tokens: key by 512 known, this round"
    assert fresh[last].success is None and "public tokens" in fresh[last].note


def test_in_the_first_round_there_is_no_earlier_one(tmp_path: Path) -> None:
    rows = by_attack(list(capture(config_of(tmp_path, [CLIENT], rounds=1)).suite().rows()))
    row = rows["tokens: key by 8 known, earlier round"]
    assert row.success is None and row.key_error is None and row.note == "there is no earlier round"
    assert rows["tokens: key by 8 known, this round"].success is not None


def test_plain_tokens_and_labels_are_found(captured: Any) -> None:
    """Positive control: random weights, no codec."""
    rows = by_attack(list(captured("none").suite().rows()))
    assert {row.attacker for row in rows.values()} == {"edge, eavesdropper"} and not any(ORACLE in a for a in rows)
    for attack in ("tokens: nearest neighbour", "tokens: nearest neighbour, adapted"):
        assert rows[attack].success.rate > 0.7 > 0.2 > rows[attack].success.guess_rate
    labels = rows["labels: gradients against public texts"].success
    assert labels.rate > labels.guess_rate and labels.count == sum(
        v.num_texts for v in captured("none").suite().victims
    )


def test_who_holds_the_key_reads_what_is_sent_without_one(captured: Any) -> None:
    """SS-OP with the key at the edge loses nothing: the training is the same, and so is what the edge finds."""
    plain, edge = (rates(by_attack(list(captured(name).suite().rows()))) for name in ("none", "edge"))
    assert edge == pytest.approx(plain)
    keyless = rates(by_attack(list(captured("edge").suite(Attacker.KEYLESS).rows())))
    assert keyless["tokens: nearest neighbour"] < plain["tokens: nearest neighbour"] - 0.2


class Untouchable(dict[Any, Any]):
    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("an attack has read a secret key")


@pytest.mark.parametrize(("name", "attacker"), [("client", Attacker.EDGE), ("edge", Attacker.KEYLESS)])
def test_no_attack_reads_a_secret(
    name: str, attacker: Attacker, captured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rotation is drawn from the run's seed once the run is over, and keys are touched by oracle and score alone."""
    found = captured(name)
    run_seed, drawn = found.recipe.seed, list[tuple[Any, ...]]()
    real = ssop.numpy_generator
    monkeypatch.setattr(ssop, "numpy_generator", lambda *parts: drawn.append(parts) or real(*parts))
    expected = list(found.suite(attacker).rows())
    assert len(drawn) == NUM_KEYS + 1 and len({parts[0] for parts in drawn}) == NUM_KEYS + 1
    assert all(parts[0] != run_seed for parts in drawn)

    locked = Truth(found.truth.steps, Untouchable())
    with pytest.raises(AssertionError, match="has read a secret key"):
        list(found.suite(attacker, locked).rows())
    monkeypatch.setattr(suite_module, "known_pairs", lambda recipe, observed, truth, work, plain_KD: plain_KD)
    monkeypatch.setattr(suite_module, "true_rotation", lambda recipe, truth, work, rows_TD: rows_TD)
    rows = list(found.suite(attacker, locked).rows())
    needs_no_oracle = [row for row in expected if not row.attack.startswith("tokens: key by")]
    assert len(needs_no_oracle) == 8
    for row, own in zip(expected, rows, strict=True):
        if row in needs_no_oracle:
            assert own.success == row.success
    # The positive control: the run itself draws its secrets from its seed.
    drawn.clear()
    capture(found.prepared.config, num_clients=1)
    assert {parts[:2] for parts in drawn} == {(run_seed, "client-secret")}


def test_the_attackers_keys_are_its_own(captured: Any) -> None:
    found = captured("client")
    seeds = {own_context(derive_seed(found.recipe.seed, "attacks"), number).seed for number in range(NUM_KEYS)}
    assert len(seeds) == NUM_KEYS and found.recipe.seed not in seeds
    observed, truth = found.observed(), found.truth
    work = victims_of(observed, truth)[0].work
    rows_TD = truth.steps[work][0].states_BSD.flatten(0, 1)
    channel = OwnChannel(found.recipe, observed, rows_TD, 1)
    first, second = (channel.seen(Role.ACTIVATION_UP, rows_TD, work, number) for number in (0, 1))
    true_TD = true_rotation(found.recipe, truth, work, rows_TD)
    for one, two in ((first, second), (first, true_TD), (first, rows_TD)):
        assert not torch.allclose(one, two, atol=1e-3)
    assert torch.allclose(channel.seen(Role.ACTIVATION_UP, rows_TD, work, 0, key_known=True), rows_TD, atol=1e-5)
    assert torch.allclose(known_pairs(found.recipe, observed, truth, work, rows_TD), true_TD, atol=1e-9)
    gradients_TD = channel.seen(Role.GRADIENT_UP, rows_TD, work, 0)
    assert torch.allclose(gradients_TD, first, atol=1e-9), "the same key serves the gradients"


def test_known_bases_are_the_clients_own(captured: Any) -> None:
    """Nothing is hidden: what the attacker sends itself comes back as the client's does, whatever keys it has made."""
    found = captured("basis")
    observed, truth = found.observed(), found.truth
    channel = OwnChannel(found.recipe, observed, truth.steps[min(truth.steps)][0].states_BSD.flatten(0, 1), 1)
    for work, seen in observed.works.items():
        rows_TD = truth.steps[work][0].states_BSD.flatten(0, 1)
        for number in (0, 5):
            sent_TD = channel.seen(Role.ACTIVATION_UP, rows_TD, work, number)
            assert torch.allclose(sent_TD, seen.steps[0].states_BSD.flatten(0, 1), atol=1e-12)


def test_tokens_that_the_public_text_lacks_are_counted(tmp_path: Path) -> None:
    """Four public texts do not have all of thirty words."""
    found = capture(config_of(tmp_path, [], num_test=4), num_clients=2)
    suite, task = found.suite(), found.prepared.setting.task
    special = set(task.backbone.tokenizer.all_special_ids)
    private = [token for v in suite.victims for token in v.states.ids_T.tolist() if token not in special]
    public = set(task.test.token_ids.tolist())
    assert suite.covered_share == pytest.approx(sum(token in public for token in private) / len(private))
    assert suite.covered_share < 1
    outcome = by_attack(list(suite.rows()))["tokens: nearest neighbour"].success
    assert outcome.count == len(private) and outcome.rate <= suite.covered_share
    assert [victim.work.client for victim in suite.victims] == [0, 1]


def test_keys_and_readers_are_named() -> None:
    at_edge, kept, reused = chain(SSOP), chain(CLIENT), chain({**CLIENT, "refresh_rounds": 5}, {"kind": "int8"})
    assert [keys_text(own) for own in (at_edge, kept, reused)] == [
        "invert=edge, fresh",
        "invert=client, fresh",
        "invert=client, reused",
    ]
    assert keys_text(chain({"kind": "subspace"})) == keys_text(chain()) == "–"
    assert attackers_of(at_edge) == (Attacker.EDGE, Attacker.KEYLESS) and attackers_of(kept) == (Attacker.EDGE,)
    texts = [attacker_text(at_edge, attacker) for attacker in Attacker]
    assert texts == ["edge, eavesdropper with keys", "eavesdropper without keys"]
    assert attacker_text(kept, Attacker.EDGE) == "edge, eavesdropper"


def test_a_rotation_counts_as_hidden_only_where_it_turns_the_states() -> None:
    held = (torch.zeros(8, RANK), torch.eye(RANK))
    assert hidden_rank(chain(CLIENT), ((),)) == hidden_rank(chain(CLIENT), ()) == RANK
    assert hidden_rank(chain(SSOP), (held,)) is None
    assert hidden_rank(chain({"kind": "subspace", "rank": 9}, CLIENT), ((), ())) is None
    assert hidden_rank(chain(), ()) is None


def test_without_a_cut_there_is_no_victim(captured: Any) -> None:
    found = captured("none")
    with pytest.raises(InputError, match="no payload at a cut"):
        victims_of(replace(found.observed(), works={}), found.truth)


def test_causal_models_have_tokens_to_lose_and_no_labels(tmp_path: Path) -> None:
    config = config_of(tmp_path, [])
    task = config.task.model_copy(update={"kind": "causal_lm", "model": "tiny_gpt2"})
    rows = by_attack(list(capture(config.model_copy(update={"task": task})).suite().rows()))
    assert {attack.split(":")[0] for attack in rows} == {"tokens"}
    assert (
        rows["tokens: nearest neighbour"].success.rate
        > 0.3
        > 0.1
        > rows["tokens: nearest neighbour"].success.guess_rate
    )
