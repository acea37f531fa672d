"""A device that cannot hold its part of the model is refused before the run, in one line that says what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.model.split import Split, whole
from elsa_ray.prepare import Prepared, prepare

from ..helpers import run_config, write_texts
from .memory import needed


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"), num_train=36)


def prepared_with(dataset: dict[str, str], memory_bytes: float | None, **protocol: Any) -> Prepared:
    device = {"flops_per_second": 1e9} | ({} if memory_bytes is None else {"memory_bytes": memory_bytes})
    return prepare(run_config(dataset, protocol=protocol, world={"clients": {"device": device}}))


CASES: list[tuple[dict[str, Any], Split]] = [
    ({"name": "elsa", "split": {"front": 1, "back": 1}}, Split(1, 2, 1)),
    ({"name": "elsa", "split": {"front": 2, "back": 0}}, Split(2, 2, 0)),
    ({"name": "fedavg"}, whole(4)),
]


@pytest.mark.parametrize(("protocol", "split"), CASES, ids=str)
def test_the_last_byte_decides(dataset: dict[str, str], protocol: dict[str, Any], split: Split) -> None:
    roomy = prepared_with(dataset, None, **protocol)
    by_client = [needed(roomy, client, split) for client in range(roomy.setting.num_clients)]
    prepared_with(dataset, max(by_client), **protocol)
    with pytest.raises(InputError) as error:
        prepared_with(dataset, max(by_client) - 1, **protocol)
    first = by_client.index(max(by_client))
    line = str(error.value)
    assert line.startswith(
        f"world.clients.device: found client{first:03d} (custom) with {max(by_client) - 1:,} bytes for training, "
        f"1 too few"
    )
    assert f"allowed: at least {max(by_client):,} bytes, which its part of the model needs; or " in line
    assert ("protocol.split: auto" in line) == split.is_cut and "batch_size" in line and "\n" not in line


def test_all_that_are_too_small_are_counted(dataset: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"found client000 \(custom\) with 1,000 bytes .* too few \(as 5 more\);"):
        prepared_with(dataset, 1000, name="fedavg")


def test_profiles_have_memory_too(dataset: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "watch.yaml").write_text("name: watch\nflops_per_second: 1e9\nmemory_bytes: 10 kB\n")
    mix = {"mix": {str(tmp_path / "watch.yaml"): 0.5, "phone": 0.5}}
    for split in ({"front": 1, "back": 1}, "auto"):
        config = run_config(dataset, protocol={"split": split}, world={"clients": {"device": mix}})
        with pytest.raises(InputError, match=r"world\.clients\.device: found client00\d \(watch\) with 10,000 bytes"):
            prepare(config)
