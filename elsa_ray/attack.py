"""``elsa-ray attack``: trains a few rounds as a config says, attacks what was sent, and tells the outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import config_sha256, dump_config, load_config, make_config, read_yaml
from elsa_ray.experiment import rounds as rounds_of
from elsa_ray.model.split import Split
from elsa_ray.prepare import (
    Prepared,
    load_backbone,
    make_chains,
    make_recipe,
    make_tripartite,
    prepare,
    with_frame,
)
from elsa_ray.privacy.capture import observe, truth_of
from elsa_ray.privacy.inverter import InverterBudget
from elsa_ray.privacy.progress import AttackProgress
from elsa_ray.privacy.public_text import PublicText, computed_of_public_text
from elsa_ray.privacy.suite import Suite, attackers_of
from elsa_ray.privacy.table import AttackRow, attack_tables, attacks_overview, format_attacks, plain_row
from elsa_ray.privacy.tap import TappedExecutor
from elsa_ray.records.folder import CONFIG, empty_folder, new_default_folder
from elsa_ray.records.human import codec_name, data_name, human_share
from elsa_ray.records.json_text import json_text, write_whole
from elsa_ray.records.uri import refuse_uri
from elsa_ray.runtime.hardware import describe_hardware

ATTACKS_JSON, ATTACKS_MD = "attacks.json", "attacks.md"

_LEAST_PUBLIC_TEXTS = 4
"""Half of them are tried against the other half."""


@dataclass(frozen=True)
class Attacks:
    """What was found.

    Attributes:
        folder: where ``attacks.json``, ``attacks.md`` and the config lie.
        rows: an outcome each.
    """

    folder: Path
    rows: tuple[AttackRow, ...]


@dataclass(frozen=True)
class _Attacked:
    """The attacks on one codec.

    Attributes:
        codec: ``protocol.codec`` as plain values.
        rows: outcomes.
        clients, texts: that were attacked.
        covered_share: share of their tokens that the public text has.
    """

    codec: Any
    rows: tuple[AttackRow, ...]
    clients: int
    texts: int
    covered_share: float


def attack(
    config_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    rounds: int = 2,
    clients: int = 8,
    codecs: str | Path | None = None,
    out: str | Path | None = None,
    budget: InverterBudget | None = None,
    console: Console | None = None,
) -> Attacks:
    """Attack what a config sends.

    The attacker's public text is the task's test set, labels included. Training is inline, whatever the config's
    executor is: the payloads are the same.

    Args:
        config_path: the experiment, a YAML file.
        overrides: ``a.b=c`` texts.
        rounds: global rounds to train, at most the config's; the last one is attacked.
        clients: to attack, at most: the first that take part.
        codecs: a YAML file with a ``protocol.codec`` by name; each is attacked in place of the config's own.
        out: the folder; by default a new one under ``runs/``.
        budget: of the trained inverter.
        console: where progress and the table are shown; None shows nothing.

    Raises:
        InputError: the input is wrong; nothing was trained.
        WorkerError: the training failed; the codecs that were finished are kept in the folder.
    """
    console, begin = console or Console(quiet=True), perf_counter()
    for option, number in (("--rounds", rounds), ("--clients", clients)):
        if number < 1:
            raise InputError(option, number, "1 or more")
    refuse_uri("--out", out)
    config = load_config(config_path, overrides)
    configs = {codec_name(config): config} if codecs is None else with_codecs(config, Path(codecs))
    with console.status("checking each codec against data, model and network"):
        all_prepared = {name: _prepared(own) for name, own in configs.items()}
    folder = (new_default_folder(f"attack-{config.name}") if out is None else empty_folder(Path(out))).resolve()
    one = next(iter(all_prepared.values()))
    write_whole(folder / CONFIG, dump_config(one.config.model_copy(update={"protocol": config.protocol})))
    done: dict[str, _Attacked] = {}
    with AttackProgress(console, len(all_prepared)) as progress:
        for name, prepared in all_prepared.items():
            done[name] = _attacked(name, prepared, rounds, clients, budget, progress)
            progress.codec(name, len(done[name].rows))
            _write(folder, one, rounds, done, perf_counter() - begin)
    rows = tuple(row for own in done.values() for row in own.rows)
    console.print(*attack_tables(rows), sep="\n")
    console.print(f"attacks: {folder / ATTACKS_MD}", soft_wrap=True, markup=False, highlight=False)
    return Attacks(folder, rows)


def with_codecs(config: ExperimentConfig, path: Path) -> dict[str, ExperimentConfig]:
    """Return the config with each codec of a file, by name.

    Raises:
        InputError: the file or a codec is wrong; the latter is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "no UTF-8 text"
        raise InputError(str(path), found, "a readable YAML file") from None
    codecs = read_yaml(text, str(path))
    if not isinstance(codecs, dict) or not codecs:
        raise InputError(str(path), type(codecs).__name__, "a mapping of names to protocol.codec, such as int8: [...]")
    values, configs = config.model_dump(mode="json"), {}
    for name, codec in codecs.items():
        try:
            configs[str(name)] = make_config({**values, "protocol": {**values["protocol"], "codec": codec}})
            make_chains(configs[str(name)])
        except InputError as error:
            raise InputError(
                f"{path} {name}: {error.where}", error.found, error.allowed, nearest=error.nearest
            ) from None
    return configs


def _prepared(config: ExperimentConfig) -> Prepared:
    """Prepare a run, weights excepted, and see that there will be something to attack, and something to do it with."""
    prepared = prepare(config)
    plan = prepared.protocol.plan(prepared.protocol.start(None), prepared.world.start())
    if not np.any(plan.work.middle > 0):
        raise InputError("protocol.name", config.protocol.name, "a protocol that splits the model, such as elsa")
    num_public = len(prepared.setting.task.test)
    if num_public < _LEAST_PUBLIC_TEXTS:
        allowed = f"at least {_LEAST_PUBLIC_TEXTS}: the test set is the attacker's public text"
        raise InputError("task.dataset", f"{num_public} test texts", allowed)
    return prepared


def _attacked(
    name: str, prepared: Prepared, rounds: int, clients: int, budget: InverterBudget | None, progress: AttackProgress
) -> _Attacked:
    """Train with one codec and let each attacker try everything."""
    setting, task = prepared.setting, prepared.setting.task
    progress.status(name, "loading the model")
    backbone, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), backbone, adapters)
    model = make_tripartite(prepared, backbone)
    tokenizer = task.backbone.tokenizer
    assert tokenizer is not None
    special_ids = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    rows = list[AttackRow]()
    executor = TappedExecutor(setting, model, recipe, clients)
    with executor:
        progress.status(name, f"training round 1 of {rounds}")
        for finished in islice(rounds_of(prepared, prepared.protocol.start(adapters), executor), rounds):
            progress.status(name, f"training round {finished.state.round_index + 1} of {rounds}")
        tap = executor.tap

        @cache
        def public(round_index: int, split: Split) -> PublicText:
            return computed_of_public_text(model, tap.models[round_index], split, task.test, recipe.pad_id)

        truth = truth_of(tap, setting, recipe)
        for attacker in attackers_of(recipe.chains.activation):
            progress.status(name, f"reading as {attacker.value}")
            observed = observe(tap, recipe, setting.shape.hidden_size, attacker)
            suite = Suite(
                name,
                recipe,
                observed,
                truth,
                public,
                special_ids=special_ids,
                num_labels=task.num_labels,
                budget=budget,
            )
            for row in suite.rows():
                rows.append(row)
                progress.status(name, row.attack)
    codec = prepared.config.protocol.model_dump(mode="json").get("codec")
    texts = sum(victim.num_texts for victim in suite.victims)
    return _Attacked(codec, tuple(rows), len(suite.victims), texts, suite.covered_share)


def _write(folder: Path, prepared: Prepared, rounds: int, done: Mapping[str, _Attacked], wall_seconds: float) -> None:
    """Write what is known so far, whole."""
    config, test = prepared.config, prepared.setting.task.test
    rows = [row for own in done.values() for row in own.rows]
    values = {
        "name": config.name,
        "config_sha256": config_sha256(config),
        "rounds": rounds,
        "public_text": {"source": "test set", "num_texts": len(test), "num_tokens": int(test.lengths.sum())},
        "attacked": {
            name: {
                "codec": own.codec,
                "clients": own.clients,
                "texts": own.texts,
                "covered_share": own.covered_share,
            }
            for name, own in done.items()
        },
        "rows": [plain_row(row) for row in rows],
        "hardware": describe_hardware(),
        "wall_seconds": wall_seconds,
    }
    write_whole(folder / ATTACKS_JSON, json_text(values, indent=2) + "\n")
    write_whole(folder / ATTACKS_MD, _markdown(prepared, rounds, done, rows))


def _markdown(prepared: Prepared, rounds: int, done: Mapping[str, _Attacked], rows: Sequence[AttackRow]) -> str:
    config, setting, one = prepared.config, prepared.setting, next(iter(done.values()))
    setup = (
        f"{setting.task.backbone.name} on {data_name(config)}, seed {config.seed}; last of {rounds} rounds: "
        f"{one.clients} clients with {one.texts:,} texts. Public text: the {len(setting.task.test):,} texts of the "
        f"test set, which have {human_share(one.covered_share)} of the private tokens."
    )
    return "\n".join([f"# Attacks on {config.name}", "", setup, "", attacks_overview(rows), format_attacks(rows, "md")])
