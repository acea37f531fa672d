"""The command line: exit codes, one line for wrong input, and what a run leaves behind."""

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from elsa_ray.cli import run_command

TEXTS = [
    f"{topic} {word} {number}" for topic in ("net", "graph") for word in ("one", "two", "red") for number in range(5)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"text": text, "label": text.split()[0]} for text in TEXTS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "small",
        "task": {"dataset": {"train": "data.jsonl"}, "model": "tiny", "max_length": 8},
        "topology": {"kind": "hierarchical", "clients": 4, "edges": 2},
        "protocol": {"name": "elsa", "rounds": 2, "local_steps": 1, "codec": [{"kind": "int8"}]},
        "numerics": {"precision": "fp32"},
        "runtime": {"executor": "inline"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "transfers.csv").write_text("id,src,dst,num_bytes,start_seconds\nx,a,b,1000,0\n")
    links = [{"source": "a", "target": "b", "bandwidth_bytes_per_second": 1000, "latency_seconds": 0.5}]
    graph = {"nodes": [{"id": "a"}, {"id": "b"}], "edges": links}
    (tmp_path / "net.json").write_text(json.dumps(graph))
    return tmp_path


def run_small(folder: Path, *options: str, out: str = "out") -> int:
    return run_command(["run", str(folder / "small.yaml"), "--out", str(folder / out), *options])


def test_a_run_leaves_its_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_small(folder) == 0
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        *("config.yaml", "summary.json", "rounds.jsonl", "transfers.parquet", "events.parquet"),
        *("adapter", "base", "report.html", "run.log", "checkpoints", "profile.json"),
    }
    summary = json.loads((folder / "out" / "summary.json").read_text())
    transfers = pyarrow.parquet.read_table(folder / "out" / "transfers.parquet").to_pydict()
    assert sum(transfers["num_bytes"]) == summary["bytes_total"] == sum(summary["bytes_by_role"].values())
    assert summary["rounds_completed"] == 2 and summary["stop_reason"] == "rounds"
    printed = capsys.readouterr().out
    assert "round 2/2" in printed and "accuracy" in printed


def test_the_config_of_a_run_reproduces_it(folder: Path) -> None:
    assert run_small(folder) == 0
    again = folder / "again"
    assert run_command(["run", str(folder / "out" / "config.yaml"), "--out", str(again)]) == 0
    first, second = (json.loads((path / "summary.json").read_text()) for path in (folder / "out", again))
    for key in ("accuracy", "loss", "simulated_seconds", "bytes_by_role", "config_sha256", "data_sha256"):
        assert first[key] == second[key]
    weights = [(path / "adapter" / "adapter_model.safetensors").read_bytes() for path in (folder / "out", again)]
    assert weights[0] == weights[1]


def test_plan_gives_time_and_bytes_of_the_run(folder: Path) -> None:
    assert run_small(folder) == 0
    assert run_command(["plan", str(folder / "small.yaml"), "--out", str(folder / "plan")]) == 0
    trained, planned = (json.loads((folder / name / "summary.json").read_text()) for name in ("out", "plan"))
    for key in ("simulated_seconds", "bytes_total", "bytes_by_role", "simulated_energy_joules"):
        assert trained[key] == planned[key]
    assert planned["accuracy"] is None and planned["executor"] == "none"


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert run_command(["run", str(folder / "small.yaml"), "--dry-run"]) == 0
    assert sorted(folder.iterdir()) == before
    assert re.search(r"round 1 would take [\d.]+ simulated seconds and [\d,]+ bytes", capsys.readouterr().out)


def test_budgets_end_a_run(folder: Path) -> None:
    assert run_small(folder, "--set", "protocol.rounds=50", "--set", "protocol.stop.num_bytes=1") == 0
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["rounds_completed"] == 1 and summary["stop_reason"] == "num_bytes"
    assert summary["accuracy"] is not None


def test_net_says_when_transfers_finish(folder: Path) -> None:
    arguments = ["net", str(folder / "net.json"), str(folder / "transfers.csv"), "--out", str(folder / "out.csv")]
    assert run_command(arguments) == 0
    with (folder / "out.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row == {"id": "x", "start_seconds": "0.0", "finish_seconds": "1.5", "seconds_alone": "1.5"}
    assert run_command([*arguments, "--model", "tcp"]) == 0
    with (folder / "out.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["finish_seconds"]) == pytest.approx(13.01 * 0.5 + 1000 / (0.97 * 1000))


def test_a_made_topology_carries_a_run(folder: Path) -> None:
    made = folder / "made.yaml"
    assert run_command(["topology", "make", "hierarchical", "--clients", "5", "--edges", "2", "--out", str(made)]) == 0
    assert run_command(["topology", "check", str(made)]) == 0
    options = ["--set", f"topology={{file: {made}}}", "--set", "protocol.rounds=1"]
    assert run_small(folder, *options) == 0
    assert json.loads((folder / "out" / "summary.json").read_text())["clients_total"] == 5


def test_topologies_are_made_listed_and_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = folder / "made.yaml"
    options = ["--clients", "9", "--edges", "2", "--routers", "5", "--access", "lte=0.5,wifi=0.5", "--seed", "3"]
    assert (
        run_command(["topology", "make", "waxman", *options, "--set", "core_bandwidth=2 Gbit/s", "--out", str(made)])
        == 0
    )
    assert run_command(["topology", "check", str(made), "--capacity", "5"]) == 0
    assert run_command(["topology", "make", "nsfnet", "--clients", "4", "--out", str(folder / "own.yaml")]) == 2
    assert "topology.attach.edges: found nothing" in capsys.readouterr().err
    assert run_command(["topology", "make", "nsfnet", "--clients", "4", "--edges", "1", "--out", str(made)]) == 0
    for name in ("picture.svg", "picture.png"):
        assert run_command(["topology", "draw", str(made), "--out", str(folder / name)]) == 0
    assert b"<svg" in (folder / "picture.svg").read_bytes()
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert run_command(["topology", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("abilene", "metro", "rural", "barabasi_albert", "satellite"))


def test_devices_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["device", "list"]) == 0
    assert "jetson_orin" in capsys.readouterr().out
    assert run_command(["device", "show", "edge_gpu_t4"]) == 0
    assert "data sheet" in capsys.readouterr().out


@pytest.mark.parametrize("format_", ["table", "json", "csv", "md"])
def test_compare_shows_runs_side_by_side(folder: Path, format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert run_command(["plan", str(folder / "small.yaml"), "--out", str(folder / name)]) == 0
    capsys.readouterr()
    assert run_command(["compare", str(folder / "a"), str(folder / "b"), "--format", format_]) == 0
    assert capsys.readouterr().out.count("small") >= 2


def test_report_can_be_written_again(folder: Path) -> None:
    assert run_command(["plan", str(folder / "small.yaml"), "--out", str(folder / "a")]) == 0
    assert run_command(["report", str(folder / "a"), "--out", str(folder / "page.html")]) == 0
    assert "<svg" in (folder / "page.html").read_text()


def test_a_report_is_not_written_in_place_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["plan", str(folder / "small.yaml"), "--out", str(folder / "a")]) == 0
    before = sorted(folder.iterdir())
    for out in (".", str(folder / "a")):
        capsys.readouterr()
        assert run_command(["report", str(folder / "a"), "--out", out]) == 2
        assert (
            capsys.readouterr().err
            == f"elsa-ray: --out: found {out} (Is a directory); allowed: a file that can be written\n"
        )
    assert sorted(folder.iterdir()) == before


BAD_RUNS = {
    "unknown option": ("run {small} --nope", "No such option: --nope"),
    "unknown command": ("rum {small}", "No such command 'rum'"),
    "no config": ("run {folder}/missing.yaml", "missing.yaml: found No such file"),
    "config is no mapping": ("run {folder}/data.jsonl", "data.jsonl"),
    "unknown key": ("run {small} --set protocol.ruonds=3", "protocol.ruonds: .* did you mean rounds?"),
    "wrong value": ("run {small} --set protocol.rounds=0", "protocol.rounds: found 0; allowed: greater than 0"),
    "malformed --set": ("run {small} --set rounds", "--set: found rounds; allowed: KEY.KEY=VALUE"),
    "split too deep": ("run {small} --set protocol.split.front=4", "protocol.split: .* front"),
    "unknown model": ("run {small} --set task.model=tinny", "task.model: .* did you mean tiny"),
    "unknown device": ("plan {small} --set world.clients.device=fone", "world.clients.device: .*phone"),
    "unknown codec": ("plan {small} --set protocol.codec=[{kind:int9}]", "kind: found int9; .*int8"),
    "codec behind int8": (
        "plan {small} --set protocol.codec=[{kind:int8},{kind:sketch}]",
        "protocol.codec.activation.1: found sketch behind int8",
    ),
    "codec parameter": (
        "plan {small} --set protocol.codec=[{kind:sketch,buckets:-1}]",
        "protocol.codec.activation.0.buckets: found -1",
    ),
    "lora target": ("plan {small} --set task.lora.targets=[quary]", "task.lora.targets: .* did you mean query"),
    "data file": ("plan {small} --set task.dataset.train=none.jsonl", "none.jsonl"),
    "data column": ("plan {small} --set task.dataset.text=txt", "found no column txt; .* did you mean text"),
    "data row": ("plan {small} --set task.dataset.train=torn.jsonl", "torn.jsonl row 2"),
    "too few examples": ("plan {small} --set topology.clients=400", "task.partition: found 27 training examples"),
    "topology name": ("plan {small} --set topology={name:metr}", "topology.name: found metr; .*did you mean metro"),
    "topology: more clients than places": ("topology check metro --capacity 3", "found 12 clients and room for 9"),
    "topology: unknown kind": ("topology make rign --out {folder}/o.yaml", "KIND: found rign; .* did you mean ring"),
    "topology: unknown key": ("topology make ring --set x=1 --out {folder}/o.yaml", "topology.x: found an unknown key"),
    "topology: shares": (
        "topology make ring --access lte=a --out {folder}/o.yaml",
        "--access: found lte=a; allowed",
    ),
    "topology: picture": (
        "topology draw metro --out {folder}/o.gif",
        "--out: found .*o.gif; allowed: a name",
    ),
    "device: unknown": ("device show fone", "D: found fone; .* did you mean phone"),
    "device: no file": ("plan {small} --set world.clients.device=no.yaml", "no.yaml: found no such file"),
    "device: too small": (
        "plan {small} --set world.clients.device={flops_per_second:1,memory_bytes:9}",
        r"world.clients.device: found client000 \(custom\) with 9 bytes for training",
    ),
    "topology file": ("plan {small} --set topology={file:x.yaml}", "x.yaml: found no such file"),
    "topology without roles": ("plan {small} --set topology={file:net.json}", "net.json: node a: kind: found nothing"),
    "no GPU": ("plan {small} --set numerics.device=cuda", "numerics.device: found cuda"),
    "out is not empty": ("plan {small} --out {folder}", "--out: found .* not empty"),
    "net: missing file": ("net {folder}/net.json {folder}/no.csv --out {folder}/o.csv", "no.csv: found no such file"),
    "net: unknown topology": ("net metr {folder}/transfers.csv --out {folder}/o.csv", "did you mean metro"),
    "net: unknown node": ("net metro {folder}/transfers.csv --out {folder}/o.csv", "transfers.csv row 1"),
    "net: model": ("net metro {folder}/transfers.csv --model tcpp --out {folder}/o.csv", "'--model'"),
    "compare: no run": ("compare {folder}", "found a folder without config.yaml"),
    "address": (
        "run {small} --set runtime.executor=ray --address 127.0.0.1:1",
        "--address: found 127.0.0.1:1",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_wrong_input_is_told_in_one_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, expected = BAD_RUNS[case]
    (folder / "torn.jsonl").write_text('{"text": "net", "label": "a"}\n{"text": "net"\n')
    arguments = line.replace("{small}", str(folder / "small.yaml")).replace("{folder}", str(folder)).split()
    # YAML wants a space behind a colon inside of braces.
    arguments = [
        re.sub(r"(\w):(?=[\w-])", r"\1: ", part) if "={" in part or "[{" in part else part for part in arguments
    ]
    if arguments[0] in ("run", "plan") and "--out" not in arguments:
        arguments += ["--out", str(folder / "bad")]
    assert run_command(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert re.search(expected, lines[0]), lines[0]
    assert not (folder / "bad").exists() or case == "address", "nothing was started"


@pytest.mark.parametrize("option", ["--dry-run", "--set=runtime.executor=none"])
def test_a_cluster_that_would_not_be_used_is_refused(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run_command(["run", "small.yaml", "--address", "10.0.0.1:6379", option]) == 2
    kind = "inline" if option == "--dry-run" else "none"
    expected = f"elsa-ray: --address: found 10.0.0.1:6379 together with runtime.executor: {kind}; allowed: "
    assert capsys.readouterr().err.startswith(expected)
    assert not (folder / "runs").exists()
