"""The driver is killed with SIGKILL at random moments: what goes on ends in the bits of a run that was not killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray

from elsa_ray.config.load import dump_config
from tests.helpers import write_texts
from tests.test_resume import RUNS, assert_same_records, config_of, records_of

NUM_TRIALS = 20 if "ELSA_RAY_TWENTY_KILLS" in os.environ else 6
ROOT = Path(__file__).parents[2]


def run_trials(config: Path, folder: Path, trials: Sequence[list[int]], address: str | None = None) -> list[list[str]]:
    """Return how each part of each trial has ended; trial N leaves its run in ``folder/N``."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.runtime.killed", str(config), str(folder), *([address] if address else [])]
    lines = "".join(f"{json.dumps(moments)}\n" for moments in trials)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=48, num_test=8)


@pytest.fixture(scope="module")
def whole(dataset: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A config, a run of it that nobody killed, and how often it has changed a file."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "config.yaml"
    config.write_text(dump_config(config_of(dataset, RUNS["elsa with all parts"])))
    ((end,),) = run_trials(config, folder / "runs", [[0]])
    assert end.startswith("done after")
    return config, folder / "runs" / "0", int(end.split()[2])


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    """One death a trial, and another while it goes on; the first are spread over the whole run, to its last change."""
    config, undisturbed, num_changes = whole
    draw = random.Random(NUM_TRIALS)
    firsts = [1 + (number * num_changes + draw.randrange(num_changes)) // NUM_TRIALS for number in range(NUM_TRIALS)]
    trials = [[first, draw.randint(1, 20), 0, 0] for first in [*firsts, num_changes]]
    ended = run_trials(config, tmp_path / "runs", trials)
    for number, ends in enumerate(ended):
        assert ends[0] == "SIGKILL" and ends[-1].startswith("done after"), ends
        assert_same_records(undisturbed, tmp_path / "runs" / str(number))
    assert sum(ends[1] == "SIGKILL" for ends in ended) > len(ended) / 3, "some died twice"
    assert all(ends[-1] == "done after 0 changes" for ends in ended), "what has finished is left as it is"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_it_trains_on_a_cluster_and_resumed_there(
    whole: tuple[Path, Path, int], tmp_path: Path, ray_cluster: None
) -> None:
    """Two pools, on a cluster that stays: what the dead driver had there makes room for the next one."""
    config, undisturbed, num_changes = whole
    on_ray = tmp_path / "config.yaml"
    on_ray.write_text(
        config.read_text().replace("executor: inline", "executor: ray").replace("pools: auto", "pools: 2")
    )
    trials = [[num_changes // 4, 0], [num_changes // 2, 0]]
    address = ray.get_runtime_context().gcs_address
    for ends in run_trials(on_ray, tmp_path / "runs", trials, address):
        assert ends[0] == "SIGKILL" and ends[1].startswith("done after"), ends
    expected = records_of(undisturbed)
    for number in range(len(trials)):
        found = records_of(tmp_path / "runs" / str(number))
        for of_host in (found, expected):
            of_host["summary"] = {**of_host["summary"], "executor": "", "assumptions": [], "hardware": {}}
            of_host["state"]["provenance"]["config"]["runtime"] = {}
        assert found == expected
