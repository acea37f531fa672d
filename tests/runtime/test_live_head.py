"""A head as a user starts it: one run attaches, another is submitted, both at once; doctor; the metrics port."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DEADLINE_SECONDS = 540.0


@dataclass(frozen=True)
class Head:
    """A cluster of one node, in processes of its own."""

    gcs: str
    dashboard: str
    metrics: str
    environment: dict[str, str]
    process: subprocess.Popen[str]

    def version(self) -> str:
        """Ask the dashboard."""
        return fetched(f"{self.dashboard}/api/version", self.environment["RAY_AUTH_TOKEN"])

    def listed(self, what: str) -> list[dict[str, Any]]:
        """Return what ``ray list`` tells."""
        command = [str(BIN / "ray"), "list", what, "--address", self.dashboard, "--format", "json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(found: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    """Ask again and again; the last failure is part of the message."""
    deadline, why = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if answer := found():
                return answer
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error)
        time.sleep(1)
    raise AssertionError(f"no {what} in {seconds:g} s {why}")


def fetched(url: str, token: str = "") -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return str(answer.read().decode())


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    pytest.importorskip("aiohttp_cors", reason="Ray's dashboard needs the extra cluster")
    folder = tmp_path_factory.mktemp("head")
    gcs, dashboard, metrics, listen, client = free_ports(5)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_worker_niceness": "0", "RAY_metrics_report_interval_ms": "1000"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "metrics-export-port": metrics,
        "dashboard-agent-listen-port": listen,
        "ray-client-server-port": client,
    }
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=100000000"]
    command += ["--include-dashboard=true", *(f"--{k}={v}" for k, v in ports.items())]
    with (folder / "log").open("w") as log:
        # Blocking, it ends the processes that it has started when it is told to end, and no others.
        process = subprocess.Popen(
            [*map(str, command), f"--temp-dir={folder}"], env=environment, stdout=log, stderr=log, text=True
        )
        try:
            own = Head(
                f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}", environment, process
            )
            until(own.version, "dashboard")
            until(lambda: fetched(f"{own.metrics}/metrics"), "metrics port")
            yield own
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def dashboard_series() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "dashboards").glob("*.json"))
    return set(re.findall(r"\bray_elsa_[a-z_]+", text))


def left_over(head: Head) -> list[str]:
    actors = [actor["class_name"] for actor in head.listed("actors") if actor["state"] != "DEAD"]
    return actors + [group["name"] for group in head.listed("placement-groups") if group["state"] != "REMOVED"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1000)
def test_runs_attach_and_are_submitted_at_once_and_leave_nothing(head: Head, topic_data: Path, tmp_path: Path) -> None:
    config = tmp_path / "experiment.yaml"
    values = {
        "schema_version": 1,
        "name": "live",
        "task": {
            "dataset": {"train": str(topic_data / "train.jsonl"), "test": str(topic_data / "test.jsonl")},
            "model": "tiny",
            "max_length": 16,
        },
        "topology": {"kind": "hierarchical", "clients": 4, "edges": 2},
        "protocol": {"name": "elsa", "rounds": 2, "local_steps": 1, "batch_size": 2},
        "numerics": {"precision": "fp32", "device": "cpu"},
        "runtime": {"executor": "ray", "pools": 1, "startup_timeout_seconds": 300},
    }
    config.write_text(yaml.safe_dump(values))
    elsa_ray = [sys.executable, "-m", "elsa_ray"]
    run = [*elsa_ray, "run", str(config), "--out"]
    doing: dict[str, Any] = {"cwd": ROOT, "env": head.environment, "text": True}
    doing |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    attached = subprocess.Popen([*run, str(tmp_path / "attached"), "--address", head.gcs], **doing)
    submit = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", str(ROOT)]
    submit += ["--runtime-env", str(ROOT / "experiments" / "cluster" / "runtime_env.yaml"), "--"]
    # Where the history had come along, the job would fail.
    job = f"test ! -e .git && test ! -e runs && {' '.join(run)} {tmp_path / 'submitted'}"
    submitted = subprocess.Popen([*submit, "sh", "-c", job], **doing)
    began, missing = time.monotonic(), dashboard_series()
    assert missing
    try:
        while missing or None in (attached.poll(), submitted.poll()):
            assert time.monotonic() - began < DEADLINE_SECONDS, (
                f"series {missing}, {attached.poll()}, {submitted.poll()}"
            )
            assert not attached.poll() and not submitted.poll(), "a run has failed"
            missing -= set(re.findall(r"^(ray_elsa_[a-z_]+)\{", fetched(f"{head.metrics}/metrics"), flags=re.MULTILINE))
            time.sleep(1)
    finally:
        for process in (attached, submitted):
            process.kill()
            sys.stdout.write(process.communicate()[0][-3000:])
    for name in ("attached", "submitted"):
        assert len((tmp_path / name / "rounds.jsonl").read_text().splitlines()) == 2
    rounds = [
        json.loads((tmp_path / name / "rounds.jsonl").read_text().splitlines()[-1])
        for name in ("attached", "submitted")
    ]
    assert rounds[0]["loss"] == rounds[1]["loss"], "two runs of one config on one cluster"
    until(lambda: not left_over(head), "end of all actors and placement groups", 150)

    told = subprocess.run([*elsa_ray, "doctor", "--address", head.gcs, "--format", "json"], timeout=240, **doing)
    assert told.returncode == 0, told.stdout
    (node,) = json.loads(told.stdout[told.stdout.index("{") :])["nodes"]
    assert node["total"]["CPU"] == node["free"]["CPU"] == 4 and node["trouble"] is None
    assert head.process.poll() is None and head.version(), "the cluster is still up"
