from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import HubDataset
from elsa_ray.tasks.dataset import Dataset, load_dataset


def load(folder: Path, extra: Any = (), **options: Any) -> Dataset:
    config = HubDataset(**options)
    return load_dataset(config, kind="classification", seed=0, base_folder=folder, extra_columns=extra)


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError) as caught:
        load(tmp_path, hub="ag_news")
    assert str(caught.value) == (
        "task.dataset.hub: found ag_news, but the package datasets is not installed; "
        "allowed: a hub dataset after pip install elsa_ray[hub]"
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hub is not installed")
    label = datasets.ClassLabel(names=["world", "sport"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "n": datasets.Value("int32")})
    train = {"text": ["p", "q", "r"], "label": [0, 1, 0], "n": [1, 2, 2]}
    test = {"text": ["s"], "label": [1], "n": [1]}
    splits = {
        "train": datasets.Dataset.from_dict(train, features=features),
        "test": datasets.Dataset.from_dict(test, features=features),
        "hidden": datasets.Dataset.from_dict(test | {"label": [-1]}, features=features),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "news"))
    splits["train"].save_to_disk(str(tmp_path / "single"))
    return tmp_path


def test_a_saved_folder_gives_named_labels(saved: Path) -> None:
    data = load(saved, hub="news", extra=["n"])
    assert data.train.texts == ["p", "q", "r"]
    assert data.train.label_names == ("sport", "world")
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.train.columns["n"] == ["1", "2", "2"]
    assert data.train.where(1) == "news train row 2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hub": "news", "test_split": "tests"}, "task.dataset.test_split: found tests; allowed: a split of news"),
        ({"hub": "news", "text": "txt"}, "news train: found no column txt; allowed: one of its columns: text, label"),
        ({"hub": "news", "test_split": "hidden"}, "news hidden row 1: column label: found null"),
        ({"hub": "single"}, "task.dataset.hub: found single, a single split"),
    ],
)
def test_what_the_dataset_lacks_is_told(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(saved, **options)
    assert message in str(caught.value)


def test_an_empty_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="the extra hub is not installed")
    full = datasets.Dataset.from_dict({"text": ["x"], "label": [1]})
    splits = datasets.DatasetDict(train=full, test=full.select([]))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: splits)
    with pytest.raises(InputError, match="org/news test: found no rows"):
        load(tmp_path, hub="org/news")


def test_a_failed_download_is_one_silent_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets", reason="the extra hub is not installed")

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the hub is far away\nand more")

    monkeypatch.setattr(importlib.import_module("datasets"), "load_dataset", fail)
    with pytest.raises(InputError, match=r"dataset.hub: found org/news \(the hub is far away\); allowed") as caught:
        load(tmp_path, hub="org/news")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
