"""Cohorts of 1 to 256 clients on a GPU: clients per second, and the share of the device's best matrix rate.

``python experiments/benchmarks/gpu.py`` on a GPU; ``--device cpu --precision fp32 --models minilm --sizes 16`` tells
how near a cohort comes to a processor's best rate. One LoRA step a client (batch 8 x 32 tokens, AdamW), weights drawn
from the architecture's config. FLOPs are those that are really done, as torch's counter counts them, so the share is
the model FLOP utilisation against a rate that the device reaches; that best rate is measured in the same run, over
square products and over those of the model's own layers. Medians of alternated turns. A size that does not fit the
memory is told as such.

Behind the table a whole run: clients on the processor, edges on the GPU (left out with ``--no-run``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, BertConfig, LlamaConfig, PreTrainedConfig

import elsa_ray
from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import Adapters, initial_adapters, make_layout
from elsa_ray.model.families import family_of
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.prepare import PRECISIONS
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.training.client import stack_adapters
from elsa_ray.training.optimizer import CohortOptimizer

BATCH, LENGTH, LABELS = 8, 32, 6
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "tiny": lambda: BertConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        num_labels=LABELS,
        **NO_DROPOUT,
    ),
    "minilm": lambda: BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=LABELS,
        **NO_DROPOUT,
    ),
    "llama-1b": lambda: LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        num_labels=LABELS,
        pad_token_id=0,
    ),
}


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--models", nargs="+", default=["minilm", "llama-1b"], choices=list(CONFIGS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-run", action="store_true", help="without the run with clients and edges on two devices")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in options.models for row in measure(name, options)]
    show(rows, options)
    mixed = None if options.no_run else mixed_run(options.device)
    if options.out:
        about = {"date": date.today().isoformat(), "hardware": describe_hardware(), "torch": torch.__version__}
        options.out.write_text(
            json.dumps({**about, "precision": options.precision, "rows": rows, "mixed_run": mixed}, indent=2) + "\n"
        )


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row of figures for each size of a cohort; each size has the device's memory for itself."""
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    model, adapters = build(name, device, dtype)
    best = best_matrix_rate(model, device, dtype)
    flops = flops_of(step_of(model, adapters, 1))
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        try:
            seconds, peak = times_of(model, adapters, size, options.repetitions)
        except torch.OutOfMemoryError:
            rows.append({"model": name, "clients": size, "out_of_memory": True})
            continue
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        median = statistics.median(seconds)
        rows.append(
            {
                "model": name,
                "clients": size,
                "milliseconds_per_step": 1000 * median,
                "clients_per_second": size / median,
                "flops_per_second": size * flops / median,
                "best_matrix_flops_per_second": best,
                "utilisation": size * flops / median / best,
                "peak_memory_bytes": peak,
            }
        )
    return rows


def times_of(model: TripartiteModel, adapters: Adapters, size: int, repetitions: int) -> tuple[list[float], int | None]:
    """Return the seconds of each repetition, after one that warms up, and the most memory of a GPU that was held."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = step_of(model, adapters, size)
    timed(step, model.device)
    seconds = [timed(step, model.device) for _ in range(repetitions)]
    return seconds, torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None


def build(name: str, device: torch.device, dtype: torch.dtype) -> tuple[TripartiteModel, Adapters]:
    """Return the frozen model with random weights, built in its precision on the device, and first adapters."""
    config = CONFIGS[name]()
    torch.manual_seed(0)
    with device:
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=dtype)
    family = family_of(config)
    shape = family.shape(config, causal_lm=False)
    layout = make_layout(shape, family, LoraConfig(), causal_lm=False)
    # Before the model's layers become a cohort's: the head's first values are the model's own.
    adapters = initial_adapters(layout, model, 0, torch.float32)
    return TripartiteModel(model, family, shape, layout), adapters


def step_of(model: TripartiteModel, adapters: Adapters, clients: int) -> Callable[[], None]:
    """Return a training step of a cohort, as clients of federated averaging do it."""
    device, texts = model.device, clients * BATCH
    parameters = stack_adapters([adapters] * clients, device)
    optimizer = CohortOptimizer(parameters, OptimizerConfig(), 1e-3)
    ids_NS = torch.randint(5, 1000, (texts, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    mask_NS = torch.ones(texts, LENGTH, dtype=torch.bool, device=device)
    labels_N = torch.zeros(texts, dtype=torch.int64, device=device)
    active_C, layers = torch.ones(clients, dtype=torch.bool), range(model.shape.num_layers)

    def step() -> None:
        logits_NK = model.scores(model.embed(ids_NS), mask_NS, parameters, layers)
        (torch.nn.functional.cross_entropy(logits_NK.float(), labels_N) * clients).backward()
        optimizer.step(active_C)

    return step


def flops_of(step: Callable[[], None]) -> int:
    """Return the FLOPs of a step, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    return counter.get_total_flops()


def best_matrix_rate(model: TripartiteModel, device: torch.device, dtype: torch.dtype) -> float:
    """Return the most FLOP/s over square products and those of the model's own layers with many rows."""
    rows = 4096
    shapes = {(side, side, side) for side in ((1024, 4096, 8192) if device.type == "cuda" else (1024,))}
    shapes |= {(rows, linear.num_inputs, linear.num_outputs) for linear in model.shape.block.linears}
    return max(rate(*shape, device, dtype) for shape in sorted(shapes))


def rate(rows: int, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a matrix product, the best of ten."""
    left = torch.randn(rows, inputs, device=device, dtype=dtype)
    right = torch.randn(inputs, outputs, device=device, dtype=dtype)
    product = lambda: torch.mm(left, right)  # noqa: E731
    timed(product, device)
    return 2.0 * rows * inputs * outputs / min(timed(product, device) for _ in range(10))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that it takes: of a processor, those that it worked, which others on it do not change."""
    if device.type == "cpu":
        begin = time.process_time()
        work()
        return time.process_time() - begin
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def mixed_run(device: str) -> dict[str, Any]:
    """Train with clients on the processor and edges on the GPU; on a processor alone, everything in this process."""
    config = {
        "name": "clients-on-cpu-edges-on-gpu",
        "task": {"dataset": {"name": "pydocs", "max_examples": 400}, "model": "tiny", "max_length": LENGTH},
        "topology": {"kind": "hierarchical", "clients": 8, "edges": 2},
        "protocol": {"name": "elsa", "rounds": 1, "local_steps": 2, "split": {"front": 1, "back": 0}},
        "numerics": {"device": device, "precision": "fp32"},
        "runtime": {"executor": "inline" if device == "cpu" else "ray", "pool_resources": {"num_gpus": 0}},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = elsa_ray.run(config, out=Path(folder) / "run", console=Console())
    workers = run.summary["hardware"]["workers"]
    return {"accuracy": run.summary["accuracy"], "wall_seconds": run.summary["wall_seconds"], "workers": workers}


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the rows, beside as many clients one after another."""
    alone = {row["model"]: row["clients_per_second"] for row in rows if row["clients"] == 1 and len(row) > 3}
    table = Table(title=f"One step a client, batch {BATCH} x {LENGTH} tokens, {options.device} {options.precision}")
    for title in ("model", "clients", "ms a step", "clients/s", "times one by one", "GFLOP/s", "of the best"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        if "out_of_memory" in row:
            table.add_row(row["model"], str(row["clients"]), "out of memory")
            continue
        times = f"{row['clients_per_second'] / alone[row['model']]:.1f}" if row["model"] in alone else ""
        figures = f"{row['milliseconds_per_step']:.2f}", f"{row['clients_per_second']:.1f}", times
        rates = f"{row['flops_per_second'] / 1e9:.0f}", f"{row['utilisation']:.0%}"
        table.add_row(row["model"], str(row["clients"]), *figures, *rates)
    Console().print(table)


if __name__ == "__main__":
    main()
