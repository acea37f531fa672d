from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import FileDataset, PydocsDataset
from elsa_ray.tasks import dataset as dataset_module
from elsa_ray.tasks.dataset import Dataset, TaskKind, load_dataset, sorted_label_names
from elsa_ray.tasks.table import Table

from .helpers import SHARED_DATA

Write = Callable[..., str]


def load(folder: Path, kind: TaskKind = "classification", seed: int = 0, extra: Any = (), **options: Any) -> Dataset:
    return load_dataset(FileDataset(**options), kind=kind, seed=seed, base_folder=folder, extra_columns=extra)


def rows(count: int, labels: str = "ab") -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": labels[i % len(labels)], "writer": i // 3} for i in range(count)]


def test_train_and_test_files_give_texts_labels_and_names(tmp_path: Path, write_rows: Write) -> None:
    train = write_rows("train.jsonl", {"q": "x", "y": "dog"}, {"q": "y", "y": "cat"}, {"q": "z", "y": "dog"})
    test = write_rows("test.jsonl", {"q": "w", "y": "cat"})
    data = load(tmp_path, train=train, test=test, text="q", label="y")
    assert data.train.texts == ["x", "y", "z"]
    assert data.train.label_names == data.test.label_names == ("cat", "dog")
    assert data.train.labels is not None
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0]
    assert data.train.where(2) == "train.jsonl row 3"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["01", "1"], ("01", "1")),
        (["True", "False"], ("False", "True")),
    ],
)
def test_labels_sort_as_numbers_only_if_all_are(labels: list[str], names: tuple[str, ...]) -> None:
    assert sorted_label_names(labels) == names


def test_integers_and_bools_are_labels(tmp_path: Path, write_rows: Write) -> None:
    integers = write_rows("i.jsonl", *({"text": "t", "label": label} for label in (10, 9, 10)))
    bools = write_rows("b.jsonl", *({"text": "t", "label": label} for label in (True, False, True)))
    assert load(tmp_path, train=integers).train.label_names == ("9", "10")
    assert load(tmp_path, train=bools).train.label_names == ("False", "True")


def test_hold_out_is_a_split_by_seed(tmp_path: Path, write_rows: Write) -> None:
    train = write_rows("train.jsonl", *rows(40))
    first, again, other = (load(tmp_path, train=train, test_fraction=0.25, seed=seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.test)) == (30, 10)
    assert sorted(first.train.texts + first.test.texts) == sorted(row["text"] for row in rows(40))
    assert first.test.texts == again.test.texts
    assert first.sha256 == again.sha256
    assert first.test.texts != other.test.texts
    for part in (first.train, first.test):
        assert part.labels is not None
        for index, text in enumerate(part.texts):
            number = int(text.split()[1])
            assert part.label_names[part.labels[index]] == "ab"[number % 2]
            assert part.where(index) == f"train.jsonl row {number + 1}"


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_hold_out_leaves_an_example_on_either_side(tmp_path: Path, write_rows: Write, fraction: float) -> None:
    data = load(tmp_path, train=write_rows("train.jsonl", *rows(3)), test_fraction=fraction)
    assert min(len(data.train), len(data.test)) == 1


@pytest.mark.parametrize(("most", "sizes"), [(10, (8, 2)), (2, (1, 1)), (50, (40, 10)), (500, (40, 10))])
def test_max_examples_counts_both_parts(tmp_path: Path, write_rows: Write, most: int, sizes: tuple[int, int]) -> None:
    train, test = write_rows("train.jsonl", *rows(40)), write_rows("test.jsonl", *rows(10))
    data = load(tmp_path, train=train, test=test, max_examples=most)
    assert (len(data.train), len(data.test)) == sizes
    assert data.train.texts == sorted(data.train.texts, key=lambda text: int(text.split()[1]))
    assert data.sha256 == load(tmp_path, train=train, test=test, max_examples=most).sha256


def test_causal_lm_needs_no_label_column(tmp_path: Path, write_rows: Write) -> None:
    data = load(tmp_path, "causal_lm", train=write_rows("train.jsonl", {"text": "a"}, {"text": "b"}))
    assert data.train.labels is None
    assert data.train.label_names == ()


def test_extra_columns_follow_their_examples(tmp_path: Path, write_rows: Write) -> None:
    train, test = write_rows("train.jsonl", *rows(12)), write_rows("test.jsonl", {"text": "t", "label": "a"})
    data = load(tmp_path, train=train, test=test, extra=["writer"], max_examples=8)
    assert data.train.columns["writer"] == [str(int(text.split()[1]) // 3) for text in data.train.texts]


def test_hash_sees_texts_labels_and_the_border_between_parts(tmp_path: Path, write_rows: Write) -> None:
    def sha(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> str:
        names = [
            write_rows(f"{side}.jsonl", *({"text": t, "label": y} for t, y in part))
            for side, part in (("train", train), ("test", test))
        ]
        return load(tmp_path, train=names[0], test=names[1]).sha256

    base = [("p", "a"), ("q", "b")]
    hashes = {
        sha([*base, ("r", "a")], base),
        sha([*base, ("r", "b")], base),
        sha([*base, ("s", "a")], base),
        sha(base, [("r", "a"), *base]),
        sha(base, base),
    }
    assert len(hashes) == 5


GOOD = {"text": "fine", "label": "a"}
BAD: list[tuple[list[dict[str, Any]], str]] = [
    ([{"text": None, "label": "a"}], "train.jsonl row 2: column text: found null; allowed: a non-empty text"),
    ([{"text": "", "label": "a"}], "train.jsonl row 2: column text: found an empty text; allowed: a non-empty text"),
    ([{"text": " \n", "label": "a"}], "column text: found a blank text"),
    ([{"text": 3, "label": "a"}], "column text: found 3; allowed: a non-empty text"),
    ([{"text": ["x"], "label": "a"}], "column text: found ['x']; allowed: a non-empty text"),
    ([{"text": "\ud800", "label": "a"}], r"column text: found '\ud800'; allowed: a non-empty text"),
    ([{"text": "x", "label": None}], "row 2: column label: found null; allowed: a non-empty text, an integer"),
    ([{"text": "x", "label": 1.5}], "row 2: column label: found 1.5"),
    ([{"text": "x", "label": ""}], "row 2: column label: found an empty text"),
    ([{"text": "x"}], "train.jsonl row 2: found no column label; allowed: one of its columns: text"),
    ([{"text": "x", "label": "a"}], "task.dataset: found one label only (a)"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_rows_are_told_in_one_line(
    tmp_path: Path, write_rows: Write, bad: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, train=write_rows("train.jsonl", GOOD, *bad))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_test_label_is_named_with_its_row(tmp_path: Path, write_rows: Write) -> None:
    train = write_rows("train.jsonl", {"text": "x", "label": "sport"}, {"text": "y", "label": "world"})
    test = write_rows("test.jsonl", {"text": "x", "label": "world"}, {"text": "x", "label": "sports"})
    expected = (
        "test.jsonl row 2: found label sports; allowed: a label of the training data: sport, world; did you mean sport?"
    )
    with pytest.raises(InputError) as caught:
        load(tmp_path, train=train, test=test)
    assert str(caught.value) == expected


@pytest.mark.parametrize("value", [None, [1], float("nan")])
def test_a_column_to_group_by_holds_plain_values(tmp_path: Path, write_rows: Write, value: Any) -> None:
    bad = {"text": "x", "label": "b", "writer": value}
    with pytest.raises(InputError, match=r"row 2: column writer: found .*; allowed: a text, a number"):
        load(tmp_path, train=write_rows("train.jsonl", GOOD | {"writer": 1}, bad), extra=["writer"])


def test_too_small_data_is_refused(tmp_path: Path, write_rows: Write) -> None:
    with pytest.raises(InputError, match="at least 2"):
        load(tmp_path, "causal_lm", train=write_rows("one.jsonl", {"text": "x"}))
    with pytest.raises(InputError, match=r"task.dataset.max_examples: found 1; allowed: at least 2"):
        load(tmp_path, train=write_rows("four.jsonl", *rows(4)), max_examples=1)


def test_pydocs_can_be_limited_and_grouped(
    tmp_path: Path, pydocs_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "read_pydocs", lambda: pydocs_table)
    config = PydocsDataset(name="pydocs", max_examples=300)
    data = load_dataset(config, kind="classification", seed=3, base_folder=tmp_path, extra_columns=["package"])
    assert (len(data.train), len(data.test)) == (270, 30)
    assert len(data.train.label_names) == 10
    assert len(data.train.columns["package"]) == 270
    with pytest.raises(InputError, match=r"task.partition.column: found no column packages; .* mean package\?"):
        load_dataset(config, kind="classification", seed=3, base_folder=tmp_path, extra_columns=["packages"])


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the corpora for tests are not there")
def test_real_corpus(tmp_path: Path) -> None:
    data = load(SHARED_DATA, train="trec/train.jsonl", test="trec/test.jsonl")
    assert (len(data.train), len(data.test), len(data.train.label_names)) == (5452, 500, 6)
