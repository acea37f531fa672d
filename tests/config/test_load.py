"""What a good config means: units, numbers, paths, overrides, and the round trip through the complete file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.load import config_schema, config_sha256, dump_config, load_config, make_config, read_yaml
from elsa_ray.config.protocol import ElsaConfig, FedAvgConfig
from elsa_ray.config.units import BYTES, BYTES_PER_SECOND, FLOPS_PER_SECOND, SECONDS, WATTS, parse_quantity

FULL: dict[str, Any] = {
    "name": "full",
    "seed": 3,
    "task": {
        "kind": "classification",
        "dataset": {"train": "a.jsonl", "test": "b.jsonl", "label": "topic"},
        "partition": {"kind": "dirichlet", "alpha": 0.3},
        "model": "tiny",
        "lora": {"rank": 4, "targets": ["query"], "train_head": True},
        "max_length": 32,
        "preloaded": False,
    },
    "topology": {"clients": 5, "edges": 2, "access_up": "20 Mbit/s", "access_latency": "15 ms"},
    "protocol": {
        "name": "elsa",
        "local_epochs": 2,
        "optimizer": {"learning_rate": 1e-3, "decay": 0.9},
        "codec": {"activation": [{"kind": "sketch", "rows": 2}, {"kind": "int8"}], "adapter": [{"kind": "cast"}]},
        "stop": {"simulated_seconds": "2 h", "num_bytes": "1 GB"},
    },
    "world": {
        "clients": {"device": {"flops_per_second": "3 GFLOP/s", "active_watts": "500 mW"}},
        "round_policy": {"deadline_seconds": "1 min", "late": "keep"},
    },
    "numerics": {"precision": "fp32", "cohort": 8},
    "runtime": {"executor": "inline", "pools": 2},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "empty": {},
    "full": FULL,
    "fedavg": {"protocol": {"name": "fedavg", "codec": {"adapter": [{"kind": "int8"}]}}},
    "hub": {"task": {"dataset": {"hub": "ag_news"}, "partition": {"kind": "shards"}}, "topology": {"name": "metro"}},
    "file topology": {"topology": {"file": "net.graphml"}, "task": {"partition": {"kind": "by_column", "column": "c"}}},
    "causal": {"task": {"kind": "causal_lm", "model": "tiny_llama"}, "protocol": {"codec": [{"kind": "int8"}]}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_complete_file_reproduces_the_config(name: str, tmp_path: Path) -> None:
    config = make_config(CONFIGS[name], base_folder=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    again = load_config(elsewhere / "config.yaml")
    assert again == config
    assert type(again.protocol) is type(config.protocol)
    assert dump_config(again) == dump_config(config)
    assert config_sha256(again) == config_sha256(config)


def test_the_complete_file_holds_every_section_with_its_defaults() -> None:
    data = read_yaml(dump_config(make_config({})), "dump")
    assert list(data) == list(ExperimentConfig.model_fields)
    assert data["protocol"]["local_steps"] == 4
    assert data["protocol"]["optimizer"]["learning_rate"] == 2e-3
    assert data["task"]["lora"]["alpha"] == 16.0


def test_an_empty_file_is_the_default_config(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == make_config({})


@pytest.mark.parametrize(
    ("text", "units", "expected"),
    [
        ("20 Mbit/s", BYTES_PER_SECOND, 2.5e6),
        ("20Mbit/s", BYTES_PER_SECOND, 2.5e6),
        ("20 Mbps", BYTES_PER_SECOND, 2.5e6),
        ("1 Gbit/s", BYTES_PER_SECOND, 1.25e8),
        ("8 bit/s", BYTES_PER_SECOND, 1.0),
        ("1 KiB/s", BYTES_PER_SECOND, 1024.0),
        ("15 ms", SECONDS, 0.015),
        ("7 us", SECONDS, 7e-6),
        ("3 µs", SECONDS, 3e-6),
        ("1.5 ms", SECONDS, 0.0015),
        ("2e-3 s", SECONDS, 0.002),
        ("1 min", SECONDS, 60.0),
        ("2 h", SECONDS, 7200.0),
        ("2 GB", BYTES, 2e9),
        ("2 GiB", BYTES, 2.0**31),
        (" 4  kB ", BYTES, 4000.0),
        ("30 GFLOP/s", FLOPS_PER_SECOND, 3e10),
        ("500 mW", WATTS, 0.5),
        ("12", SECONDS, 12.0),
        (12, SECONDS, 12.0),
        (0, SECONDS, 0.0),
        (0.25, SECONDS, 0.25),
    ],
)
def test_quantities_are_exact_in_the_base_unit(text: str | float, units: dict[str, float], expected: float) -> None:
    assert parse_quantity(text, units, "example") == expected


@pytest.mark.parametrize("milliseconds", range(1, 200))
def test_milliseconds_are_the_nearest_number_to_the_decimal_fraction(milliseconds: int) -> None:
    assert parse_quantity(f"{milliseconds} ms", SECONDS, "15 ms") == float(f"{milliseconds}e-3")


@pytest.mark.parametrize(
    "bad", ["", "ms", "5 parsec", "-1 s", "1e400", 10**400, "nan", "inf", "1 2 s", True, None, [1], "0x10"]
)
def test_what_is_no_quantity_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="a finite number >= 0, or a text such as '15 ms'"):
        parse_quantity(bad, SECONDS, "15 ms")


def test_units_in_a_config_become_numbers_in_base_units() -> None:
    config = make_config(FULL)
    assert config.topology.access_up == 2.5e6
    assert config.topology.access_latency == 0.015
    assert config.protocol.stop.simulated_seconds == 7200.0
    assert config.protocol.stop.num_bytes == 1e9
    assert config.world.clients.device.flops_per_second == 3e9
    assert config.world.clients.device.active_watts == 0.5
    assert config.world.round_policy.deadline_seconds == 60.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2e-3", 0.002), ("2E3", 2000.0), ("1.5e+3", 1500.0), ("-1e5", -1e5), (".5e1", 5.0), ("0.1", 0.1), ("3", 3)],
)
def test_numbers_in_yaml_are_numbers(text: str, expected: float) -> None:
    value = read_yaml(f"value: {text}", "text")["value"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("text", ["'2e-3'", "1e", "e5", "2e-3x", "fp32", "1-2"])
def test_texts_in_yaml_stay_texts(text: str) -> None:
    assert isinstance(read_yaml(f"value: {text}", "text")["value"], str)


def test_overrides_replace_values_and_keep_the_rest() -> None:
    data = {"protocol": {"rounds": 2, "codec": [{"kind": "int8"}], "batch_size": 4}}
    overrides = ["protocol.rounds=7", "protocol.optimizer.learning_rate=2e-3", "protocol.codec.0.kind=cast", "seed=5"]
    config = make_config(data, overrides)
    assert (config.protocol.rounds, config.protocol.batch_size, config.seed) == (7, 4, 5)
    assert config.protocol.optimizer.learning_rate == 0.002
    assert [spec.kind for spec in config.protocol.codec.activation] == ["cast"]
    assert data["protocol"]["rounds"] == 2
    assert make_config({}, ["topology={clients: 3, edges: 2}"]).topology.clients == 3
    assert make_config({"protocol": None}, ["protocol.rounds=3"]).protocol.rounds == 3


def test_a_list_of_codecs_is_for_both_directions_of_a_step() -> None:
    codec = make_config({"protocol": {"codec": [{"kind": "int8"}]}}).protocol.codec
    assert codec.activation == codec.gradient
    assert [spec.kind for spec in codec.activation] == ["int8"]
    assert codec.adapter == []


def test_the_protocols_section_is_of_its_own_kind() -> None:
    assert type(make_config({}).protocol) is ElsaConfig
    assert type(make_config({"protocol": {"name": "fedavg"}}).protocol) is FedAvgConfig


def test_paths_become_absolute_from_the_files_folder(tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    (folder / "model").mkdir(parents=True)
    text = "task: {dataset: {train: ../data/a.jsonl, test: b.csv}, model: model}\ntopology: {file: ./net.yaml}\n"
    (folder / "config.yaml").write_text(text)
    config = load_config(folder / "config.yaml")
    assert config.task.dataset.train == str(tmp_path / "data" / "a.jsonl")
    assert config.task.dataset.test == str(folder / "b.csv")
    assert config.task.model == str(folder / "model")
    assert config.topology.file == str(folder / "net.yaml")


@pytest.mark.parametrize("name", ["minilm", "tiny", "bert-base-uncased", "org/model"])
def test_a_name_that_is_no_folder_stays_a_name(name: str, tmp_path: Path) -> None:
    assert make_config({"task": {"model": name}}, base_folder=tmp_path).task.model == name
    hub = make_config({"task": {"dataset": {"hub": name}}}, base_folder=tmp_path).task.dataset
    assert hub.hub == name


def test_the_hash_tells_all_that_can_change_a_number_and_nothing_else() -> None:
    base = config_sha256(make_config({}))
    assert config_sha256(make_config({"runtime": {"executor": "inline", "pools": 3}})) == base
    for other in ({"seed": 1}, {"numerics": {"cohort": 8}}, {"protocol": {"rounds": 6}}, {"task": {"max_length": 8}}):
        assert config_sha256(make_config(other)) != base


def test_a_config_is_immutable() -> None:
    config = make_config({})
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


def test_the_schema_names_every_section_and_protocol() -> None:
    schema = config_schema()
    assert schema["properties"].keys() == ExperimentConfig.model_fields.keys()
    assert {"elsa_protocol", "fedavg_protocol"} <= schema["$defs"].keys()
    assert "edge_rounds" in schema["$defs"]["elsa_protocol"]["properties"]
