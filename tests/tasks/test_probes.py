"""Probes are public: drawn by seed, balanced over labels, and no client's."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.config.task import DatasetProbes
from elsa_ray.tasks.probes import public_examples
from elsa_ray.tasks.task import load_task


def task_of(tmp_path: Path, probes: dict | None, num_clients: int = 4, **task):
    rows = [
        f'{{"text": "{label} text number {i}", "label": "{label}"}}' for label in ("red", "blue") for i in range(20)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    values = {"dataset": {"train": str(tmp_path / "data.jsonl")}, "model": "tiny", "max_length": 12, "probes": probes}
    config = make_config({"task": {**values, **task}})
    return load_task(config.task, num_clients=num_clients, seed=0, base_folder=tmp_path)


def test_no_client_gets_a_public_example_and_none_is_lost(tmp_path):
    task = task_of(tmp_path, {"kind": "dataset", "count": 6})
    private = np.concatenate(task.partition)
    assert len(task.probes) == 6
    assert len(private) == len(set(private.tolist())) == len(task.train) - 6
    public = sorted(set(range(len(task.train))) - set(private.tolist()))
    assert [task.train.ids(i).tolist() for i in public] == [task.probes.ids(i).tolist() for i in range(6)]
    assert task.probes.labels is None


@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=40),
    count=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_labels_take_turns(labels, count, seed):
    labels_N = np.array(labels)
    public = public_examples(DatasetProbes(count=count), labels_N, len(labels), 2, seed)
    assert public.tolist() == sorted(set(public.tolist())) and len(public) == count
    drawn, available = Counter(labels_N[public].tolist()), Counter(labels)
    # A label has fewer probes than another one only where it has no more examples, or by one.
    for label, number in available.items():
        assert drawn[label] == number or drawn[label] >= max(drawn.values()) - 1


def test_without_probes_the_partition_is_as_it_was(tmp_path):
    plain = task_of(tmp_path, None)
    generated = task_of(tmp_path, {"kind": "generated", "count": 5, "length": 7})
    assert plain.probes is None
    assert all(np.array_equal(a, b) for a, b in zip(plain.partition, generated.partition, strict=True))
    assert generated.probes.lengths.tolist() == [7] * 5
    special = set(plain.backbone.tokenizer.all_special_ids)
    for i in range(5):
        ids = generated.probes.ids(i).tolist()
        assert {ids[0], ids[-1]} <= special and not special & set(ids[1:-1])


def test_a_file_of_probes(tmp_path):
    (tmp_path / "public.csv").write_text("text\nhello there\nsome more words\nand a third\n")
    task = task_of(tmp_path, {"kind": "file", "file": str(tmp_path / "public.csv"), "count": 2})
    assert len(task.probes) == 2


@pytest.mark.parametrize(
    ("probes", "where", "allowed"),
    [
        ({"kind": "dataset", "count": 40}, "task.probes.count", "at most 32"),
        ({"kind": "generated", "length": 2}, "task.probes.length", "3 to 12"),
        ({"kind": "generated", "length": 13}, "task.probes.length", "3 to 12"),
        ({"kind": "file", "file": "nowhere.csv"}, "task.probes.file", "an existing file"),
    ],
)
def test_bad_probes_are_named(tmp_path, probes, where, allowed):
    with pytest.raises(InputError, match=where) as error:
        task_of(tmp_path, probes)
    assert allowed in str(error.value)


def test_a_file_with_too_few_texts(tmp_path):
    (tmp_path / "few.csv").write_text("text\nhello there\nmore\n")
    with pytest.raises(InputError, match=r"task\.probes\.count.*at most 2"):
        task_of(tmp_path, {"kind": "file", "file": str(tmp_path / "few.csv"), "count": 3})
