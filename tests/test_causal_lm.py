"""Causal language modelling through the split, on the shipped experiment."""

from pathlib import Path

from elsa_ray.api import run
from elsa_ray.config.load import load_config
from elsa_ray.prepare import load_backbone, make_recipe, make_tripartite, prepare
from elsa_ray.training.evaluation import evaluation_pieces, score_piece

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "causal_lm.yaml"


def loss_before_training(config) -> float:
    prepared = prepare(config)
    model, adapters = load_backbone(prepared)
    tripartite, task = make_tripartite(prepared, model), prepared.setting.task
    pad_id = make_recipe(prepared).pad_id
    scores = [score_piece(tripartite, adapters, task.test, piece, pad_id, 0) for piece in evaluation_pieces(task.test)]
    total = scores[0]
    for score in scores[1:]:
        total = total + score
    return total.loss


def test_the_loss_falls_by_a_nat(tmp_path: Path) -> None:
    config = load_config(EXPERIMENT, ["runtime.executor=inline", "numerics.precision=fp32"])
    before = loss_before_training(config)
    summary = run(config, out=tmp_path / "run").summary
    assert summary["loss"] <= before - 1
    assert summary["accuracy"] is None
    assert summary["metrics"]["perplexity"] > 1


def test_the_split_run_equals_the_unsplit_one(tmp_path: Path) -> None:
    """ELSA through one edge against federated averaging of whole models: the same losses, but for rounding."""
    common = ["runtime.executor=inline", "numerics.precision=fp64", "protocol.wire_dtype=fp64", "topology.edges=1"]
    common += ["protocol.rounds=1", "protocol.local_steps=3", "topology.clients=4"]
    split = run(load_config(EXPERIMENT, common), out=tmp_path / "split").summary
    fedavg = "protocol={name: fedavg, batch_size: 16, optimizer: {kind: adamw, learning_rate: 1e-2}}"
    whole = run(load_config(EXPERIMENT, [fedavg, *common]), out=tmp_path / "whole").summary
    assert abs(split["loss"] - whole["loss"]) < 1e-9
    assert split["bytes_by_role"].keys() != whole["bytes_by_role"].keys()
