"""How much faster is a cohort than a plain loop? Ratios, taken side by side in one run: `make bench`.

For each model and precision, one LoRA training step (forward, backward, AdamW) of 16 clients, each with a batch of its
own: as one cohort, and as a plain loop of PEFT models over the same padded batches. The two alternate; medians count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from rich.console import Console
from rich.table import Table

from elsa_ray.config.load import make_config
from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.model.split import whole
from elsa_ray.prepare import PRECISIONS, Prepared, load_backbone, make_tripartite, prepare
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.training.client import stack_adapters
from elsa_ray.training.optimizer import CohortOptimizer

CLIENTS, BATCH, LENGTH, LABELS = 16, 8, 32, 6
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["tiny", "minilm"])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(model, precision, options.repetitions) for model in options.models for precision in ("fp32", "bf16")
    ]
    show(rows)
    if options.out:
        about = {"date": date.today().isoformat(), "hardware": describe_hardware(), "torch": torch.__version__}
        options.out.write_text(json.dumps({**about, "python": platform.python_version(), "rows": rows}, indent=2))


def measure(model: str, precision: str, repetitions: int) -> dict[str, float | str]:
    prepared = prepare(make_config(config(model, precision)))
    ids_CBS = torch.randint(5, 1000, (CLIENTS, BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels_CB = torch.randint(0, LABELS, (CLIENTS, BATCH), generator=torch.Generator().manual_seed(1))
    steps = {
        "plain": plain_loop(prepared, ids_CBS, labels_CB),
        "cohort": one_cohort(prepared, ids_CBS, labels_CB),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if repetition:  # the first is a warm-up
                seconds[name].append((time.perf_counter() - begin) / CLIENTS)
    ratios = [plain / cohort for plain, cohort in zip(seconds["plain"], seconds["cohort"], strict=True)]
    return {
        "model": model,
        "precision": precision,
        "plain_milliseconds": 1000 * statistics.median(seconds["plain"]),
        "cohort_milliseconds": 1000 * statistics.median(seconds["cohort"]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def config(model: str, precision: str) -> dict:
    """Any data will do: the batches are made here."""
    return {
        "task": {"dataset": {"name": "pydocs", "max_examples": 500}, "model": model, "max_length": LENGTH},
        "topology": {"kind": "hierarchical", "clients": CLIENTS, "edges": 1},
        "numerics": {"precision": precision, "device": "cpu"},
    }


def plain_loop(prepared: Prepared, ids_CBS: torch.Tensor, labels_CB: torch.Tensor) -> Callable[[], None]:
    """One PEFT model; each client's turn is a step of it (loading its adapter would come on top)."""
    model, _ = load_backbone(prepared)
    targets = [f"{prepared.setting.shape.block_path}.{layer}.{target}" for layer, target in _targets(prepared)]
    peft_model = get_peft_model(model, PeftConfig(r=8, lora_alpha=16, target_modules=targets, task_type="SEQ_CLS"))
    peft_model = peft_model.to(PRECISIONS[prepared.config.numerics.precision])
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    mask_BS = torch.ones(BATCH, LENGTH, dtype=torch.bool)

    def step() -> None:
        for ids_BS, labels_B in zip(ids_CBS, labels_CB, strict=True):
            logits = peft_model(input_ids=ids_BS, attention_mask=mask_BS).logits
            torch.nn.functional.cross_entropy(logits.float(), labels_B).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def one_cohort(prepared: Prepared, ids_CBS: torch.Tensor, labels_CB: torch.Tensor) -> Callable[[], None]:
    """All clients at once."""
    model, adapters = load_backbone(prepared)
    tripartite = make_tripartite(prepared, model)
    split = whole(prepared.setting.shape.num_layers)
    parameters = stack_adapters([adapters] * CLIENTS, tripartite.device)
    optimizer = CohortOptimizer(parameters, OPTIMIZER, OPTIMIZER.learning_rate)
    in_blocks = {name: p for name, p in parameters.items() if name.startswith(prepared.setting.shape.block_path)}
    in_head = {name: p for name, p in parameters.items() if name not in in_blocks}
    mask_NS = torch.ones(CLIENTS * BATCH, LENGTH, dtype=torch.bool)
    active_C = torch.ones(CLIENTS, dtype=torch.bool)

    def step() -> None:
        hidden = tripartite.front(ids_CBS.flatten(0, 1), mask_NS, in_blocks, split)
        logits = tripartite.back(hidden, mask_NS, in_head, split)
        losses = torch.nn.functional.cross_entropy(logits.float(), labels_CB.flatten() % logits.shape[1])
        (losses * CLIENTS).backward()
        optimizer.step(active_C)

    return step


def _targets(prepared: Prepared) -> list[tuple[int, str]]:
    setting = prepared.setting
    return [(layer, target) for layer in range(setting.shape.num_layers) for target in setting.layout.targets]


def show(rows: list[dict]) -> None:
    table = Table(title=f"One step a client, {CLIENTS} clients, batch {BATCH} x {LENGTH} tokens, one thread")
    for title in ("model", "precision", "plain loop, ms", "cohort, ms", "plain / cohort", "min to max"):
        table.add_column(title, justify="left" if title in ("model", "precision") else "right")
    for row in rows:
        span = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
        plain, cohort = f"{row['plain_milliseconds']:.1f}", f"{row['cohort_milliseconds']:.1f}"
        table.add_row(row["model"], row["precision"], plain, cohort, f"{row['ratio']:.2f}", span)
    Console().print(table)


if __name__ == "__main__":
    main()
