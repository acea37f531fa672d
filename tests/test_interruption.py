"""Ctrl-C and SIGTERM end a run cleanly: what is finished is kept, and nothing of Ray is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest
import yaml

from elsa_ray.signals import terminable, uninterrupted


def start_long_run(folder: Path, executor: str) -> subprocess.Popen:
    rows = [{"text": f"{label} {i} and more words", "label": label} for label in ("red", "blue") for i in range(40)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "long",
        "task": {"dataset": {"train": "data.jsonl"}, "model": "tiny", "max_length": 12},
        "topology": {"kind": "hierarchical", "clients": 4, "edges": 2},
        "protocol": {"name": "elsa", "rounds": 100_000, "local_steps": 2},
        "runtime": {"executor": executor, "pools": 1, "edge_actors": 1},
    }
    (folder / "long.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "elsa_ray", "run", str(folder / "long.yaml"), "--out", str(folder / "out")]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=_listen_to_ctrl_c)


def _listen_to_ctrl_c() -> None:
    """A shell starts background jobs deaf to SIGINT, and their children inherit that; a run at a terminal is not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_rounds(folder: Path, count: int, process: subprocess.Popen) -> None:
    rounds = folder / "out" / "rounds.jsonl"
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if rounds.exists() and len(rounds.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail("the run did not finish its first rounds in time")


@pytest.fixture
def ctrl_c_heard() -> Iterator[None]:
    """Tests that were started in the background may be deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_written_together_is_not_broken_off(number: int, ctrl_c_heard: None) -> None:
    written = []
    with pytest.raises(KeyboardInterrupt), terminable() as termination, uninterrupted():
        written.append("line")
        signal.raise_signal(number)
        signal.raise_signal(number)
        written.append("checkpoint")
    assert written == ["line", "checkpoint"]
    assert termination.came == (number == signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as before"


def test_a_sigterm_whose_exception_got_lost_is_heard_when_the_next_round_is_written(ctrl_c_heard: None) -> None:
    written = []
    with terminable() as termination:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert termination.came
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            written.append("round")
    with uninterrupted():
        written.append("outside nobody remembers")
    assert len(written) == 2


@pytest.mark.timeout(600)  # more than all waits together, so that a failure says which one it was
@pytest.mark.parametrize(
    ("executor", "number", "code"),
    [("inline", signal.SIGINT, 130), ("inline", signal.SIGTERM, 143), ("ray", signal.SIGINT, 130)],
)
def test_an_interrupted_run_keeps_what_is_finished(executor: str, number: int, code: int, tmp_path: Path) -> None:
    process = start_long_run(tmp_path, executor)
    wait_for_rounds(tmp_path, 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    # As a terminal does it: the signal goes to the whole group.
    os.killpg(process.pid, number)
    try:
        _, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the run did not end")
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stop_reason"] == "interrupted"
    assert summary["rounds_completed"] == len(lines) >= 2
    transfers = pyarrow.parquet.read_table(out / "transfers.parquet")
    assert sum(transfers["num_bytes"].to_pylist()) == summary["bytes_total"]
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert (out / "report.html").exists()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert executor == "inline" or len(children) > 3, "the check above saw Ray's processes"
