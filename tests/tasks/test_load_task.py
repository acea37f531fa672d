from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.task import TaskConfig
from elsa_ray.tasks.task import Task, load_task
from elsa_ray.tasks.weights import load_model

from .helpers import SHARED_DATA, digest, run_python

Write = Callable[..., str]


def rows(count: int) -> list[dict[str, Any]]:
    return [{"text": f"the text number {i} of {i % 5}", "label": "ab"[i % 2], "writer": i % 6} for i in range(count)]


def load(folder: Path, num_clients: int = 4, seed: int = 0, **config: Any) -> Task:
    return load_task(TaskConfig.model_validate(config), num_clients=num_clients, seed=seed, base_folder=folder)


@pytest.mark.parametrize("model", ["tiny", "tiny_llama", "tiny_gpt2"])
def test_a_task_ties_data_partition_and_model(tmp_path: Path, write_rows: Write, model: str) -> None:
    dataset = {"train": write_rows("train.jsonl", *rows(40))}
    task = load(tmp_path, dataset=dataset, model=model, partition={"kind": "dirichlet"}, max_length=12)
    assert (task.kind, task.num_labels, task.label_names) == ("classification", 2, ("a", "b"))
    assert (len(task.train), len(task.test)) == (36, 4)
    assert task.train.lengths.max() <= 12
    assert len(task.partition) == 4
    np.testing.assert_array_equal(np.sort(np.concatenate(task.partition)), np.arange(36))
    assert task.backbone.config.id2label == {0: "a", 1: "b"}
    assert task.train.token_ids.max() < task.backbone.config.vocab_size


def test_a_causal_task_has_no_labels(tmp_path: Path, write_rows: Write) -> None:
    dataset = {"train": write_rows("train.jsonl", *({"text": row["text"]} for row in rows(20)))}
    task = load(tmp_path, kind="causal_lm", dataset=dataset, model="tiny_llama")
    assert (task.num_labels, task.train.labels) == (0, None)
    assert task.train.lengths.min() >= 2


def test_a_column_partition_reads_its_column(tmp_path: Path, write_rows: Write) -> None:
    dataset = {"train": write_rows("train.jsonl", *rows(30)), "test": write_rows("test.jsonl", *rows(2))}
    partition = {"kind": "by_column", "column": "writer"}
    task = load(tmp_path, dataset=dataset, model="tiny", partition=partition, num_clients=3)
    assert sorted(len(indices) for indices in task.partition) == [10, 10, 10]
    for indices in task.partition:
        assert len({int(index) % 6 for index in indices}) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_length": 513}, "task.max_length: found 513; allowed: at most 512, the positions of tiny"),
        ({"partition": {"kind": "by_column", "column": "witer"}}, "found no column witer"),
        ({"num_clients": 100}, "task.partition: found 36 training examples for 100 clients"),
        ({"kind": "causal_lm"}, "task.model: found tiny (bert)"),
        ({"kind": "causal_lm", "partition": {"kind": "shards"}}, "task.partition.kind: found shards"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, write_rows: Write, config: dict[str, Any], message: str) -> None:
    dataset = {"train": write_rows("train.jsonl", *rows(40))}
    with pytest.raises(InputError) as caught:
        load(tmp_path, **({"dataset": dataset, "model": "tiny"} | config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_is_the_same_in_another_process(tmp_path: Path, write_rows: Write) -> None:
    dataset = {"train": write_rows("train.jsonl", *rows(60)), "max_examples": 50}
    task = load(tmp_path, seed=7, dataset=dataset, model="tiny", partition={"kind": "dirichlet"})
    code = f"""
from pathlib import Path
from tests.tasks.helpers import digest
from tests.tasks.test_load_task import load, summary, values
task = load(Path({str(tmp_path)!r}), seed=7, dataset={dataset!r}, model="tiny", partition={{"kind": "dirichlet"}})
print(digest(summary(task)), digest(values(task)))
"""
    assert run_python(code, PYTHONHASHSEED="4") == f"{digest(summary(task))} {digest(values(task))}"
    other = load(tmp_path, seed=8, dataset=dataset, model="tiny", partition={"kind": "dirichlet"})
    assert summary(other) != summary(task)


def summary(task: Task) -> object:
    texts = [(part.token_ids.tolist(), part.offsets.tolist()) for part in (task.train, task.test)]
    return texts, [indices.tolist() for indices in task.partition], task.data_sha256


def values(task: Task) -> object:
    """The weights of the task's model, drawn with seed 9."""
    state = load_model(task.backbone, task.kind, 9).state_dict()
    return {name: value.tolist() for name, value in state.items()}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the corpora for tests are not there")
def test_real_corpus(tmp_path: Path) -> None:
    dataset = {"train": str(SHARED_DATA / "agnews/train.jsonl"), "test": str(SHARED_DATA / "agnews/test.jsonl")}
    task = load(tmp_path, num_clients=50, dataset=dataset, model="tiny", partition={"kind": "shards"})
    assert (len(task.train), len(task.test), task.num_labels) == (6600, 1000, 4)
    assert {len(indices) for indices in task.partition} == {132}


def test_no_module_sets_a_global_seed() -> None:
    folder = Path(__file__).parents[2] / "elsa_ray" / "tasks"
    words = ["torch.manual_seed", "np.random.seed", "random.seed(", "set_seed"]
    command = ["grep", "-rnF", *(part for word in words for part in ("-e", word)), str(folder), "--include=*.py"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""
