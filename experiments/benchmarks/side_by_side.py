"""elsa_ray beside Flower's simulation engine, pfl-research and a bare torch loop, in one run: `make bench`.

Rounds of federated averaging with LoRA: each client takes 4 local steps on 8 texts of 32 tokens, from the same model,
first adapters and batches, with the same optimiser (AdamW, fresh for each client) and the mean of all. Each contestant
is a process of its own (with what it starts), has both CPUs and one thread a worker, and plays all rounds. They take
turns, a round at a time: while one works, the others wait. Start-up and a first, whole round are not timed; in that
round memory is watched. The loss after the last round, on held-out texts, must agree.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from elsa_ray.config.load import dump_config, make_config
from elsa_ray.prepare import load_backbone, prepare
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.tasks.pydocs import read_pydocs
from elsa_ray.training.batches import examples_of_steps
from elsa_ray.world.plan import WorkKey

HERE = Path(__file__).parent
CONTESTANTS = HERE / "contestants"
sys.path[:0] = [str(HERE), str(CONTESTANTS)]

from entry import Entry  # noqa: E402
from ratios import TITLES, milliseconds, ratios, table  # noqa: E402

STEPS, BATCH, LENGTH, RANK, ALPHA = 4, 8, 32, 8, 16
COHORT = 20
EXAMPLES_A_CLIENT, TEST_EXAMPLES, WORDS = 16, 256, 40
MODELS = {"no-op": "tiny", "tiny": "tiny", "minilm": "minilm"}


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--contestants", nargs="+", default=["ours", "flower", "pfl", "plain"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--others-in-bf16", action="store_true", help="the others in bf16 too, not only elsa_ray")
    parser.add_argument("--clients", type=int, default=200, help="a round, even")
    parser.add_argument("--minilm-clients", type=int, default=200, help="a round of the minilm work, even")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--executor", default="ray", choices=["ray", "inline"], help="elsa_ray's")
    parser.add_argument("--peers-python", type=Path, default=Path(".venv-bench/bin/python"))
    parser.add_argument("--note", default="", help="what else must be known of the figures")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if options.clients % 2 or options.minilm_clients % 2:
        parser.error("--clients, --minilm-clients: even numbers, so that two workers have the same to do")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the contestants on the way out
    rows: list[dict] = []
    for task in options.tasks:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            rows += measure(task, Path(folder), options)
        report = make_report(rows, options)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


def make_report(rows: list[dict], options: argparse.Namespace) -> dict:
    """Return the figures with all that a reader must know of them."""
    return {
        "date": date.today().isoformat(),
        "note": options.note,
        "hardware": describe_hardware(),
        "versions": versions(options.peers_python),
        "work": {
            "clients": {task: clients_of(task, options) for task in dict.fromkeys(row["task"] for row in rows)},
            "local_steps": STEPS,
            "batch": BATCH,
            "tokens": LENGTH,
            "lora_rank": RANK,
            "cohort": COHORT,
        },
        "repetitions": options.repetitions,
        "rows": rows,
        "ratios": ratios(rows),
    }


def clients_of(task: str, options: argparse.Namespace) -> int:
    """Return how many clients a round of the task has."""
    return options.minilm_clients if task == "minilm" else options.clients


def measure(task: str, folder: Path, options: argparse.Namespace) -> list[dict]:
    """Return a row for each contestant and precision: figures, or why it failed."""
    clients, rounds = clients_of(task, options), options.repetitions + 1
    works = {}
    for precision in options.precisions if task != "no-op" else ["fp32"]:
        works[precision] = folder / precision
        make_work(works[precision], task, precision, clients=clients, rounds=rounds, executor=options.executor)
    with ExitStack() as stack:
        entries = []
        for precision, work in works.items():
            for name in options.contestants:
                is_wanted = name == "ours" or precision == "fp32" or options.others_in_bf16
                if is_wanted and (task, name) != ("no-op", "plain"):
                    command = command_of(name, options.peers_python)
                    entries.append(stack.enter_context(Entry(name, precision, command, work, folder)))
        for entry in entries:
            entry.get_ready()
        for number in range(rounds):
            turn = number % len(entries)
            for entry in entries[turn:] + entries[:turn]:
                entry.play() if number else entry.warm_up()
                if entry.wall_seconds and not entry.failed:
                    wall, cpu = (1000 * seconds[-1] / clients for seconds in (entry.wall_seconds, entry.cpu_seconds))
                    what = f"{task} {entry.precision} {entry.name} {number}/{options.repetitions}"
                    print(f"{what}: {wall:.2f} ms a client, {cpu:.2f} of CPU", file=sys.stderr)
        for entry in entries:
            entry.finish()
    return [row_of(entry, task, clients, next(iter(works.values()))) for entry in entries]


def row_of(entry: Entry, task: str, clients: int, work: Path) -> dict:
    """Return what `ratios` takes; the loss is computed here, by the same code for all."""
    row = {"task": task, "precision": entry.precision, "contestant": entry.name}
    if entry.failed:
        print(f"{task} {entry.precision} {entry.name} failed: {entry.failed}", file=sys.stderr)
        return {**row, "failed": entry.failed}
    from work import trainer_of

    trainer = trainer_of(str(work))
    row |= {
        "clients": clients,
        "wall_seconds": entry.wall_seconds,
        "cpu_seconds": entry.cpu_seconds,
        "idle_cpu_share": entry.idle_cpu_seconds / max(entry.idle_seconds, 1e-9),
        "peak_memory_bytes": entry.peak_memory_bytes,
        "first_test_loss": trainer.test_loss(trainer.work.first_adapters),
        "test_loss": trainer.test_loss(load_file(entry.after)),
    }
    return {**row, "milliseconds_per_client": milliseconds(row)}


def make_work(folder: Path, task: str, precision: str, *, clients: int, rounds: int, executor: str) -> None:
    """Write a work folder: data and config for elsa_ray, tensors for the others. See contestants/work.py."""
    folder.mkdir()
    write_texts(folder, clients)
    config = make_config(
        {
            "name": f"bench-{task}",
            "task": {
                "dataset": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
                "partition": {"kind": "iid"},
                "model": MODELS[task],
                "lora": {"rank": RANK, "alpha": ALPHA},
                "max_length": LENGTH,
            },
            "topology": {"kind": "hierarchical", "clients": clients, "edges": 1},
            # One round more than is played: the last one would test the model.
            "protocol": {"name": "fedavg", "rounds": rounds + 1, "local_steps": STEPS, "batch_size": BATCH},
            "evaluation": {"every": 1_000_000},
            "numerics": {"precision": precision, "device": "cpu", "cohort": COHORT},
            "runtime": {"executor": executor},
        }
    )
    prepared = prepare(config)
    (folder / "config.yaml").write_text(dump_config(config))
    model, adapters = load_backbone(prepared)
    model.save_pretrained(folder / "model")
    save_file({name: tensor.contiguous() for name, tensor in adapters.items()}, folder / "adapters.safetensors")
    own, protocol = prepared.setting.task, prepared.config.protocol
    keys_RC = [[WorkKey(r, 0, c) for c in range(clients)] for r in range(rounds)]
    index_RCTB = np.array(
        [
            [examples_of_steps(key, own.partition[key.client], protocol, config.seed) for key in keys_C]
            for keys_C in keys_RC
        ]
    )
    ids_ES = own.train.token_ids.reshape(-1, LENGTH).astype(np.int64)
    np.savez(
        folder / "batches.npz",
        ids=ids_ES[index_RCTB],
        labels=own.train.labels[index_RCTB],
        test_ids=own.test.token_ids.reshape(-1, LENGTH).astype(np.int64),
        test_labels=own.test.labels,
    )
    facts = {
        "clients": clients,
        "rounds": rounds,
        "learning_rate": config.protocol.optimizer.learning_rate,
        "rank": RANK,
        "alpha": ALPHA,
        "targets": list(prepared.setting.layout.targets),
        "is_no_op": task == "no-op",
        "precision": precision,
    }
    (folder / "work.json").write_text(json.dumps(facts, indent=2))


def write_texts(folder: Path, clients: int) -> None:
    """Write docstrings of more than LENGTH tokens, short ones over and over, so that nobody pads anything."""
    columns = read_pydocs().columns
    rows = [
        {"text": " ".join([text] * math.ceil(WORDS / len(text.split()))), "label": label}
        for text, label in zip(columns["text"], columns["label"], strict=True)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    needed = clients * EXAMPLES_A_CLIENT
    chosen = [rows[i] for i in order[: needed + TEST_EXAMPLES]]
    assert len(chosen) == needed + TEST_EXAMPLES, f"only {len(rows)} texts"
    for name, part in (("train", chosen[:needed]), ("test", chosen[needed:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def command_of(name: str, peers_python: Path) -> list[str]:
    """Return the command of a contestant, but for its folder and file."""
    python = str(peers_python.absolute())
    commands = {
        "ours": [sys.executable, str(CONTESTANTS / "ours.py")],
        "plain": [sys.executable, str(CONTESTANTS / "plain.py")],
        "flower": [python, str(CONTESTANTS / "flower.py")],
        "pfl": [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    }
    commands["pfl"].append(str(CONTESTANTS / "pfl_research.py"))
    return commands[name]


def versions(peers_python: Path) -> dict[str, str]:
    """Return the versions of both environments."""
    ours = {name: version(name) for name in ("elsa-ray", "torch", "transformers", "peft", "ray")}
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    if not peers_python.exists():
        return ours
    told = subprocess.run([peers_python, "-c", code], capture_output=True, text=True, check=True).stdout
    found = json.loads(told)
    theirs = {name: found.get(name, "missing") for name in ("flwr", "pfl")}
    return ours | theirs | {f"{name} of these": found.get(name, "missing") for name in ("ray", "torch")}


if __name__ == "__main__":
    main()
