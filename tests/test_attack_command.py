"""``elsa-ray attack``: exit codes, one line for wrong input, and the files that it leaves."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from elsa_ray.attack import attack, with_codecs
from elsa_ray.cli import run_command
from elsa_ray.config.load import load_config
from elsa_ray.privacy import inverter
from elsa_ray.privacy.inverter import InverterBudget

from .helpers import write_texts

CODECS = {
    "int8": [{"kind": "int8"}],
    "ssop": [{"kind": "ssop", "rank": 6}],
    "ssop [reused]": [{"kind": "ssop", "rank": 6, "invert": "client", "refresh_rounds": 2}],
    "mixed": {"activation": [{"kind": "int8"}], "gradient": []},
}
BUDGET = InverterBudget(hidden_units=8, steps=3, batch_size=16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inverter, "InverterBudget", partial(InverterBudget, hidden_units=8, steps=3, batch_size=16))
    config: dict[str, Any] = {
        "name": "small",
        "task": {"dataset": write_texts(tmp_path, num_train=24), "model": "tiny", "max_length": 12},
        "topology": {"clients": 2, "edges": 1},
        "protocol": {"name": "elsa", "rounds": 3, "local_steps": 2, "batch_size": 4, "codec": [{"kind": "int8"}]},
        "numerics": {"precision": "fp32", "device": "cpu"},
        "runtime": {"executor": "none"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "codecs.yaml").write_text(yaml.safe_dump(CODECS, sort_keys=False))
    return tmp_path


def run_attack(folder: Path, *options: str, out: str = "out") -> int:
    return run_command(["attack", str(folder / "small.yaml"), "--out", str(folder / out), *options])


def test_it_attacks_what_the_config_sends(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_attack(folder, "--rounds", "1", "--clients", "1") == 0
    assert {path.name for path in (folder / "out").iterdir()} == {"attacks.json", "attacks.md", "config.yaml"}
    found = json.loads((folder / "out" / "attacks.json").read_text())
    assert found["rounds"] == 1 and found["public_text"]["source"] == "test set"
    assert found["public_text"]["num_texts"] == 16 and found["hardware"]["cpus"] >= 1
    assert found["attacked"]["int8"]["clients"] == 1 and 0 < found["attacked"]["int8"]["texts"] <= 8
    assert {row["codec"] for row in found["rows"]} == {"int8"} and {row["keys"] for row in found["rows"]} == {"–"}
    assert all(0 <= row["success_rate"] <= 1 and row["count"] > 0 for row in found["rows"])
    printed = capsys.readouterr().out
    assert "codec 1/1: int8" in printed and "attribute: probe across clients" in printed and "attacks.md" in printed
    page = (folder / "out" / "attacks.md").read_text()
    assert "the 16 texts of the test set" in page and page.count("| int8 |") == len(found["rows"]) + 1


def test_it_attacks_each_codec_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_attack(folder, "--codecs", str(folder / "codecs.yaml")) == 0
    found = json.loads((folder / "out" / "attacks.json").read_text())
    readers = {(row["codec"], row["keys"], row["attacker"]) for row in found["rows"]}
    assert readers == {
        ("int8", "–", "edge, eavesdropper"),
        ("ssop", "invert=edge, fresh", "edge, eavesdropper with keys"),
        ("ssop", "invert=edge, fresh", "eavesdropper without keys"),
        ("ssop [reused]", "invert=client, reused", "edge, eavesdropper"),
        ("mixed", "–", "edge, eavesdropper"),
    }
    assert list(found["attacked"]) == list(CODECS)
    assert found["attacked"]["mixed"]["codec"]["gradient"] == []
    errors = {
        row["codec"]: row["key_error"] for row in found["rows"] if row["attack"].endswith("64 known, earlier round")
    }
    assert errors["ssop"] > 0.3 and errors["ssop [reused]"] < 1e-3, "in fp32"
    assert "ssop [reused] (invert=client, reused), read by edge" in capsys.readouterr().out
    kept = load_config(folder / "out" / "config.yaml")
    assert kept.name == "small" and [spec.kind for spec in kept.protocol.codec.activation] == ["int8"]


def test_the_same_config_gives_the_same_figures(folder: Path) -> None:
    config = folder / "small.yaml"
    first, again = (attack(config, rounds=1, out=folder / name, budget=BUDGET) for name in ("a", "b"))
    assert first.rows == again.rows and len(first.rows) == 7
    other = attack(config, overrides=["seed=1"], rounds=1, out=folder / "c", budget=BUDGET)
    assert other.rows != first.rows


def test_by_default_the_folder_is_a_new_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    made = attack("small.yaml", rounds=1, clients=1, budget=BUDGET).folder
    assert made.parent == folder / "runs" and made.name.startswith("attack-small-")


BAD = {
    "no config": ("{folder}/missing.yaml", "missing.yaml: found No such file"),
    "unknown key": ("{small} --set protocol.ruonds=3", "did you mean rounds?"),
    "unknown option": ("{small} --nope", "No such option: --nope"),
    "no round": ("{small} --rounds 0", "--rounds"),
    "no client": ("{small} --clients 0", "--clients"),
    "nothing is split": ("{small} --set protocol={name:fedavg}", "protocol.name: found fedavg; .*splits the model"),
    "no public text": ("{small} --set task.dataset.test={folder}/short.jsonl", "task.dataset: found 2 test texts"),
    "no codecs": ("{small} --codecs {folder}/none.yaml", "none.yaml: found No such file"),
    "codecs are no mapping": ("{small} --codecs {folder}/list.yaml", "list.yaml: found list; allowed: a mapping"),
    "codecs are no YAML": ("{small} --codecs {folder}/torn.yaml", "torn.yaml line"),
    "unknown codec": ("{small} --codecs {folder}/typo.yaml", "typo.yaml mine: .*found int9; .*int8"),
    "codec's parameter": ("{small} --codecs {folder}/rank.yaml", "rank.yaml mine: protocol.codec.activation.0.rank"),
    "codec of another kind": ("{small} --codecs {folder}/kind.yaml", "kind.yaml mine: protocol.codec"),
    "out is not empty": ("{small} --out {folder}", "--out: found .* not empty"),
}
FILES = {
    "list.yaml": "[int8]",
    "torn.yaml": "mine: [",
    "typo.yaml": "mine: [{kind: int9}]",
    "rank.yaml": "mine: [{kind: ssop, rank: 0}]",
    "kind.yaml": "mine: int8",
    "short.jsonl": '{"text": "river", "label": "label0"}\n{"text": "piano", "label": "label1"}\n',
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_told_in_one_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    line, expected = BAD[case]
    arguments = line.replace("{small}", str(folder / "small.yaml")).replace("{folder}", str(folder)).split()
    arguments = [part.replace("{name:", "{name: ") for part in arguments]
    out = [] if "--out" in arguments else ["--out", str(folder / "bad")]
    assert run_command(["attack", *arguments, *out]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(expected, told), told
    assert not (folder / "bad").exists(), "nothing was started"


def test_the_shipped_files_are_valid() -> None:
    experiments = Path(__file__).parents[1] / "experiments"
    config = load_config(experiments / "attacks.yaml")
    codecs = yaml.safe_load((experiments / "attacks_codecs.yaml").read_text())
    assert list(with_codecs(config, experiments / "attacks_codecs.yaml")) == list(codecs)
    assert config.protocol.rounds >= 2
