"""Grid files: which runs they mean, when two runs are the same, and what is wrong with a bad one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.config.sweep import Cell, Condition, TargetConfig, load_grid, read_seeds

BASE = {
    "name": "base",
    "seed": 7,
    "task": {"dataset": {"train": "data/train.jsonl"}, "model": "tiny"},
    "protocol": {"name": "elsa", "rounds": 3, "split": {"front": 2, "back": 0}},
}
GRID: dict[str, Any] = {
    "name": "grid",
    "base": "bases/base.yaml",
    "seeds": [0, 3],
    "rows": {
        "elsa": {},
        "short": {"protocol.rounds": 1, "world.round_policy": {"deadline_seconds": "2 s", "late": "drop"}},
        "fedavg": {"protocol": {"name": "fedavg", "rounds": 4}},
    },
    "baseline": "elsa",
}


def write_grid(folder: Path, **changes: Any) -> Path:
    (folder / "bases").mkdir(exist_ok=True)
    (folder / "bases" / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
    return path


def test_each_row_is_run_with_each_combination_and_each_seed(tmp_path: Path) -> None:
    vary = {"task.partition": [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.5}], "protocol.batch_size": [2, 4]}
    grid = load_grid(write_grid(tmp_path, vary=vary))
    assert [condition.row for condition in grid.conditions] == ["elsa"] * 4 + ["short"] * 4 + ["fedavg"] * 4
    assert [cell.seed for cell in grid.cells] == [0] * 12 + [3] * 12, "tables fill evenly"
    elsa = [cell.config for cell in grid.cells if cell.condition.row == "elsa" and cell.seed == 3]
    found = [(config.task.partition.kind, config.protocol.batch_size, config.seed) for config in elsa]
    assert found == [("iid", 2, 3), ("iid", 4, 3), ("dirichlet", 2, 3), ("dirichlet", 4, 3)]
    assert len({cell.slug for cell in grid.cells}) == 24
    for condition in grid.conditions:
        baseline = grid.baseline_of(condition)
        assert (baseline is None) == (condition.row == "elsa")
        assert baseline is None or (baseline.row, baseline.values) == ("elsa", condition.values)


def test_overrides_set_values_as_the_command_line_does(tmp_path: Path) -> None:
    grid = load_grid(write_grid(tmp_path))
    elsa, short, fedavg = (cell.config for cell in grid.cells[:3])
    rewritten = {**BASE, "seed": 0}
    assert elsa == make_config(rewritten, base_folder=tmp_path / "bases"), "paths are relative to the base"
    assert short.protocol.model_dump() == {**elsa.protocol.model_dump(), "rounds": 1}, "a dotted key sets one value"
    assert short.world.round_policy.deadline_seconds == 2.0
    values = {**rewritten, "protocol": {"name": "fedavg", "rounds": 4}}
    assert fedavg == make_config(values, base_folder=tmp_path / "bases"), "a mapping replaces"


def cell(row: str, seed: int = 0, **config: Any) -> Cell:
    return Cell(Condition(row, {}), seed, make_config({**config, "seed": seed}))


def test_a_run_is_known_by_what_can_change_its_result() -> None:
    plain = cell("a")
    assert plain.key == cell("another name").key
    assert plain.key == cell("a", runtime={"pools": 3, "executor": "inline"}).key, "who computes is no part of it"
    different = [
        cell("a", seed=1),
        cell("a", runtime={"executor": "none"}),
        cell("a", numerics={"precision": "fp32"}),
        cell("a", protocol={"name": "elsa", "optimizer": {"learning_rate": 2.1e-3}}),
    ]
    assert len({plain.key, *(other.key for other in different)}) == 5


@given(
    st.lists(st.tuples(st.text(max_size=80), st.integers(0, 2), st.integers(1, 3)), min_size=2, max_size=6, unique=True)
)
@settings(max_examples=15, deadline=None)
def test_folders_are_shared_by_equal_runs_only(choices: list[tuple[str, int, int]]) -> None:
    cells = [cell(row, seed, protocol={"name": "elsa", "rounds": rounds}) for row, seed, rounds in choices]
    for first in cells:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,120}", first.slug), "a file name everywhere"
        for second in cells:
            assert (first.key == second.key) == (first.config == second.config)
            assert first.slug != second.slug or first.config == second.config


def test_a_target_is_reached_from_its_side() -> None:
    assert TargetConfig(value=0.9).is_reached(0.9) and not TargetConfig(value=0.9).is_reached(0.89)
    loss = TargetConfig(metric="loss", value=0.5)
    assert loss.is_reached(0.4) and not loss.is_reached(0.6)


BAD_GRIDS = {
    "unknown key": ({"seed": [0]}, r"^seed: found an unknown key; .*did you mean seeds\?$"),
    "no rows": ({"rows": {}}, "^rows: found {}"),
    "a row that is no mapping": ({"rows": {"elsa": None}}, "^rows.elsa: found None; allowed: a mapping"),
    "a seed twice": ({"seeds": [0, 1, 0]}, "^seeds: found 0 twice"),
    "a negative seed": ({"seeds": [-1]}, "^seeds.0: found -1"),
    "a seed in a row": ({"rows": {"elsa": {"seed": 3}}}, "^rows.elsa.seed: found a seed"),
    "a varied seed": ({"vary": {"seed": [1, 2]}}, "^vary.seed: found a seed"),
    "no value": ({"vary": {"protocol.rounds": []}}, r"^vary.protocol.rounds: found \[\]"),
    "a value twice": ({"vary": {"protocol.rounds": [1, 1]}}, "^vary.protocol.rounds: found 1 twice"),
    "no dotted key": ({"rows": {"a": {"protocol..rounds": 1}}}, "^rows.a: found the key 'protocol..rounds'"),
    "set by row and vary": (
        {"vary": {"protocol": [{"name": "fedavg"}]}},
        "^rows.short.protocol.rounds: found a value that vary.protocol replaces",
    ),
    "unknown baseline": ({"baseline": "else"}, r"^baseline: found else; .*did you mean elsa\?$"),
    "no number": ({"target": {"metric": "acuracy", "value": 1.0}}, r"^target.metric: .*did you mean accuracy\?$"),
    "no base": ({"base": "bases/bass.yaml"}, "bases/bass.yaml: found No such file"),
    "unknown field in a row": (
        {"rows": {"elsa": {}, "no trust": {"protocol.trsut": None}}},
        "^rows.no trust: protocol.trsut: found an unknown key",
    ),
    "wrong value in a row": (
        {"rows": {"elsa": {"protocol.rounds": 0}}},
        "^rows.elsa: protocol.rounds: found 0; allowed: greater than 0$",
    ),
    "wrong varied value": (
        {"vary": {"protocol.batch_size": [4, "many"]}},
        "^rows.elsa, protocol.batch_size=many: protocol.batch_size: found the text 'many'",
    ),
    "a key below a number": (
        {"rows": {"elsa": {"protocol.rounds.first": 1}}},
        "^rows.elsa: protocol.rounds.first: found first; allowed: no further keys",
    ),
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_a_bad_grid_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    changes, expected = BAD_GRIDS[case]
    with pytest.raises(InputError) as caught:
        load_grid(write_grid(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert re.search(expected, str(caught.value)), str(caught.value)


def test_a_grid_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: found No such file"):
        load_grid(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"list\.yaml: found list; allowed: a mapping"):
        load_grid(tmp_path / "list.yaml")


def test_a_mistake_in_the_base_is_no_rows_mistake(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    (tmp_path / "bases" / "base.yaml").write_text(yaml.safe_dump({"protocol": {"rounds": 0}}))
    with pytest.raises(InputError, match=r"^protocol\.rounds: found 0"):
        load_grid(path)


def test_seeds_on_the_command_line() -> None:
    assert read_seeds("0, 12,3") == [0, 12, 3]
    for text in ("", "0,", "1-3", "-1", "one"):
        with pytest.raises(InputError, match=r"^--seeds: "):
            read_seeds(text)
