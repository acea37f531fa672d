from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import config_sha256, load_config
from elsa_ray.records.folder import RunFolder
from elsa_ray.records.reading import read_run
from elsa_ray.records.totals import Totals
from tests.records.conftest import Recorded
from tests.records.helpers import played, prepared_run


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    config = prepared_run(tmp_path).config
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    for path in (tmp_path / "taken", tmp_path / "taken" / "thesis.txt"):
        with pytest.raises(InputError, match=r"^--out: found .*; allowed: a new or an empty folder") as error:
            RunFolder.create(path, config)
        assert "\n" not in str(error.value)
    assert [entry.name for entry in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepared_run(tmp_path).config
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        with RunFolder.create(None, config) as folder:
            assert folder.path.parent == tmp_path / "runs"
            names.append(folder.path.name)
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"small-\d{8}-\d{6}(-\d+)?", name) for name in names)


def test_the_config_reproduces_the_run(trained: Recorded) -> None:
    again = load_config(trained.path / "config.yaml")
    assert again == trained.prepared.config
    assert config_sha256(again) == read_run(trained.path).figures["config_sha256"]


def test_each_round_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path)
    with RunFolder.create(tmp_path / "run", prepared.config) as folder:
        for number, finished in enumerate(played(prepared), start=1):
            folder.write_round(finished, prepared.setting)
            run = read_run(folder.path)
            assert len(run.rounds) == number
            assert run.summary is None
            assert run.figures["bytes_total"] == finished.report.num_bytes
        with pytest.raises(InputError, match=r"transfers\.parquet: found damaged Parquet"):
            _ = read_run(folder.path).transfers
    assert len(read_run(folder.path).transfers) > 0
    folder.close()


def test_an_interrupted_run_leaves_readable_tables(tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path)
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path / "run", prepared.config) as folder:
        for finished in played(prepared):
            folder.write_round(finished, prepared.setting)
            raise KeyboardInterrupt
    run = read_run(tmp_path / "run")
    assert sum(run.transfers["num_bytes"].to_pylist()) == run.rounds[-1]["num_bytes"] > 0
    assert run.events["event"].to_pylist()[-1] == "round_end"


def test_lines_of_rounds(trained: Recorded) -> None:
    lines = [json.loads(line) for line in (trained.path / "rounds.jsonl").read_text().splitlines()]
    for line, finished in zip(lines, trained.rounds, strict=True):
        assert line["round"] == finished.report.round_index
        assert line["accuracy"] == finished.report.score.accuracy  # type: ignore[union-attr]
        assert line["participated"] == list(range(6))
        assert set(line["wall_seconds"]) == {"plan", "play", "train", "conclude"}
    totals = Totals(lines)
    assert totals.num_rounds == 2
    assert sum(totals.bytes_by_role.values()) == totals.bytes_total


def test_read_run_tells_what_is_wrong_in_one_line(tmp_path: Path, trained: Recorded) -> None:
    def message(path: Path) -> str:
        with pytest.raises(InputError) as error:
            read_run(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "did you mean" in message(trained.path.parent / "rum")
    assert "without config.yaml" in message(tmp_path)
    assert str(trained.path) in message(trained.path.parent)
    damaged = tmp_path / "damaged"
    with RunFolder.create(damaged, trained.prepared.config):
        pass
    assert read_run(damaged).rounds == []
    (damaged / "rounds.jsonl").write_text('nonsense\n{"round": 1}\n')
    assert "rounds.jsonl line 1" in message(damaged)
    (damaged / "rounds.jsonl").write_text('{"round": 0}\n{"rou')
    assert len(read_run(damaged).rounds) == 1
    for round_ in ('{"round": 0}', '{"round": 0, "stop_reason": null, "simulated_seconds": {}}'):
        (damaged / "rounds.jsonl").write_text(f"{round_}\n")
        with pytest.raises(InputError, match=r"rounds\.jsonl line 1: found \{.*; allowed: a round as elsa-ray run wr"):
            _ = read_run(damaged).figures
    (damaged / "rounds.jsonl").write_text("[]\n")
    assert "rounds.jsonl line 1: found []; allowed: one JSON object a line" in message(damaged)
    (damaged / "rounds.jsonl").write_text("")
    (damaged / "summary.json").write_text('{"name": ')
    assert "summary.json: found damaged JSON" in message(damaged)
    (damaged / "rounds.jsonl").unlink()
    assert "rounds.jsonl: found no such file" in message(damaged)
