"""`make bench`: its table by hand, its line to the contestants, and that they all do the same work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from elsa_ray.runtime import pool

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "experiments" / "benchmarks"
WORDS = ["red", "blue", "green", "stone", "river", "cloud", "edge", "client", "model"]
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (BENCHMARKS / "contestants", BENCHMARKS):
        monkeypatch.syspath_prepend(str(folder))


class TestTable:
    def test_by_hand(self) -> None:
        """Ratios are medians of those of the repetitions; a client's share counts, not a round's."""
        from ratios import ratios, table

        rows = [
            _row("ours", "fp32", wall=[1.0, 2.0, 1.0], loss=1.000),
            _row("flower", "fp32", wall=[6.0, 8.0, 5.0], loss=1.005),
            _row("pfl", "fp32", wall=[1.0, 1.0, 1.0], loss=1.020),
            {"task": "tiny", "precision": "fp32", "contestant": "plain", "failed": "ended with exit code 1 | no room"},
            _row("ours", "bf16", wall=[0.25, 0.25, 0.5], loss=1.001, clients=100),
        ]
        found = {(r["precision"], r["against"]): r for r in ratios(rows)}
        assert set(found) == {(p, o) for p in ("fp32", "bf16") for o in ("flower", "pfl")}
        assert found["fp32", "flower"]["ratio"] == 5.0 and found["fp32", "pfl"]["ratio"] == 1.0
        assert (found["fp32", "flower"]["ratio_min"], found["fp32", "flower"]["ratio_max"]) == (4.0, 6.0)
        assert found["bf16", "flower"]["ratio"] == 12.0, "of 24, 32 and 10 by the round, 100 clients to 200: 12, 16, 5"
        assert found["fp32", "flower"]["is_same_loss"] and not found["fp32", "pfl"]["is_same_loss"]
        assert found["fp32", "flower"]["memory_ratio"] == 1.0
        text = table(_report(rows, ratios(rows)))
        assert (
            "| Flower, fp32 | 30.00 | 10.00 | 1.50 GB | 2.000 to 1.0050 | 5.00 x (asked 4) | 12.00 x (asked 6) |"
            in text
        )
        assert "| bare torch loop, fp32 | failed | | | | | |" in text and "ended with exit code 1 | no room" in text
        assert "- missed: tiny BERT + LoRA, elsa_ray fp32 and pfl-research: 1.00 times, asked 1.5" in text
        assert "their losses differ by 2.0%" in text and "their losses differ by 0" not in text

    def test_an_fp32_row_is_not_set_against_bf16(self) -> None:
        from ratios import ratios

        rows = [_row("ours", "fp32"), _row("pfl", "bf16"), _row("ours", "bf16")]
        assert [(r["precision"], r["their_precision"], r["asked"]) for r in ratios(rows)] == [("bf16", "bf16", None)]


def _row(
    contestant: str, precision: str, wall: list[float] | None = None, loss: float = 1.0, clients: int = 200
) -> Any:
    return {
        "task": "tiny",
        "precision": precision,
        "contestant": contestant,
        "clients": clients,
        "wall_seconds": wall or [1.0],
        "cpu_seconds": [2.0],
        "peak_memory_bytes": 1.5e9,
        "first_test_loss": 2.0,
        "test_loss": loss,
    }


def _report(rows: list, found: list) -> dict:
    work = {"clients": {"tiny": 200}, "local_steps": 4, "batch": 8, "tokens": 32, "lora_rank": 8}
    hardware = {"cpus": 2, "processor": "a processor"}
    report = {"date": "2026-11-25", "note": "", "hardware": hardware, "versions": {"torch": "2"}, "work": work}
    return {**report, "repetitions": 3, "rows": rows, "ratios": found}


class TestEntry:
    """What a contestant does wrong is told, and ends nobody else."""

    PLAYS = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["BENCH_SOCKET"]); line = s.makefile("rw")
for seconds in (0.0, 3.0, 0.25, 0.5):
    line.write(f"{seconds}\\n"); line.flush(); line.readline()
open(sys.argv[2], "w").write(sys.argv[1])
"""

    def test_plays_its_rounds(self, tmp_path: Path) -> None:
        entry = self._play(tmp_path, self.PLAYS)
        assert entry.failed == "" and entry.wall_seconds == [0.25, 0.5] and len(entry.cpu_seconds) == 2
        assert entry.after.read_text() == "the work" and entry.peak_memory_bytes > 1e6

    def test_tells_why_it_failed(self, tmp_path: Path) -> None:
        assert self._play(tmp_path, "raise SystemExit('no room')").failed == "ended with exit code 1 | no room"
        absent = self._play(tmp_path, "", python=str(tmp_path / "absent"))
        assert "No such file or directory" in absent.failed and absent.wall_seconds == []

    def test_leaves_in_the_middle(self, tmp_path: Path) -> None:
        leaves = self.PLAYS.replace("(0.0, 3.0, 0.25, 0.5)", "(0.0, 3.0)").replace("open(", "sys.exit('had enough') #")
        assert self._play(tmp_path, leaves).failed == "it has ended | had enough"

    def test_hangs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import entry

        monkeypatch.setattr(entry, "ROUND_SECONDS", 0.2)
        hangs = self.PLAYS.replace("(0.0, 3.0, 0.25, 0.5)", "(0.0,)").replace("open(", "time.sleep(300); open(")
        assert self._play(tmp_path, hangs).failed == "no word from it within 0 s"

    def _play(self, folder: Path, program: str, python: str = sys.executable) -> Any:
        from entry import Entry

        folder = folder / f"{len(list(folder.iterdir()))}"
        folder.mkdir()
        with Entry("ours", "fp32", [python, "-c", program], Path("the work"), folder) as entry:
            entry.get_ready()
            entry.warm_up()
            entry.play()
            entry.play()
            entry.finish()
        return entry


@pytest.fixture(scope="module")
def work_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of four clients on invented texts, for there is no time to read the standard library's docstrings."""
    draws = np.random.default_rng(0)
    texts = [" ".join(draws.choice(WORDS, size=9)) for _ in range(4 * 16 + 256)]
    table = SimpleNamespace(columns={"text": texts, "label": [text.split()[0] for text in texts]})
    folder = tmp_path_factory.mktemp("bench") / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import side_by_side

        patch.setattr(side_by_side, "read_pydocs", lambda: table)
        side_by_side.make_work(folder, "tiny", "fp32", clients=4, rounds=2, executor="inline")
    return folder


class Now:
    """A line to a benchmark that never lets anybody wait."""

    def __init__(self) -> None:
        self.rounds = 0

    def wait(self) -> None:
        pass

    def end_round(self) -> None:
        self.rounds += 1


def test_elsa_ray_and_a_bare_loop_do_the_same_work(work_folder: Path) -> None:
    from ours import ours
    from work import Trainer, Work, mean_of

    work, turns = Work(work_folder), Now()
    after = ours(work, turns)
    trainer, adapters = Trainer(work), work.first_adapters
    for round_index in range(2):
        updates = []
        for client in range(4):
            trainer.set(adapters)
            trainer.train(round_index, client)
            updates.append(trainer.get())
        adapters = mean_of(updates)
    assert turns.rounds == 2 and set(after) == set(adapters)
    for name, tensor in adapters.items():
        moved = (tensor - work.first_adapters[name]).abs().max()
        assert moved > 1e-3 and (tensor - after[name]).abs().max() < 1e-2 * moved, name
    assert trainer.test_loss(after) == pytest.approx(trainer.test_loss(adapters), rel=1e-4)


def test_no_op_clients_change_nothing(work_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ours import ours
    from work import Work

    monkeypatch.setattr(pool, "train_clients", pool.train_clients)  # put back afterwards
    for name in ("config.yaml", "adapters.safetensors"):
        (tmp_path / name).write_bytes((work_folder / name).read_bytes())
    facts = json.loads((work_folder / "work.json").read_text())
    (tmp_path / "work.json").write_text(json.dumps(facts | {"is_no_op": True}))
    work, turns = Work(tmp_path), Now()
    after = ours(work, turns)
    assert turns.rounds == 2
    for name, tensor in work.first_adapters.items():
        torch.testing.assert_close(after[name], tensor)


@pytest.mark.slow
@pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="no .venv-bench with Flower and pfl-research (make bench)")
def test_the_peers_do_the_same_work(tmp_path: Path) -> None:
    """All contestants with 4 clients and one timed round: the losses agree within 0.1%."""
    out = tmp_path / "figures.json"
    options = {"tasks": "tiny", "precisions": "fp32", "clients": 4, "repetitions": 1, "executor": "inline"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    program = [sys.executable, str(BENCHMARKS / "side_by_side.py"), *arguments]
    subprocess.run([*program, "--peers-python", str(PEERS_PYTHON), "--out", str(out)], check=True, timeout=280)
    report = json.loads(out.read_text())
    assert [row.get("failed") for row in report["rows"]] == [None] * 4
    assert all(ratio["loss_difference"] < 1e-3 for ratio in report["ratios"])
