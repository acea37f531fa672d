"""Small models with random weights, cohorts that are driven by hand, and tiny whole runs.

Shapes: C members, T steps, B texts, S tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
)

from elsa_ray.codecs.chain import CodecChain, build_chain
from elsa_ray.codecs.wire import hidden_num_bytes
from elsa_ray.config.load import make_config
from elsa_ray.config.protocol import CodecSpec, ElsaConfig, OptimizerConfig
from elsa_ray.config.task import LoraConfig
from elsa_ray.experiment import rounds
from elsa_ray.model.adapters import AdapterLayout, Adapters, make_layout
from elsa_ray.model.families import Family, family_of
from elsa_ray.model.shape import ModelShape
from elsa_ray.model.split import Part, Split
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.prepare import Prepared, load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.records.round import Round
from elsa_ray.runtime.executor import InlineExecutor
from elsa_ray.tasks.tokens import TokenizedTexts
from elsa_ray.training.batches import batch_sizes
from elsa_ray.training.client import train_clients
from elsa_ray.training.cohort import STEP_ROLES, ByteMeter, Cohort, Member, VersionKey
from elsa_ray.training.edge import EdgeCohort
from elsa_ray.training.recipe import Chains, Recipe
from elsa_ray.world.plan import WorkKey

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, LABELS, POSITIONS = 4, 32, 4, 48, 53, 5, 40
PAD = 1
ABSENT = -1

ALL_SPLITS = [
    Split(front, LAYERS - front - back, back)
    for front in range(1, LAYERS + 1)
    for back in range(LAYERS + 1)
    if LAYERS - front - back >= 1
]
"""Every (p, q, o) with p >= 1, q >= 1, o >= 0."""

MODELS = [
    *((family, False) for family in ("bert", "roberta", "llama", "mistral", "qwen2", "gpt2")),
    *((family, True) for family in ("llama", "mistral", "qwen2", "gpt2")),
]
"""Family and whether it is a causal language model (else a classifier)."""


def model_name(model: tuple[str, bool]) -> str:
    return f"{model[0]}-{'causal_lm' if model[1] else 'classification'}"


def split_name(split: Split) -> str:
    return f"{split.front}-{split.middle}-{split.back}"


def small_config(family: str, *, attention: str = "sdpa", **options: Any) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_labels": LABELS,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": attention,
        "initializer_range": 0.2,
    }
    rotary: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
    }
    encoder: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    gpt2: dict[str, Any] = {
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": INNER,
        "n_positions": POSITIONS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
    }
    kinds: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
        "bert": (BertConfig, encoder),
        "roberta": (RobertaConfig, encoder),
        "llama": (LlamaConfig, rotary),
        "mistral": (MistralConfig, rotary),
        "qwen2": (Qwen2Config, rotary),
        "gpt2": (GPT2Config, gpt2),
    }
    kind, parameters = kinds[family]
    return kind(**{**common, **parameters, **options})


def small_model(config: PreTrainedConfig, *, causal_lm: bool, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Build a model all of whose parameters are random, biases and norms too."""
    auto = AutoModelForCausalLM if causal_lm else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = auto.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@dataclass(frozen=True)
class Lab:
    """A small model twice: as transformers made it, and as the cohort's backbone."""

    plain: PreTrainedModel
    model: TripartiteModel
    family: Family
    shape: ModelShape
    layout: AdapterLayout

    @property
    def causal_lm(self) -> bool:
        return hasattr(self.plain, "lm_head")

    def adapters(self, seed: int) -> Adapters:
        """Return random adapters; no tensor is zero, so that gradients flow everywhere."""
        generator = torch.Generator().manual_seed(seed)
        return {
            tensor.name: (0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)).to(
                self.model.dtype
            )
            for tensor in self.layout.tensors
        }

    def peft(self, adapters: Adapters) -> PeftModel:
        """Return plain transformers with plain PEFT, holding these adapters."""
        paths = [f"{self.shape.block_path}.{i}.{t}" for i in range(self.shape.num_layers) for t in self.layout.targets]
        saved = sorted({path if ".pooler." in path else path.split(".")[0] for path in self.layout.trained_head})
        config = PeftLoraConfig(
            r=self.layout.rank,
            lora_alpha=self.layout.scaling * self.layout.rank,
            lora_dropout=0.0,
            target_modules=paths,
            modules_to_save=saved or None,
            fan_in_fan_out=self.family.name == "gpt2",
        )
        peft = get_peft_model(copy.deepcopy(self.plain), config).to(self.model.dtype).eval()
        with torch.no_grad():
            for name, parameter in trained_parameters(peft).items():
                parameter.copy_(adapters[name])
        return peft


def make_lab(
    family: str,
    *,
    causal_lm: bool = False,
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    lora: LoraConfig | None = None,
    **options: Any,
) -> Lab:
    config = small_config(family, attention=attention, **options)
    plain = small_model(config, causal_lm=causal_lm, dtype=dtype)
    kind = family_of(config)
    shape = kind.shape(config, causal_lm=causal_lm)
    layout = make_layout(shape, kind, lora or LoraConfig(rank=3, alpha=6.0), causal_lm=causal_lm)
    model = TripartiteModel(copy.deepcopy(plain), kind, shape, layout)
    return Lab(plain, model, kind, shape, layout)


def trained_parameters(peft: PeftModel) -> dict[str, torch.nn.Parameter]:
    """Return PEFT's trainable parameters by the names that adapters have here."""
    named = {}
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            short = name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")
            named[short] = parameter
    return named


def plain_loss(model: torch.nn.Module, ids_BS: Tensor, mask_BS: Tensor, labels_B: Tensor | None) -> Tensor:
    """Return the mean loss of a whole model; ``labels_B`` None means to predict the next tokens."""
    logits = model(input_ids=ids_BS, attention_mask=mask_BS).logits
    if labels_B is not None:
        return F.cross_entropy(logits, labels_B)
    targets = torch.where(mask_BS, ids_BS, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


def random_texts(
    num_texts: int, *, seed: int = 0, shortest: int = 3, longest: int = 9, labelled: bool = True
) -> TokenizedTexts:
    """Make texts of random tokens, none of them padding."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, longest + 1, size=num_texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    token_ids = generator.integers(PAD + 1, VOCABULARY, size=int(offsets[-1])).astype(np.int32)
    labels = generator.integers(0, LABELS, size=num_texts) if labelled else None
    return TokenizedTexts(token_ids, offsets, labels)


def own_batch(tokens: TokenizedTexts, row: np.ndarray, *, length: int | None = None) -> tuple[Tensor, ...]:
    """Pad one client's texts by hand: ids [B, S], mask [B, S], labels [B] (or None)."""
    row = row[row != ABSENT]
    texts = [torch.from_numpy(tokens.ids(index).astype(np.int64)) for index in row]
    length = length or max(len(text) for text in texts)
    ids_BS = torch.stack([F.pad(text, (0, length - len(text)), value=PAD) for text in texts])
    mask_BS = torch.stack([torch.arange(length) < len(text) for text in texts])
    labels_B = None if tokens.labels is None else torch.from_numpy(tokens.labels[row])
    return ids_BS, mask_BS, labels_B


def chain(*specs: dict[str, Any], wire_dtype: str = "fp32") -> CodecChain:
    return build_chain([CodecSpec(**spec) for spec in specs], wire_dtype, "codec")


def chains(*specs: dict[str, Any], wire_dtype: str = "fp64") -> Chains:
    step = chain(*specs, wire_dtype=wire_dtype)
    return Chains(step, step, chain(wire_dtype=wire_dtype))


def recipe(
    optimizer: OptimizerConfig, *, of: Chains | None = None, dtype: torch.dtype = torch.float64, seed: int = 7
) -> Recipe:
    return Recipe(seed, ElsaConfig(optimizer=optimizer), of or chains(), PAD, dtype)


def make_cohort(
    split: Split, examples_of_members: Sequence[np.ndarray], tokens: TokenizedTexts, of: Chains, width: int = WIDTH
) -> Cohort:
    """Return a cohort whose members' messages are planned by the size formula."""
    members = []
    for client, examples_TB in enumerate(examples_of_members):
        batch_T, length_T = batch_sizes(examples_TB, tokens.lengths)
        by_role = [of.activation, of.activation, of.gradient, of.gradient]
        planned = [
            hidden_num_bytes(chain, role, batch_T, length_T, width)
            for chain, role in zip(by_role, STEP_ROLES, strict=True)
        ]
        members.append(
            Member(
                key=WorkKey(0, 0, client),
                node=0,
                version=VersionKey(0, 0, 0),
                num_examples=10,
                num_steps=len(examples_TB),
                planned_step_bytes=np.stack(planned, axis=1),
                planned_adapter_bytes=(0, 0),
            )
        )
    return Cohort("cohort", tuple(members), split)


@dataclass(frozen=True)
class Trained:
    """What a cohort's training gave: each member's whole adapters and mean loss."""

    adapters: list[Adapters]
    losses: list[float]
    clients_meter: ByteMeter
    edge_meter: ByteMeter


def train_cohort(
    lab: Lab,
    split: Split,
    settings: Recipe,
    tokens: TokenizedTexts,
    examples_of_members: Sequence[np.ndarray],
    adapters_of_members: Sequence[Adapters],
) -> Trained:
    """Train a cohort against its edge, as a pool and an edge server would."""
    cohort = make_cohort(split, examples_of_members, tokens, settings.chains)
    clients_meter, edge_meter = ByteMeter(), ByteMeter()
    held, middle = (
        [{t.name: adapters[t.name] for t in lab.layout.part(split, *parts)} for adapters in adapters_of_members]
        for parts in ((Part.FRONT, Part.BACK), (Part.MIDDLE,))
    )
    edge = EdgeCohort(lab.model, cohort, settings, middle, edge_meter) if split.is_cut else None
    training = train_clients(lab.model, cohort, settings, tokens, examples_of_members, held, clients_meter)
    try:
        request = next(training)
        while True:
            assert edge is not None, "an uncut cohort asked for an edge"
            request = training.send(edge.answer(request))
    except StopIteration as end:
        results = end.value
    at_edge = edge.adapters() if edge is not None else [{} for _ in results]
    whole = [{**result.adapters, **own} for result, own in zip(results, at_edge, strict=True)]
    return Trained(whole, [result.mean_loss for result in results], clients_meter, edge_meter)


def largest_difference(first: Adapters, second: Adapters) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def relative_difference(first: Adapters, second: Adapters) -> float:
    """Return the norm of the difference of all tensors over the norm of the second."""
    assert first.keys() == second.keys()
    squares = sum(float(((first[name].double() - second[name].double()) ** 2).sum()) for name in first)
    return (squares / sum(float((second[name].double() ** 2).sum()) for name in first)) ** 0.5


WORDS = [
    "river",
    "mountain",
    "valley",
    "forest",
    "desert",
    "ocean",
    "island",
    "glacier",
    "canyon",
    "prairie",
    "lantern",
    "compass",
    "anchor",
    "harbour",
    "bridge",
    "tunnel",
    "castle",
    "village",
    "market",
    "garden",
    "violin",
    "trumpet",
    "piano",
    "drum",
    "guitar",
    "painter",
    "writer",
    "sailor",
    "baker",
    "farmer",
]


def write_texts(
    folder: Path, *, num_train: int = 60, num_test: int = 16, labels: int = 3, words: int = 6, seed: int = 0
) -> dict[str, str]:
    """Write a small labelled corpus and return the config's ``dataset`` section for it."""
    generator = np.random.default_rng(seed)
    paths = {}
    for name, count in (("train", num_train), ("test", num_test)):
        path = folder / f"{name}.jsonl"
        lines = []
        for number in range(count):
            length = int(generator.integers(max(2, words - 3), words + 1))
            text = " ".join(generator.choice(WORDS, size=length))
            label = number if number < labels else int(generator.integers(labels))
            lines.append(json.dumps({"text": text, "label": f"label{label}"}))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths[name] = str(path)
    return paths


def run_config(dataset: dict[str, str], **sections: Any) -> Any:
    """Return the config of a tiny fp64 run in this process.

    A section that is given is merged over the default; a topology from a file replaces it.
    """
    generated = {} if "file" in sections.get("topology", {}) else {"clients": 6, "edges": 1}
    defaults: dict[str, dict[str, Any]] = {
        "task": {"dataset": dataset, "model": "tiny", "max_length": 16, "lora": {"rank": 4, "alpha": 8.0}},
        "topology": generated,
        "world": {},
        "protocol": {"name": "elsa", "rounds": 2, "local_steps": 2, "batch_size": 4, "wire_dtype": "fp64"},
        "numerics": {"precision": "fp64", "device": "cpu", "cohort": 4},
        "runtime": {"executor": "inline"},
        "evaluation": {"every": 100},
    }
    return make_config({name: {**values, **sections.get(name, {})} for name, values in defaults.items()})


@dataclass(frozen=True)
class Run:
    prepared: Prepared
    rounds: list[Round]

    @property
    def adapters(self) -> Adapters:
        adapters = self.rounds[-1].state.adapters
        assert adapters is not None
        return adapters


def run_inline(config: Any) -> Run:
    """Run an experiment in this process."""
    prepared = prepare(config)
    model, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
    with InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe) as executor:
        return Run(prepared, list(rounds(prepared, prepared.protocol.start(adapters), executor)))
