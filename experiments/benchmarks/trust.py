"""How well trust tells bad clients from honest ones: the area under the ROC curve after each round, for each attack.

    python experiments/benchmarks/trust.py experiments/trust.yaml [--evidence reported] [--attacks sign_flip,probe_liar]

A client's figure is the factor of its weight (0 while it is excluded). Options of the form a.b=c change the config.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table

from elsa_ray.clustering.trust import TrustState, trust_weight
from elsa_ray.config.load import load_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import InlineExecutor

ATTACKS = {
    "none": "[]",
    "label_flip": "[{kind: label_flip, share: 0.3}]",
    "sign_flip": "[{kind: sign_flip, share: 0.3}]",
    "scaled_update": "[{kind: scaled_update, share: 0.3}]",
    "gaussian_update": "[{kind: gaussian_update, share: 0.3}]",
    "stale_replay": "[{kind: stale_replay, share: 0.3}]",
    "nan_payload": "[{kind: nan_payload, share: 0.3}]",
    "sleeper": "[{kind: sleeper, share: 0.3, rounds: 2, then: {kind: sign_flip}}]",
    "probe_liar": "[{kind: probe_liar, share: 0.3}]",
}


def roc_auc(bad: np.ndarray, honest: np.ndarray) -> float:
    """Return the chance that a bad client's figure is below an honest one's; equal ones count half."""
    below = (bad[:, None] < honest[None, :]).mean() + (bad[:, None] == honest[None, :]).mean() / 2
    return float(below)


def play(config_path: str, overrides: list[str]) -> Iterator[tuple[Round, tuple[bool, ...]]]:
    """Run an experiment in this process; yields each round, and which clients are bad."""
    prepared = prepare(load_config(config_path, overrides))
    model, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
    deeds = prepared.setting.misbehaviour or (None,) * prepared.setting.num_clients
    with InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe) as executor:
        for finished in rounds(prepared, prepared.protocol.start(adapters), executor):
            yield finished, tuple(deed is not None for deed in deeds)


def main() -> None:
    """Run all attacks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--evidence", default="verified", choices=["verified", "reported"])
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    table = Table(title=f"{arguments.config}, evidence {arguments.evidence}")
    for column in ("attack", "AUC by round", "bad excluded", "honest excluded", "accuracy", "wall s"):
        table.add_column(column)
    for attack in arguments.attacks.split(","):
        overrides = [f"protocol.trust.evidence={arguments.evidence}", f"world.misbehaviour={ATTACKS[attack]}"]
        begin, areas = perf_counter(), []
        for finished, is_bad in play(arguments.config, [*overrides, *arguments.overrides]):
            trust, section = finished.state.trust, load_config(arguments.config, overrides).protocol.trust
            standings = [trust.get(client, TrustState()) for client in range(len(is_bad))]
            weights = np.array([trust_weight(own, finished.state.round_index, section) for own in standings])
            bad = np.array(is_bad)
            areas.append(f"{roc_auc(weights[bad], weights[~bad]):.2f}" if bad.any() else "-")
        excluded = np.array([own.is_excluded(finished.state.round_index) for own in standings])
        score = finished.results.score
        table.add_row(
            attack,
            " ".join(areas),
            f"{int(excluded[bad].sum())} of {int(bad.sum())}",
            f"{int(excluded[~bad].sum())} of {int((~bad).sum())}",
            f"{score.accuracy:.3f}" if score and score.accuracy is not None else "-",
            f"{perf_counter() - begin:.0f}",
        )
        Console().print(f"{attack}: {areas[-1]} after {perf_counter() - begin:.0f} s")
    Console().print(table)


if __name__ == "__main__":
    main()
