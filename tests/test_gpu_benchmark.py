"""The benchmark of cohort sizes runs; what it says of a GPU is for who has one."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "experiments" / "benchmarks" / "gpu.py"


def test_cohort_sizes_are_measured_on_a_processor_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, threads = tmp_path / "figures.json", torch.get_num_threads()
    options = ["--device", "cpu", "--precision", "fp32", "--models", "tiny", "--sizes", "1", "4", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--out", str(out)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    assert [row["clients"] for row in report["rows"]] == [1, 4]
    assert all(row["utilisation"] > 0 and row["clients_per_second"] > 0 for row in report["rows"])
    assert report["mixed_run"]["wall_seconds"] > 0
