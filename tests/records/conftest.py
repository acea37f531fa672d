from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from elsa_ray.prepare import Prepared
from elsa_ray.records.round import Round
from tests.records.helpers import DROPPING, EDGE_ROUNDS, LATE, prepared_run, recorded


class Recorded(NamedTuple):
    prepared: Prepared
    path: Path
    rounds: list[Round]


def _record(folder: Path, *overrides: str) -> Recorded:
    prepared = prepared_run(folder, *overrides)
    return Recorded(prepared, *recorded(prepared, folder / "run"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two rounds of ELSA, trained in this process."""
    codec = "protocol.codec=[{kind: int8}]"
    return _record(tmp_path_factory.mktemp("trained"), "runtime.executor=inline", EDGE_ROUNDS, codec)


@pytest.fixture(scope="session", params=["plain", "late", "dropping", "fedavg", "weights"])
def timed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Runs without training: everybody in time, late work kept, late work dropped, without edges, with weights sent."""
    overrides = {
        "plain": [EDGE_ROUNDS],
        "late": [EDGE_ROUNDS, LATE, "protocol.rounds=4"],
        "dropping": [EDGE_ROUNDS, DROPPING],
        "fedavg": ["protocol={name: fedavg, rounds: 2}"],
        "weights": ["task.preloaded=false", "world.edges.slots=1"],
    }
    return _record(tmp_path_factory.mktemp(request.param), *overrides[request.param])


@pytest.fixture(scope="session")
def late(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three rounds in which some work is late and kept, also in the last one."""
    return _record(tmp_path_factory.mktemp("keep"), LATE, "protocol.rounds=3")


@pytest.fixture(scope="session")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two rounds in which some work is dropped."""
    return _record(tmp_path_factory.mktemp("drop"), EDGE_ROUNDS, DROPPING)
