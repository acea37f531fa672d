"""Does a measured device profile predict real step times? It measures this machine, then steps of real models.

A profile is measured from small random models (``elsa-ray device measure``). Then one client's training step of
``tiny`` and of ``minilm`` is timed for several batches, and compared with the step time of the profile.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from elsa_ray.config.load import make_config
from elsa_ray.measure import measure_device, measure_step, write_profile
from elsa_ray.model.adapters import initial_adapters
from elsa_ray.prepare import load_backbone, make_tripartite, prepare
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.world.devices import read_profile

BATCHES = ((4, 24), (8, 32), (16, 32), (8, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=["tiny", "minilm"])
    parser.add_argument("--profile", type=Path, default=Path("this-machine.yaml"), help="where the profile is written")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    write_profile(
        measure_device(threads=options.threads, device=options.device, repetitions=options.repetitions), options.profile
    )
    torch.set_num_threads(options.threads)
    rows = [row for model in options.models for row in compare(model, options)]
    show(rows)
    if options.out:
        about = {"date": date.today().isoformat(), "hardware": describe_hardware(), "torch": torch.__version__}
        options.out.write_text(json.dumps({**about, "threads": options.threads, "rows": rows}, indent=2))


def compare(model: str, options: argparse.Namespace) -> list[dict]:
    """Any data will do: the batches are made up."""
    task = {"dataset": {"name": "pydocs", "max_examples": 400}, "model": model, "max_length": 64}
    numerics = {"precision": "fp32", "device": options.device}
    prepared = prepare(make_config({"task": task, "topology": {"clients": 1, "edges": 1}, "numerics": numerics}))
    plain, _ = load_backbone(prepared)
    adapters = initial_adapters(prepared.setting.layout, plain, 0, torch.float32)
    tripartite = make_tripartite(prepared, plain)
    device = read_profile(options.profile).device
    rows = []
    for texts, length in BATCHES:
        measured = measure_step(
            tripartite, adapters, texts=texts, length=length, threads=options.threads, repetitions=options.repetitions
        )
        predicted = device.step_seconds(measured.size)
        rows.append(
            {
                "model": model,
                "texts": texts,
                "length": length,
                "flops": measured.size.flops,
                "measured_milliseconds": 1000 * measured.seconds,
                "predicted_milliseconds": 1000 * predicted,
                "ratio": predicted / measured.seconds,
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    table = Table(title="One client's training step, predicted by the measured profile")
    for title in ("model", "batch", "GFLOP", "measured, ms", "predicted, ms", "predicted / measured"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['texts']} x {row['length']}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['measured_milliseconds']:.1f}",
            f"{row['predicted_milliseconds']:.1f}",
            f"{row['ratio']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
