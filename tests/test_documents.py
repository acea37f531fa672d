"""What the documents and the shipped experiments say works as it stands there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import elsa_ray
from elsa_ray.config.load import load_config, make_config, read_yaml
from elsa_ray.config.sweep import load_grid

ROOT = Path(__file__).parents[1]
INVENTED = {"elsa_ray/codecs/sign.py"}
"""Where CONTRIBUTING tells the reader to put a file."""
EXAMPLES = dict(
    re.findall(r"[Aa]s `(\w+)\.py`:\n\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    for name, code in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"text": f"{label} {i}", "label": label} for label in ("red", "blue") for i in range(20)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"dataset": {"train": str(tmp_path / "data.jsonl")}, "model": "tiny", "max_length": 8},
        "topology": {"kind": "hierarchical", "clients": 4, "edges": 2},
        "runtime": {"executor": "inline"},
    }


def test_the_protocol_example_trains(config: dict, tmp_path: Path) -> None:
    protocol = {"name": "rotation:Rotation", "rounds": 3, "group": 2, "local_steps": 1}
    run = elsa_ray.run({**config, "protocol": protocol}, out=tmp_path / "run")
    assert run.summary["rounds_completed"] == 3
    assert run.summary["clients_participated"] == 4, "two rounds of two are everybody"


def test_the_codec_example_trains(config: dict, tmp_path: Path) -> None:
    protocol = {"name": "elsa", "rounds": 1, "local_steps": 1, "codec": [{"kind": "sign_codec:Sign", "gain": 0.5}]}
    run = elsa_ray.run({**config, "protocol": protocol}, out=tmp_path / "run")
    assert run.summary["compression_ratio_fp32"] > 1


def test_the_config_in_the_readme_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    config = make_config(read_yaml(text, "README.md"))
    assert config.protocol.name == "elsa" and config.topology.clients == 24


@pytest.mark.parametrize("path", sorted(ROOT.glob("experiments/*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_experiments_are_read(path: Path) -> None:
    if path.stem == "attacks_codecs":
        pytest.skip("codecs by name, read with attacks.yaml in the tests of elsa-ray attack")
    assert (load_grid if path.stem.endswith("_grid") else load_config)(path)


PARTS = {
    "random clusters": {"protocol.clustering.medoids"},
    "no trust": {"protocol.trust"},
    "no latency term": {"protocol.clustering.latency_weight"},
    "static split": {"protocol.split"},
    "no SS-OP": {"protocol.codec.activation", "protocol.codec.gradient"},
    "no compression": {"protocol.codec.activation", "protocol.codec.gradient"},
    "sketch in place of the subspace": {"protocol.codec.activation", "protocol.codec.gradient"},
}
"""Rows of the ablation, and where each differs from ELSA whole."""


def changed(whole: Any, other: Any, path: str = "") -> set[str]:
    """Return where two plain values differ."""
    if isinstance(whole, dict) and isinstance(other, dict) and whole.keys() == other.keys():
        return {found for key in whole for found in changed(whole[key], other[key], f"{path}.{key}".lstrip("."))}
    return set() if whole == other else {path}


@pytest.mark.parametrize("data", ["trec", "agnews"])
def test_the_ablation_takes_one_part_away_at_a_time(data: str) -> None:
    grid = load_grid(ROOT / "experiments" / f"ablation_{data}_grid.yaml")
    configs: dict[str, dict[str, Any]] = {}
    for cell in grid.cells:
        if cell.condition.values == grid.conditions[0].values and cell.seed == 0:
            configs[cell.condition.row] = cell.config.model_dump(mode="json")
    whole, fedavg = configs.pop("elsa"), configs.pop("fedavg")
    assert {row: changed(whole, config) for row, config in configs.items()} == PARTS
    assert fedavg["protocol"]["name"] == "fedavg" and changed(whole, fedavg) == {"protocol"}
    kinds = {
        row: [spec["kind"] for spec in config["protocol"]["codec"]["activation"]] for row, config in configs.items()
    }
    assert kinds["no trust"] == ["ssop", "subspace", "int8"] and kinds["no SS-OP"] == ["subspace", "int8"]
    assert kinds["no compression"] == ["ssop"] and kinds["sketch in place of the subspace"] == ["ssop", "sketch"]
    assert data in whole["task"]["dataset"]["train"] and len({cell.seed for cell in grid.cells}) == 5
    worlds = {
        (cell.config.task.partition.alpha, sum(deed.share for deed in cell.config.world.misbehaviour))
        for cell in grid.cells
    }
    assert len(worlds) == 4 and {share for _, share in worlds} == {0, 0.2}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_the_files_that_a_page_names_exist(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    paths = re.findall(r"`((?:elsa_ray|tests|docs|experiments|topologies)/[\w/.-]+\.\w+)`", page.read_text())
    assert all((page.parent / link).exists() for link in links)
    assert not {path for path in paths if not (ROOT / path).exists()} - INVENTED
