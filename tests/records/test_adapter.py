"""Proof: the exported adapter, loaded by plain transformers and PEFT, predicts what elsa_ray predicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from elsa_ray.model.adapters import Adapters
from elsa_ray.model.split import whole
from elsa_ray.prepare import Prepared, load_backbone, make_tripartite
from elsa_ray.records.adapter import export_adapter
from elsa_ray.tasks.tokens import pad_batch
from elsa_ray.training.evaluation import evaluation_pieces, score_piece
from tests.records.helpers import WORDS, played, prepared_run

CASES = {
    "tiny": [],
    "tiny_llama": ["task.lora.alpha=12.5"],
    "tiny_gpt2": [],
    "pooler": ["task.model=tiny", "task.lora.train_pooler=true"],
    "frozen head": ["task.model=tiny", "task.lora.train_head=false"],
    "next tokens": ["task.model=tiny_llama", "task.kind=causal_lm", "task.lora.train_head=true"],
    "next tokens, gpt2": ["task.model=tiny_gpt2", "task.kind=causal_lm"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_export_predicts_what_the_run_predicted(case: str, tmp_path: Path) -> None:
    model = [f"task.model={case}"] if case.startswith("tiny") else []
    rate = "protocol.optimizer.learning_rate=0.02"
    prepared = prepared_run(tmp_path, "runtime.executor=inline", rate, *model, *CASES[case])
    *_, last = played(prepared)
    adapters = last.state.adapters
    assert adapters is not None
    folder = export_adapter(tmp_path, adapters, prepared.setting)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert config["target_modules"] == sorted(config["target_modules"])
    auto = (
        AutoModelForSequenceClassification if prepared.setting.task.kind == "classification" else AutoModelForCausalLM
    )
    base = auto.from_pretrained(tmp_path / "base")
    exported = PeftModel.from_pretrained(base, folder).eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "base")) == len(prepared.setting.task.backbone.tokenizer)
    own, plain, mask = _both_predictions(prepared, adapters, exported)
    difference = (own - plain).abs()[mask] if own.dim() == 3 else (own - plain).abs()
    assert difference.max() < 1e-4
    if own.dim() == 2:
        assert torch.equal(own.argmax(-1), plain.argmax(-1))
        assert last.report.score is not None
        labels = torch.from_numpy(prepared.setting.task.test.labels)
        assert (plain.argmax(-1) == labels).double().mean().item() == pytest.approx(last.report.score.accuracy)
    _check_that_training_mattered(prepared, adapters, own)


def test_the_export_of_a_hub_model_holds_all_that_the_hub_does_not(tmp_path: Path) -> None:
    """minilm's head is new, and in no checkpoint; the base that a reader loads has another one."""
    small = ["topology.clients=2", "topology.edges=1", "protocol.rounds=1", "task.max_length=8"]
    prepared = prepared_run(tmp_path, "task.model=minilm", "runtime.executor=inline", *small)
    (last,) = played(prepared)
    adapters = last.state.adapters
    assert adapters is not None
    folder = export_adapter(tmp_path, adapters, prepared.setting)
    assert not (tmp_path / "base").exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    backbone = prepared.setting.task.backbone
    base = AutoModelForSequenceClassification.from_pretrained(backbone.weights, num_labels=len(WORDS))
    exported = PeftModel.from_pretrained(base, folder).eval()
    own, plain, _ = _both_predictions(prepared, adapters, exported)
    assert (own - plain).abs().max() < 1e-4
    assert torch.equal(own.argmax(-1), plain.argmax(-1))
    _check_that_training_mattered(prepared, adapters, own)


def _both_predictions(
    prepared: Prepared, adapters: Adapters, exported: PeftModel
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the logits of the whole test set by elsa_ray and by PEFT, and which tokens are real."""
    test = prepared.setting.task.test
    pad_id = prepared.setting.task.backbone.config.pad_token_id
    ids, mask = pad_batch(test, np.arange(len(test)), int(test.lengths.max()), pad_id)
    ids_NS, mask_NS = torch.from_numpy(ids), torch.from_numpy(mask)
    with torch.no_grad():
        plain = exported(input_ids=ids_NS, attention_mask=mask_NS.long()).logits
    return _own_logits(prepared, adapters, ids_NS, mask_NS), plain, mask_NS


def _own_logits(prepared: Prepared, adapters: Adapters, ids_NS: torch.Tensor, mask_NS: torch.Tensor) -> torch.Tensor:
    model = make_tripartite(prepared, load_backbone(prepared)[0])
    split = whole(model.shape.num_layers)
    cohort = {name: tensor[None] for name, tensor in adapters.items()}
    blocks = {name: value for name, value in cohort.items() if name.startswith(model.shape.block_path)}
    head = {name: value for name, value in cohort.items() if name not in blocks}
    with torch.no_grad():
        return model.back(model.front(ids_NS, mask_NS, blocks, split), mask_NS, head, split)


def _check_that_training_mattered(prepared: Prepared, adapters: Adapters, own: torch.Tensor) -> None:
    """The comparison would be empty if the first adapters predicted the same."""
    _, first = load_backbone(prepared)
    assert any(not torch.equal(first[name], adapters[name]) for name in adapters)
    test = prepared.setting.task.test
    pad_id = prepared.setting.task.backbone.config.pad_token_id
    ids, mask = pad_batch(test, np.arange(len(test)), int(test.lengths.max()), pad_id)
    before = _own_logits(prepared, first, torch.from_numpy(ids), torch.from_numpy(mask))
    assert (before - own).abs().max() > 1e-2


def test_the_loss_of_the_export_is_the_score_of_the_run(tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path, "task.model=tiny_llama", "task.kind=causal_lm", "runtime.executor=inline")
    *_, last = played(prepared)
    assert last.state.adapters is not None and last.report.score is not None
    folder = export_adapter(tmp_path, last.state.adapters, prepared.setting)
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder).eval()
    test, losses, count = prepared.setting.task.test, 0.0, 0
    for index in range(len(test)):
        ids = torch.from_numpy(test.ids(index).astype(np.int64))[None]
        with torch.no_grad():
            losses += exported(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert count == last.report.score.count
    assert losses / count == pytest.approx(last.report.score.loss, abs=1e-4)
    model = make_tripartite(prepared, load_backbone(prepared)[0])
    pad_id = prepared.setting.task.backbone.config.pad_token_id
    scores = [score_piece(model, last.state.adapters, test, piece, pad_id, 0) for piece in evaluation_pieces(test)]
    assert sum(score.loss_sum for score in scores) / count == pytest.approx(losses / count, abs=1e-4)


def test_the_export_is_the_same_in_every_process_and_says_how_to_load_it(tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path)
    _, adapters = load_backbone(prepared)
    files = []
    for name in ("first", "second"):
        folder = export_adapter(tmp_path / name, adapters, prepared.setting)
        files.append((folder / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
    readme = (folder / "README.md").read_text()
    assert 'from_pretrained("../base")' in readme
    assert "0 = animals, 1 = food, 2 = tools" in readme
    assert "More Information Needed" not in readme
