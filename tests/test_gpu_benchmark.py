"""The benchmark of cohort sizes runs; what it says of a GPU is for who has one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "experiments" / "benchmarks" / "gpu.py"


def test_cohort_sizes_are_measured_on_a_processor_too(tmp_path: Path) -> None:
    sizes, out = ["1", "4"], tmp_path / "figures.json"
    options = ["--device", "cpu", "--precision", "fp32", "--models", "tiny", "--sizes", *sizes, "--repetitions", "1"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    subprocess.run([sys.executable, SCRIPT, *options, "--out", out], check=True, env=environment, timeout=250)
    rows = json.loads(out.read_text())["rows"]
    assert [row["clients"] for row in rows] == [1, 4]
    assert all(row["utilisation"] > 0 and row["clients_per_second"] > 0 for row in rows)
