"""A codec from outside of the package, named in config, goes through every executor."""

from pathlib import Path

import pytest

from elsa_ray.codecs.wire import HEADER_BYTES
from elsa_ray.config.errors import InputError
from elsa_ray.runtime.failure import WorkerError
from tests.runtime.runs import execute, same_adapters, small_config
from tests.runtime.test_executors_agree import assert_same_run, assert_same_timeline

HALVING = "tests.runtime.halving_codec:Halving"
FEW_ACTORS = ("runtime.pools=1", "numerics.edges_per_group=2")


def test_it_runs_through_inline_ray_and_none(topic_data: Path, ray_cluster: None) -> None:
    config = small_config(topic_data, *FEW_ACTORS, codec=[{"kind": HALVING, "offset": 1}])
    inline = execute(config, "inline")
    assert_same_run(execute(config, "ray"), inline)
    assert_same_timeline(execute(config, "none"), inline)


def test_it_halves_the_bodies(topic_data: Path) -> None:
    plain = execute(small_config(topic_data), "inline").rounds[0]
    halved = execute(small_config(topic_data, codec=[{"kind": HALVING}]), "inline").rounds[0]
    for role in ("activation_down", "gradient_up", "gradient_down"):
        headers = HEADER_BYTES * 6 * 2  # six clients, two steps
        assert halved.results.encoded_bytes[role] - headers == (plain.results.encoded_bytes[role] - headers) / 2


def test_it_changes_the_numbers(topic_data: Path) -> None:
    assert not same_adapters(
        execute(small_config(topic_data), "inline"),
        execute(small_config(topic_data, codec=[{"kind": HALVING}]), "inline"),
    )


def test_its_own_model_validates_its_parameters(topic_data: Path) -> None:
    with pytest.raises(InputError, match=r"protocol\.codec\.activation\.0\.ofset: .* did you mean offset\?"):
        execute(small_config(topic_data, codec=[{"kind": HALVING, "ofset": 1}]), "none")


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_failure_names_client_round_and_stage(executor: str, topic_data: Path, ray_cluster: None) -> None:
    config = small_config(topic_data, *FEW_ACTORS, codec=[{"kind": "tests.runtime.halving_codec:Refusing"}])
    with pytest.raises(WorkerError, match=r"training: round 0, client .*4.*ValueError: a planted fault") as caught:
        execute(config, executor)
    assert "halving_codec.py" in caught.value.cause_traceback


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_payload_of_another_size_than_planned_is_an_error(executor: str, topic_data: Path, ray_cluster: None) -> None:
    config = small_config(topic_data, *FEW_ACTORS, codec=[{"kind": "tests.runtime.halving_codec:Lying"}])
    with pytest.raises(WorkerError, match=r"activation_up has .* bytes, planned: "):
        execute(config, executor)
