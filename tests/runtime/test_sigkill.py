"""The driver is killed with SIGKILL at random moments: what goes on ends in the bits of a run that was not killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray

from elsa_ray.config.load import dump_config
from tests.helpers import write_texts
from tests.test_resume import RUNS, assert_same_records, config_of, records_of

NUM_TRIALS = 19
"""And one at the very end: twenty, which take a minute."""
ROOT = Path(__file__).parents[2]


Trial = Callable[..., list[str]]


@pytest.fixture(scope="module")
def trial() -> Iterator[Trial]:
    """A function that runs a config into a folder, killed at some moments; returns how each part has ended."""
    command = [sys.executable, "-m", "tests.runtime.killed"]
    # The cluster that a test starts later asks for Ray's token, as every local one does.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {"RAY_AUTH_MODE": "token", **os.environ}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None

        def run(config: Path, out: Path, moments: Sequence[int], address: str | None = None) -> list[str]:
            asked = {"config": str(config), "out": str(out), "address": address, "moments": list(moments)}
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            ends: list[str] = json.loads(process.stdout.readline())
            return ends

        yield run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=48, num_test=8)


@pytest.fixture(scope="module")
def whole(dataset: dict[str, str], trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """A config, a run of it that nobody killed, and how often it has changed a file."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "config.yaml"
    config.write_text(dump_config(config_of(dataset, RUNS["elsa with all parts"])))
    (end,) = trial(config, folder / "run", [0])
    assert end.startswith("done after"), end
    return config, folder / "run", int(end.split()[2])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_and_resumed(whole: tuple[Path, Path, int], trial: Trial, tmp_path: Path) -> None:
    """One death a trial, and another while it goes on; the first are spread over the whole run, to its last change."""
    config, undisturbed, num_changes = whole
    draw, ended = random.Random(NUM_TRIALS), []
    firsts = [1 + (number * num_changes + draw.randrange(num_changes)) // NUM_TRIALS for number in range(NUM_TRIALS)]
    for number, first in enumerate([*firsts, num_changes]):
        ends = trial(config, tmp_path / str(number), [first, draw.randint(1, 20), 0, 0, 0])
        assert ends[0] == "SIGKILL", ends
        assert ends[-1] == "done after 0 changes", "what has finished is left as it is"
        assert_same_records(undisturbed, tmp_path / str(number))
        ended.append(ends)
    assert sum(ends[1] == "SIGKILL" for ends in ended) > len(ended) / 3, "some died twice"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_it_trains_on_a_cluster_and_resumed_there(
    whole: tuple[Path, Path, int], trial: Trial, tmp_path: Path, ray_cluster: None
) -> None:
    """On a cluster that stays: what the dead driver had there makes room for the next one."""
    config, undisturbed, num_changes = whole
    on_ray = tmp_path / "config.yaml"
    text = config.read_text().replace("executor: inline", "executor: ray")
    on_ray.write_text(text.replace("pools: auto", "pools: 1").replace("edge_actors: auto", "edge_actors: 1"))
    address, expected = ray.get_runtime_context().gcs_address, records_of(undisturbed)
    killed, last = ends = trial(on_ray, tmp_path / "run", [num_changes // 2, 0], address)
    assert killed == "SIGKILL" and last.startswith("done after"), ends
    found = records_of(tmp_path / "run")
    for of_host in (found, expected):
        of_host["summary"] = {**of_host["summary"], "executor": "", "assumptions": [], "hardware": {}}
        of_host["state"]["provenance"]["config"]["runtime"] = {}
        of_host["state"]["states"]["workers"] = {}
    assert found == expected
