"""Bundled figures of models without weights: parameters and adapters, against empty models and known totals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import AdapterLayout, make_layout
from elsa_ray.model.families import family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.tasks.model_facts import check_has_weights, facts_config, model_facts, planned_model

KNOWN_TOTALS = {
    "minilm": 22_713_216,
    "bert-base": 109_482_240,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "mistral-7b": 7_248_023_552,
}
"""As published: of a BERT with its pooler and without a head, of the others with a language-model head."""


def shape_of(name: str, *, causal_lm: bool = True) -> ModelShape:
    config = facts_config(name)
    return family_of(config).shape(config, causal_lm=causal_lm)


def lora(name: str, targets: list[str] | None, rank: int) -> AdapterLayout:
    config = facts_config(name)
    family = family_of(config)
    section = LoraConfig(rank=rank, targets=targets if targets is not None else "auto")
    return make_layout(family.shape(config, causal_lm=True), family, section, causal_lm=True)


def num_lora(name: str, targets: list[str] | None, rank: int) -> int:
    return sum(tensor.num_elements for tensor in lora(name, targets, rank).tensors)


@pytest.mark.parametrize("name", list(KNOWN_TOTALS))
def test_parameters_are_those_of_the_empty_model_and_of_its_publication(name: str) -> None:
    config = facts_config(name)
    causal_lm = config.model_type != "bert"
    config.num_labels = 7
    auto = AutoModelForCausalLM if causal_lm else AutoModelForSequenceClassification
    with init_empty_weights():
        empty = auto.from_config(config)
    empty.tie_weights()
    own = family_of(config).shape(config, causal_lm=causal_lm).num_parameters
    assert own == empty.num_parameters()
    head = 0 if causal_lm else 7 * (config.hidden_size + 1)
    assert own - head == KNOWN_TOTALS[name]


def test_every_bundled_model_is_checked() -> None:
    assert set(model_facts()) == set(KNOWN_TOTALS)


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("rank", [1, 8, 16])
@pytest.mark.parametrize(
    ("targets", "of_405b", "of_8b"),
    # Card 2.3 for 405B; for 8B by hand: 32 blocks, D 4096, KV 1024, F 14336.
    [
        (None, 6_322_176, 32 * (2 * 4096 + 4096 + 1024)),
        (["q_proj", "v_proj"], 6_322_176, 32 * (2 * 4096 + 4096 + 1024)),
        (ATTENTION, 12_644_352, 32 * 2 * (2 * 4096 + 4096 + 1024)),
        (LINEARS, 38_965_248, 32 * (2 * (2 * 4096 + 4096 + 1024) + 3 * (4096 + 14336))),
    ],
)
def test_adapters_of_llama_are_those_of_the_card(
    targets: list[str] | None, of_405b: int, of_8b: int, rank: int
) -> None:
    assert num_lora("llama-3.1-405b", targets, rank) == of_405b * rank
    assert num_lora("llama-3.1-8b", targets, rank) == of_8b * rank


def test_a_folder_with_a_config_and_nothing_else_is_enough(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=99).save_pretrained(tmp_path)
    found = planned_model(tmp_path.name, kind="causal_lm", num_labels=0, base_folder=tmp_path.parent)
    assert (found.config.num_hidden_layers, found.tokenizer, found.weights) == (3, None, None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_thing"}))
    with pytest.raises(InputError, match=r"task.model: found .*; allowed: a folder whose config.json"):
        planned_model(tmp_path.name, kind="causal_lm", num_labels=0, base_folder=tmp_path.parent)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"task.model: found .*, a folder without config.json"):
        planned_model(tmp_path.name, kind="causal_lm", num_labels=0, base_folder=tmp_path.parent)


def test_what_has_no_weights_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"llama-3.1-405b, of which there are figures and no weights here; .*hub id"):
        check_has_weights("llama-3.1-405b", tmp_path)
    for name in ("minilm", "gpt2", "tiny", "someone/some-model"):
        check_has_weights(name, tmp_path)
    (tmp_path / "llama-3.1-8b").mkdir()
    check_has_weights("llama-3.1-8b", tmp_path)
    with pytest.raises(InputError, match=r"task.model: found llama-3.1-406b; allowed: .*mean llama-3.1-405b\?"):
        planned_model("llama-3.1-406b", kind="causal_lm", num_labels=0, base_folder=tmp_path)
