"""elsa_ray beside Flower's simulation engine, pfl-research and a bare torch loop, in one run: ``make bench``.

One round of federated averaging with LoRA on 200 clients, 4 local steps of 8 texts of 32 tokens each: the same model,
first adapters, batches, optimiser (AdamW, fresh for each client) and mean. Each engine runs in a process of its own,
with both CPUs, and takes the time of its own rounds after a small warm-up round; start-up is not counted. Repetitions
alternate between the engines; the median of all counts. The loss after the last round on held-out texts must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from elsa_ray.config.load import dump_config, make_config
from elsa_ray.prepare import load_backbone, prepare
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.tasks.pydocs import read_pydocs
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.world.plan import WorkKey

HERE = Path(__file__).parent
PEERS = HERE / "peers"
sys.path.insert(0, str(PEERS))

CLIENTS, WARM_UP_CLIENTS, STEPS, BATCH, LENGTH, RANK, ALPHA = 200, 16, 4, 8, 32, 8, 16
EXAMPLES_A_CLIENT, TEST_EXAMPLES, WORDS = 16, 256, 40
TASKS = {"no-op": "tiny", "tiny": "tiny", "minilm": "minilm"}
ROUNDS = {"no-op": 3, "tiny": 3, "minilm": 1}
TARGETS = {
    ("no-op", "fp32"): "at most 1 ms a client",
    ("tiny", "fp32"): "4 x Flower, 1.5 x pfl-research",
    ("minilm", "fp32"): "1.15 x both",
    ("tiny", "bf16"): "6 x Flower, 2.5 x pfl-research (their fp32)",
    ("minilm", "bf16"): "2 x both (their fp32)",
}
LOSS_TOLERANCE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--engines", nargs="+", default=["ray", "inline", "flower", "pfl", "plain"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--peers-bf16", action="store_true", help="the peers in bf16 too, not only elsa_ray")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--peers-python", type=Path, default=Path(".venv-bench/bin/python"))
    parser.add_argument("--note", default="", help="what else the machine did meanwhile")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    rows = []
    for task in options.tasks:
        with tempfile.TemporaryDirectory(prefix="elsa-bench-") as folder:
            rows += measure(task, Path(folder), options)
    report = {
        "date": date.today().isoformat(),
        "note": options.note,
        "hardware": describe_hardware(),
        "versions": versions(options.peers_python),
        "work": {"clients": CLIENTS, "local_steps": STEPS, "batch": BATCH, "tokens": LENGTH, "lora_rank": RANK},
        "repetitions": options.repetitions,
        "rows": rows,
        "ratios": ratios(rows),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def measure(task: str, folder: Path, options: argparse.Namespace) -> list[dict]:
    """Return a row for each engine and precision."""
    runs: dict[tuple[str, str], dict[str, list[float]]] = {}
    works = {}
    for precision in options.precisions if task != "no-op" else ["fp32"]:
        works[precision] = folder / precision
        make_work(task, precision, works[precision])
        for engine in options.engines:
            is_ours = engine in ("ray", "inline")
            if is_ours or precision == "fp32" or options.peers_bf16:
                runs[precision, engine] = {"wall_seconds": [], "cpu_seconds": [], "memory_bytes": [], "loss": []}
    for repetition in range(options.repetitions):
        for (precision, engine), figures in runs.items():
            result = run_engine(engine, works[precision], options.peers_python)
            for kind in ("wall_seconds", "cpu_seconds"):
                figures[kind] += result[kind]
            figures["memory_bytes"].append(result["memory_bytes"])
            figures["loss"].append(loss_after(works["fp32"], result["after"]))
            wall, cpu = (milliseconds(result[kind]) for kind in ("wall_seconds", "cpu_seconds"))
            turn = f"{task} {precision} {engine} {repetition + 1}/{options.repetitions}"
            print(f"{turn}: {wall:.2f} ms a client, {cpu:.2f} of CPU", file=sys.stderr)
    return [
        {
            "task": task,
            "precision": precision,
            "engine": engine,
            "milliseconds_per_client": milliseconds(figures["wall_seconds"]),
            "cpu_milliseconds_per_client": milliseconds(figures["cpu_seconds"]),
            "clients_per_second": CLIENTS / statistics.median(figures["wall_seconds"]),
            "wall_seconds_of_rounds": figures["wall_seconds"],
            "cpu_seconds_of_rounds": figures["cpu_seconds"],
            "peak_memory_bytes": max(figures["memory_bytes"]),
            "test_loss": statistics.median(figures["loss"]),
        }
        for (precision, engine), figures in runs.items()
    ]


def milliseconds(seconds_of_rounds: list[float]) -> float:
    """Return the median for one client."""
    return 1000 * statistics.median(seconds_of_rounds) / CLIENTS


def make_work(task: str, precision: str, folder: Path) -> None:
    """Write a work folder: data and config for elsa_ray, tensors for the others. See peers/work.py."""
    folder.mkdir()
    write_texts(folder)
    config = make_config(
        {
            "name": f"bench-{task}",
            "task": {
                "dataset": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
                "partition": {"kind": "iid"},
                "model": TASKS[task],
                "lora": {"rank": RANK, "alpha": ALPHA},
                "max_length": LENGTH,
            },
            "topology": {"kind": "hierarchical", "clients": CLIENTS, "edges": 4},
            "protocol": {"name": "fedavg", "local_steps": STEPS, "batch_size": BATCH},
            "evaluation": {"every": 1_000_000},
            "numerics": {"precision": precision, "device": "cpu"},
            "runtime": {"pools": os.cpu_count()},
        }
    )
    prepared = prepare(config)
    (folder / "config.yaml").write_text(dump_config(config))
    model, adapters = load_backbone(prepared)
    model.save_pretrained(folder / "model")
    save_file({name: tensor.contiguous() for name, tensor in adapters.items()}, folder / "adapters.safetensors")
    own = prepared.setting.task
    rounds = ROUNDS[task]
    index_RCTB = np.array(
        [
            [
                examples_of_steps(WorkKey(r, 0, c), own.partition[c], prepared.config.protocol, config.seed)
                for c in range(CLIENTS)
            ]
            for r in range(rounds)
        ]
    )
    ids, labels = own.train.token_ids.reshape(-1, LENGTH).astype(np.int64), own.train.labels
    test_ids = own.test.token_ids.reshape(-1, LENGTH).astype(np.int64)
    np.savez(
        folder / "batches.npz",
        ids=ids[index_RCTB],
        labels=labels[index_RCTB],
        test_ids=test_ids,
        test_labels=own.test.labels,
    )
    facts = {
        "clients": CLIENTS,
        "warm_up_clients": WARM_UP_CLIENTS,
        "rounds": rounds,
        "learning_rate": config.protocol.optimizer.learning_rate,
        "rank": RANK,
        "alpha": ALPHA,
        "targets": list(prepared.setting.layout.targets),
        "is_no_op": task == "no-op",
        "precision": precision,
    }
    (folder / "work.json").write_text(json.dumps(facts, indent=2))


def write_texts(folder: Path) -> None:
    """Write docstrings of more than LENGTH tokens, short ones over and over, so that nobody pads anything."""
    columns = read_pydocs().columns
    rows = [
        {"text": " ".join([text] * math.ceil(WORDS / len(text.split()))), "label": label}
        for text, label in zip(columns["text"], columns["label"], strict=True)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    needed = CLIENTS * EXAMPLES_A_CLIENT
    chosen = [rows[i] for i in order[: needed + TEST_EXAMPLES]]
    assert len(chosen) == needed + TEST_EXAMPLES, f"only {len(rows)} texts"
    for name, part in (("train", chosen[:needed]), ("test", chosen[needed:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def run_engine(engine: str, work: Path, peers_python: Path) -> dict:
    """Run one engine once, watching the memory of all its processes."""
    with tempfile.TemporaryDirectory(prefix="elsa-bench-out-") as out:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**os.environ, **threads, **quiet, "PYTHONPATH": f"{PEERS}:{os.environ.get('PYTHONPATH', '')}"}
        command = command_of(engine, work, Path(out), peers_python)
        with (Path(out) / "log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=out, start_new_session=True
            )
            try:
                with PeakMemory(process.pid) as peak:
                    process.wait()
            finally:
                # Also where this program is interrupted: all that an engine has started is of its session.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0:
            raise SystemExit(f"{engine} failed:\n{(Path(out) / 'log').read_text()[-4000:]}")
        after = (Path(out) / "after.safetensors").read_bytes()
        return {**json.loads((Path(out) / "times.json").read_text()), "memory_bytes": peak.bytes, "after": after}


def command_of(engine: str, work: Path, out: Path, peers_python: Path) -> list[str]:
    """Return the command line of an engine."""
    folders, python = [str(work), str(out)], str(peers_python.absolute())
    if engine in ("ray", "inline"):
        return [sys.executable, str(HERE / "ours.py"), *folders, engine]
    if engine == "plain":
        return [sys.executable, str(PEERS / "plain.py"), *folders]
    if engine == "pfl":
        launcher = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={os.cpu_count()}"]
        return [*launcher, str(PEERS / "pfl_research.py"), *folders]
    if engine == "flower":
        return [python, str(PEERS / "flower.py"), *folders]
    raise SystemExit(f"unknown engine {engine}; allowed: ray, inline, flower, pfl, plain")


class PeakMemory:
    """The most memory that a process and all its children hold together; shared pages count once.

    Looked at once a second, which costs less than a hundredth of a core.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._process, self._done = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            total = 0
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in family:
                try:
                    total += member.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def loss_after(work: Path, after: bytes) -> float:
    """Return the loss of an engine's final adapters on the held-out texts, by the same fp32 code for all."""
    from safetensors.torch import load
    from work import Trainer, Work

    key = str(work)
    if key not in _TRAINERS:
        _TRAINERS[key] = Trainer(Work(work))
    return _TRAINERS[key].test_loss(load(after))


_TRAINERS: dict = {}


def ratios(rows: list[dict]) -> list[dict]:
    """Return how many times the others' throughput elsa_ray has: fp32 by fp32, and bf16 by their fp32 and bf16."""
    found = {(row["task"], row["precision"], row["engine"]): row for row in rows}
    answer = []
    for (task, precision, engine), ours in found.items():
        if engine not in ("ray", "inline"):
            continue
        for (other_task, other_precision, other), theirs in found.items():
            if other_task != task or other in ("ray", "inline") or (precision, other_precision) == ("fp32", "bf16"):
                continue
            loss, their_loss = ours["test_loss"], theirs["test_loss"]
            answer.append(
                {
                    "task": task,
                    "executor": engine,
                    "precision": precision,
                    "against": other,
                    "their_precision": other_precision,
                    "throughput_ratio": ours["clients_per_second"] / theirs["clients_per_second"],
                    "cpu_ratio": theirs["cpu_milliseconds_per_client"] / ours["cpu_milliseconds_per_client"],
                    "loss_difference": abs(loss - their_loss) / their_loss,
                    "same_loss": abs(loss - their_loss) <= LOSS_TOLERANCE * their_loss,
                }
            )
    return answer


def versions(peers_python: Path) -> dict[str, str]:
    """Return the versions of both environments."""
    ours = {name: version(name) for name in ("elsa-ray", "torch", "transformers", "peft", "ray")}
    names = ["flwr", "pfl", "ray", "torch", "transformers", "peft"]
    code = f"import importlib.metadata as m; print(*[m.version(n) for n in {names}])"
    if not peers_python.exists():
        return ours
    theirs = subprocess.run([peers_python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return {**ours, **{f"peers: {name}": found for name, found in zip(names, theirs, strict=True)}}


def show(report: dict) -> None:
    """Print both tables."""
    console = Console(width=140)
    table = Table(title=f"{CLIENTS} clients a round, {STEPS} steps of {BATCH} x {LENGTH} tokens, LoRA rank {RANK}")
    for title in (
        "task",
        "precision",
        "engine",
        "ms a client",
        "min to max",
        "CPU ms",
        "clients/s",
        "peak memory",
        "test loss",
    ):
        table.add_column(title, justify="left" if title in ("task", "precision", "engine") else "right")
    for row in report["rows"]:
        each = [1000 * seconds / CLIENTS for seconds in row["wall_seconds_of_rounds"]]
        table.add_row(
            row["task"],
            row["precision"],
            row["engine"],
            f"{row['milliseconds_per_client']:.2f}",
            f"{min(each):.2f} to {max(each):.2f}",
            f"{row['cpu_milliseconds_per_client']:.2f}",
            f"{row['clients_per_second']:.1f}",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
            f"{row['test_loss']:.4f}",
        )
    console.print(table)
    table = Table(title="throughput of elsa_ray over the others'")
    for title in ("task", "precision", "executor", "against", "ratio", "by CPU time", "same loss", "target"):
        table.add_column(title, justify="right" if title in ("ratio", "by CPU time") else "left")
    for row in report["ratios"]:
        table.add_row(
            row["task"],
            row["precision"],
            row["executor"],
            f"{row['against']} {row['their_precision']}",
            f"{row['throughput_ratio']:.2f}",
            f"{row['cpu_ratio']:.2f}",
            f"{'yes' if row['same_loss'] else 'NO'} ({row['loss_difference']:.2%})",
            TARGETS.get((row["task"], row["precision"]), "") if row["executor"] == "ray" else "",
        )
    console.print(table)


if __name__ == "__main__":
    main()
