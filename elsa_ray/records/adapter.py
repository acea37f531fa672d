"""Exports the trained adapters in PEFT's own format, so that transformers and PEFT alone can use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from elsa_ray.protocols.setting import Setting
from elsa_ray.tasks.quiet import quiet_transformers
from elsa_ray.tasks.weights import load_model

ADAPTER, BASE = "adapter", "base"
_PREFIX = "base_model.model."


def export_adapter(
    folder: str | Path,
    adapters: Mapping[str, Tensor],
    setting: Setting,
    model_loader: Callable[[], PreTrainedModel] | None = None,
) -> Path:
    """Write ``adapter/``, and ``base/`` where the base model has no hub id; returns the adapter's folder.

    Args:
        folder: the run's.
        adapters: the global model's, by their names.
        setting: the run's circumstances.
        model_loader: returns a fresh, unwrapped backbone with its head in fp32 on the CPU; by default it is loaded as
            the run has loaded it.

    Raises:
        InputError: the backbone cannot be loaded.
        RuntimeError: PEFT does not know one of the tensors.
    """
    folder = Path(folder).resolve()
    backbone = setting.task.backbone
    model = model_loader() if model_loader else load_model(backbone, setting.task.kind, setting.seed)
    with quiet_transformers():
        if backbone.hub_id is None:
            model.save_pretrained(folder / BASE)
            assert backbone.tokenizer is not None
            backbone.tokenizer.save_pretrained(folder / BASE)
        base = backbone.hub_id or str(folder / BASE)
        peft_model = get_peft_model(model, _lora_config(setting))
        named = {f"{_PREFIX}{name}": tensor.detach().cpu().float() for name, tensor in adapters.items()}
        # PEFT saves a classifier's head in any case: one that was not trained goes along as it is in the base.
        whole = get_peft_model_state_dict(peft_model, save_embedding_layers=False) | named
        unknown = set_peft_model_state_dict(peft_model, whole).unexpected_keys
        if unknown:
            raise RuntimeError(f"PEFT has no place for {', '.join(unknown[:3])}")
        config = peft_model.peft_config["default"]
        config.base_model_name_or_path = base
        # PEFT keeps a set; in a file its order would differ from process to process.
        config.target_modules = sorted(config.target_modules)
        # Looking for a changed vocabulary would ask the hub; the embeddings are frozen here.
        peft_model.save_pretrained(folder / ADAPTER, safe_serialization=True, save_embedding_layers=False)
    (folder / ADAPTER / "README.md").write_text(_readme(setting, base), encoding="utf-8")
    return folder / ADAPTER


def _lora_config(setting: Setting) -> LoraConfig:
    shape, layout, lora = setting.shape, setting.layout, setting.config.task.lora
    targets = [f"{shape.block_path}.{layer}.{target}" for layer in range(shape.num_layers) for target in layout.targets]
    return LoraConfig(
        r=layout.rank,
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=targets,
        modules_to_save=_modules_to_save(layout.trained_head) or None,
        # GPT-2's layers store their weights with the inputs first.
        fan_in_fan_out=shape.family == "gpt2",
        task_type="SEQ_CLS" if setting.task.kind == "classification" else "CAUSAL_LM",
    )


def _modules_to_save(trained_head: tuple[str, ...]) -> list[str]:
    """Return the trained modules that PEFT must be told of: it saves the head of a classifier by itself."""
    return [path for path in trained_head if path.split(".")[0] not in ("classifier", "score")]


def _readme(setting: Setting, base: str) -> str:
    config, backbone = setting.config, setting.task.backbone
    is_classifier = setting.task.kind == "classification"
    auto = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    options = f", num_labels={setting.task.num_labels}" if is_classifier and backbone.hub_id else ""
    source = f'"{backbone.hub_id}"' if backbone.hub_id else '"../base"'
    labels = ", ".join(f"{index} = {name}" for index, name in enumerate(setting.task.label_names))
    about_base = (
        "The base comes from the hub. Its head is new when it is loaded; PEFT puts the one in this folder in its place."
        if backbone.hub_id
        else f"The base lies in `base/` next to this folder. `adapter_config.json` names it by its absolute path "
        f"(`{base}`); after the run folder was moved, give PEFT the base explicitly, as below."
    )
    return f"""---
library_name: peft
---
# {config.name}

Adapters of {backbone.name}, trained by elsa_ray ({config.protocol.name}, seed {config.seed}).
{about_base}

```python
from peft import PeftModel
from transformers import AutoTokenizer, {auto}

base = {auto}.from_pretrained({source}{options})
tokenizer = AutoTokenizer.from_pretrained({source})
model = PeftModel.from_pretrained(base, ".").eval()
```

Paths are relative to this folder. Texts were cut to {config.task.max_length} tokens.
{f"Labels: {labels}." if labels else ""}
"""
