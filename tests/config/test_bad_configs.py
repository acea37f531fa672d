"""Every mistake is one line: the field, what was found there, what is allowed, and the nearest valid name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, DistilBertConfig

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import load_config, make_config, read_yaml
from elsa_ray.prepare import prepare
from elsa_ray.tasks.tokenizers import train_wordpiece

from ..helpers import WORDS, small_config, write_texts

Rows = list[tuple[dict[str, Any], list[str]]]

INT8, SKETCH = {"kind": "int8"}, {"kind": "sketch"}

REFUSED_BY_THE_CONFIG: Rows = [
    # unknown keys at each level, with the nearest known one
    ({"protocl": {}}, ["protocl: found an unknown key; allowed: evaluation, name,", "did you mean protocol?"]),
    ({"task": {"modle": "tiny"}}, ["task.modle: found an unknown key", "did you mean model?"]),
    (
        {"task": {"dataset": {"name": "pydocs", "max_exmples": 3}}},
        ["task.dataset.max_exmples: found an unknown key; allowed: max_examples,", "did you mean max_examples?"],
    ),
    ({"task": {"dataset": {"train": "a", "tset": "b"}}}, ["task.dataset.tset: found an unknown key", "test, "]),
    ({"task": {"dataset": {"hub": "a", "splt": "b"}}}, ["task.dataset.splt: found an unknown key", "train_split"]),
    ({"task": {"partition": {"kind": "dirichlet", "alhpa": 1.0}}}, ["task.partition.alhpa", "did you mean alpha?"]),
    ({"task": {"lora": {"rnk": 1}}}, ["task.lora.rnk", "did you mean rank?"]),
    ({"topology": {"client": 3}}, ["topology.client: found an unknown key", "did you mean clients?"]),
    ({"topology": {"kind": "hierarchical", "client": 3}}, ["topology.client: found", "did you mean clients?"]),
    ({"topology": {"file": "a.yaml", "clients": 3}}, ["topology.clients: found an unknown key; allowed: attach, file"]),
    ({"topology": {"name": "metro", "edges": 3}}, ["topology.edges: found an unknown key; allowed: attach, name"]),
    ({"protocol": {"round": 3}}, ["protocol.round: found an unknown key", "did you mean rounds?"]),
    ({"protocol": {"optimizer": {"lr": 3}}}, ["protocol.optimizer.lr: found an unknown key", "learning_rate"]),
    ({"protocol": {"codec": {"actvation": []}}}, ["protocol.codec.actvation", "did you mean activation?"]),
    ({"protocol": {"stop": {"bytes": 3}}}, ["protocol.stop.bytes: found an unknown key", "did you mean num_bytes?"]),
    (
        {"protocol": {"name": "fedavg", "split": {"front": 1}}},
        ["protocol.split: found an unknown key; allowed: batch_size, client_failure, codec,"],
    ),
    ({"protocol": {"name": "fedavg", "edge_rounds": 2}}, ["protocol.edge_rounds: found an unknown key", "rounds, "]),
    (
        {"world": {"clients": {"device": {"flops": 1}}}},
        ["world.clients.device.flops: found an unknown key; allowed: active_watts, block_seconds, flops_per_second,"],
    ),
    ({"runtime": {"pool_resources": {"num_cpu": 1}}}, ["runtime.pool_resources.num_cpu", "did you mean num_cpus?"]),
    # wrong types
    ({"task": {"lora": {"rank": "8"}}}, ["task.lora.rank: found the text '8'; allowed: a valid integer"]),
    ({"task": {"lora": {"targets": "query"}}}, ["task.lora.targets: found query; allowed: 'auto' or a valid list"]),
    ({"task": {"lora": {"targets": [1]}}}, ["task.lora.targets.0: found 1; allowed: a valid string"]),
    ({"task": None}, ["task: found None; allowed: a mapping"]),
    ({"task": {"dataset": "pydocs"}}, ["task.dataset: found pydocs; allowed: {name: pydocs}, {train: FILE,"]),
    ({"task": {"dataset": {"file": "x"}}}, ["task.dataset: found {'file': 'x'}; allowed: {name: pydocs}"]),
    ({"topology": "metro"}, ["topology: found metro; allowed: {kind: hierarchical,", "{name: NAME}"]),
    ({"topology": {"clients": 10**24}}, ["topology.clients: found 1000000", "less than or equal to 10000000"]),
    ({"topology": {"kind": "hierarchical", "clients": "many"}}, ["topology.clients: found the text 'many'"]),
    ({"protocol": [1]}, ["protocol: found [1]; allowed: a mapping"]),
    ({"protocol": {"name": 3}}, ["protocol.name: found 3; allowed: elsa, fedavg"]),
    ({"protocol": {"rounds": 2.5}}, ["protocol.rounds: found 2.5; allowed: a valid integer"]),
    ({"protocol": {"rounds": True}}, ["protocol.rounds: found True; allowed: a valid integer"]),
    ({"protocol": {"codec": "int8"}}, ["protocol.codec: found int8; allowed: a mapping"]),
    ({"protocol": {"codec": [{"knd": "int8"}]}}, ["protocol.codec.0.kind: found nothing; allowed: a value"]),
    (
        {"protocol": {"optimizer": {"learning_rate": "fast"}}},
        ["learning_rate: found the text 'fast'; allowed: a valid n"],
    ),
    ({"runtime": {"pools": "many"}}, ["runtime.pools: found the text 'many'; allowed: a valid integer or 'auto'"]),
    ({"world": {"clients": {"device": 3}}}, ["world.clients.device: found 3; allowed: a valid string or a mapping"]),
    ({"seed": "x"}, ["seed: found the text 'x'; allowed: a valid integer"]),
    # out of range
    ({"task": {"lora": {"alpha": float("inf")}}}, ["task.lora.alpha: found inf; allowed: a finite number"]),
    ({"task": {"lora": {"rank": 2**40}}}, ["task.lora.rank: found 1099511627776; allowed: less than or equal to"]),
    ({"task": {"partition": {"kind": "dirichlet", "alpha": float("inf")}}}, ["alpha: found inf; allowed: a finite"]),
    (
        {"protocol": {"optimizer": {"learning_rate": float("inf")}}},
        ["protocol.optimizer.learning_rate: found inf; allowed: a finite number"],
    ),
    ({"protocol": {"batch_size": 10**30}}, ["protocol.batch_size: found 1000000", "less than or equal to 2147483647"]),
    ({"world": {"edges": {"capacity": 10**30}}}, ["world.edges.capacity: found 1000000", "less than or equal to"]),
    ({"protocol": {"stop": {"num_bytes": 10**400}}}, ["protocol.stop.num_bytes: found 1000000", "a finite number"]),
    ({"seed": -1}, ["seed: found -1; allowed: greater than or equal to 0"]),
    ({"schema_version": 2}, ["schema_version: found 2; allowed: 1"]),
    ({"schema_version": "1"}, ["schema_version: found the text '1'; allowed: 1"]),
    ({"name": "a/b"}, ["name: found a/b; allowed: '^[A-Za-z0-9]"]),
    ({"task": {"lora": {"rank": 0}}}, ["task.lora.rank: found 0; allowed: greater than 0"]),
    ({"protocol": {"rounds": 0}}, ["protocol.rounds: found 0; allowed: greater than 0"]),
    ({"protocol": {"participation": 0.0}}, ["protocol.participation: found 0.0; allowed: greater than 0"]),
    ({"protocol": {"participation": 1.5}}, ["protocol.participation: found 1.5; allowed: less than or equal to 1"]),
    ({"protocol": {"split": {"front": 0}}}, ["protocol.split.front: found 0; allowed: greater than or equal to 1"]),
    ({"protocol": {"optimizer": {"keep_state": True}}}, ["protocol.optimizer.keep_state: found True; allowed: False"]),
    ({"runtime": {"timeout_seconds": "0 s"}}, ["runtime.timeout_seconds: found 0 s; allowed: greater than 0"]),
    ({"world": {"edges": {"slots": 0}}}, ["world.edges.slots: found 0; allowed: greater than 0"]),
    ({"world": {"edges": {"capacity": 0}}}, ["world.edges.capacity: found 0; allowed: greater than 0"]),
    ({"numerics": {"cohort": 0}}, ["numerics.cohort: found 0; allowed: greater than 0"]),
    ({"evaluation": {"every": 0}}, ["evaluation.every: found 0; allowed: greater than 0"]),
    # not among the known names
    ({"task": {"kind": "regression"}}, ["task.kind: found regression; allowed: 'classification' or 'causal_lm'"]),
    ({"task": {"dataset": {"name": "pydcs"}}}, ["task.dataset.name: found pydcs", "did you mean pydocs?"]),
    (
        {"task": {"partition": {"kind": "dirichle"}}},
        ["task.partition.kind: found dirichle; allowed: by_column, dirichlet, iid, shards; did you mean dirichlet?"],
    ),
    ({"task": {"partition": {"alpha": 0.5}}}, ["task.partition.kind: found nothing; allowed: a value"]),
    ({"task": {"partition": {"kind": "by_column"}}}, ["task.partition.column: found nothing; allowed: a value"]),
    ({"topology": {"kind": "rign"}}, ["topology.kind: found rign; allowed: barabasi_albert, grid,", "mean ring?"]),
    ({"protocol": {"name": "elza"}}, ["protocol.name: found elza; allowed: elsa, fedavg,", "did you mean elsa?"]),
    ({"protocol": {"optimizer": {"kind": "adam"}}}, ["protocol.optimizer.kind: found adam", "did you mean adamw?"]),
    (
        {"protocol": {"wire_dtype": "fp8"}},
        ["protocol.wire_dtype: found fp8; allowed: 'fp64', 'fp32', 'bf16' or 'fp16'"],
    ),
    ({"numerics": {"precision": "fp23"}}, ["numerics.precision: found fp23", "did you mean fp32?"]),
    ({"runtime": {"executor": "rai"}}, ["runtime.executor: found rai; allowed: 'ray', 'inline' or 'none'"]),
    ({"world": {"round_policy": {"late": "dorp"}}}, ["world.round_policy.late: found dorp", "did you mean drop?"]),
    # combinations
    (
        {"protocol": {"local_steps": 2, "local_epochs": 1}},
        ["protocol: found", "allowed: exactly one of local_steps and local_epochs"],
    ),
    (
        {"protocol": {"name": "fedavg", "codec": {"activation": [INT8]}}},
        ["protocol.codec: found", "in fedavg only adapters travel"],
    ),
    ({"protocol": {"name": "fedavg", "codec": [INT8]}}, ["protocol.codec: found"]),
    ({"protocol": {"codec": {"calibration_texts": 0}}}, ["protocol.codec.calibration_texts: found 0"]),
    ({"protocol": {"name": "fedavg", "codec": {"calibration_texts": 8}}}, ["in fedavg only adapters travel"]),
    # units
    ({"topology": {"access_up": "20 Mbit"}}, ["topology.access_up: found 20 Mbit", "such as '20 Mbit/s'", "Mbit/s,"]),
    ({"topology": {"access_latency": "15 mss"}}, ["topology.access_latency: found 15 mss", "units: s, ms,"]),
    ({"topology": {"access_latency": -1}}, ["topology.access_latency: found -1; allowed: a finite number >= 0"]),
    ({"topology": {"access_latency": float("nan")}}, ["topology.access_latency: found nan; allowed: a finite"]),
    ({"topology": {"core_bandwidth": True}}, ["topology.core_bandwidth: found True; allowed: a finite number"]),
    ({"protocol": {"stop": {"simulated_seconds": "5 parsec"}}}, ["protocol.stop.simulated_seconds: found 5 parsec"]),
    ({"protocol": {"stop": {"num_bytes": "2 GBit"}}}, ["protocol.stop.num_bytes: found 2 GBit", "such as '2 GB'"]),
    (
        {"world": {"clients": {"device": {"flops_per_second": "3 W"}}}},
        ["device.flops_per_second: found 3 W", "GFLOP/s"],
    ),
    # availability, faults and round policies
    (
        {"world": {"availability": {"kind": "bernouli", "probability": 0.5}}},
        ["world.availability.kind: found bernouli; allowed: always, bernoulli, diurnal,", "did you mean bernoulli?"],
    ),
    ({"world": {"availability": {"kind": "trace"}}}, ["world.availability.file: found nothing; allowed: a value"]),
    ({"world": {"availability": "always"}}, ["world.availability: found always; allowed: a mapping of keys to values"]),
    (
        {"world": {"availability": {"kind": "bernoulli", "probability": 0}}},
        ["world.availability.probability: found 0; allowed: greater than 0"],
    ),
    (
        {"world": {"availability": {"kind": "markov", "mean_on_seconds": 1, "mean_off_seconds": "0 s"}}},
        ["world.availability.mean_off_seconds: found 0.0; allowed: greater than 0"],
    ),
    ({"world": {"fault": {}}}, ["world.fault: found an unknown key; allowed: ", "did you mean faults?"]),
    ({"world": {"faults": {"dropout": {"befor": 0.5}}}}, ["world.faults.dropout.befor", "did you mean before?"]),
    ({"world": {"faults": {"dropout": {"after": 1.5}}}}, ["world.faults.dropout.after: found 1.5; allowed: less"]),
    (
        {"world": {"faults": {"dropout": {"before": 0.5, "during": 0.4, "after": 0.2}}}},
        ["world.faults.dropout: found", "before, during and after that sum to at most 1"],
    ),
    (
        {"world": {"faults": {"stragglers": {"kind": "paretto", "shape": 1}}}},
        ["world.faults.stragglers.kind: found paretto; allowed: fixed, lognormal, pareto; did you mean pareto?"],
    ),
    (
        {"world": {"faults": {"stragglers": {"kind": "fixed", "share": 0.1}}}},
        ["world.faults.stragglers.factor: found nothing; allowed: a value: this field is required"],
    ),
    ({"world": {"faults": {"corruption": {"probability": 1}}}}, ["corruption.probability: found 1; allowed: less"]),
    (
        {"world": {"faults": {"links": [{"link": ["a", "b"], "share": 0.1, "duration_seconds": 1}]}}},
        ["world.faults.links.0: found", "allowed: exactly one of link and share"],
    ),
    (
        {"world": {"faults": {"links": [{"link": ["a"], "duration_seconds": 1}]}}},
        ["world.faults.links.0: found", "allowed: a link as [NODE, NODE], the names of its two ends"],
    ),
    (
        {"world": {"faults": {"links": [{"share": 0.1, "among": "client", "duration_seconds": 1}]}}},
        ["world.faults.links.0.among: found client; allowed: 'all', 'clients' or 'backbone'; did you mean clients?"],
    ),
    ({"world": {"faults": {"links": {"share": 0.1}}}}, ["world.faults.links: found", "allowed: a valid list"]),
    (
        {"world": {"faults": {"edges": [{"edge": "edge0", "duration_seconds": "1 mn"}]}}},
        ["world.faults.edges.0.duration_seconds: found 1 mn; allowed: a finite number >= 0", "units: s, ms"],
    ),
    (
        {"world": {"faults": {"edges": [{"duration_seconds": 1}]}}},
        ["world.faults.edges.0.edge: found nothing; allowed: a value: this field is required"],
    ),
    (
        {"world": {"faults": {"cloud": [{"start_seconds": 3}]}}},
        ["world.faults.cloud.0.duration_seconds: found nothing; allowed: a value: this field is required"],
    ),
    (
        {"world": {"clients": {"capacities": {"file": "a"}}}},
        ["world.clients.capacities.flops_per_sample: found nothing; allowed: a value: this field is required"],
    ),
    (
        {"world": {"round_policy": {"quorum": 1.5}}},
        ["world.round_policy.quorum: found 1.5; allowed: less than or equal to 1"],
    ),
    (
        {"world": {"round_policy": {"quorum": 0.5, "over_sample": 1.3}}},
        ["world.round_policy: found", "allowed: at most one of quorum and over_sample"],
    ),
    (
        {"world": {"round_policy": {"staleness": {"kind": "polynomial"}}}},
        ["world.round_policy: found", "allowed: staleness with late: keep only"],
    ),
    (
        {"world": {"round_policy": {"late": "keep", "staleness": {"kind": "polynomal"}}}},
        ["world.round_policy.staleness.kind: found polynomal; allowed: constant, polynomial; did you mean polynomial?"],
    ),
    # classes from outside
    ({"protocol": {"name": "no_such_module:P"}}, ["protocol.name: found no_such_module:P", "ModuleNotFoundError"]),
    ({"protocol": {"name": "this:P"}}, ["protocol.name: found this:P, whose module has no class; allowed: module:Cla"]),
    ({"protocol": {"name": "json:JSONDecodr"}}, ["protocol.name: found json:JSONDecodr", "mean json:JSONDecoder?"]),
    (
        {"protocol": {"name": "json:JSONDecoder"}},
        ["protocol.name: found json:JSONDecoder; allowed: a class with a Config"],
    ),
]

REFUSED_BY_THE_PARTS: Rows = [
    (
        {"protocol": {"codec": [{"kind": "int9"}]}},
        ["protocol.codec.activation.0.kind: found int9; allowed: bits, cast,", "int4, int8,", "did you mean int8?"],
    ),
    (
        {"protocol": {"codec": {"activation": [INT8], "calibration_texts": 8}}},
        ["protocol.codec.calibration_texts: found 8; allowed: a codec in activation that needs them"],
    ),
    ({"protocol": {"codec": {"adapter": [{"kind": "cats"}]}}}, ["protocol.codec.adapter.0.kind", "did you mean cast?"]),
    (
        {"protocol": {"name": "fedavg", "codec": {"adapter": [{"kind": "int9"}]}}},
        ["protocol.codec.adapter.0.kind: found int9"],
    ),
    (
        {"protocol": {"codec": [INT8, SKETCH]}},
        ["protocol.codec.activation.1: found sketch behind int8; allowed: nothing behind int8"],
    ),
    (
        {"protocol": {"codec": {"gradient": [{"kind": "cast"}, INT8]}}},
        ["protocol.codec.gradient.1: found int8 behind cast"],
    ),
    (
        {"protocol": {"codec": [{**SKETCH, "rows": 0}]}},
        ["protocol.codec.activation.0.rows: found 0; allowed: greater than or equal to 1"],
    ),
    ({"protocol": {"codec": [{**SKETCH, "row": 1}]}}, ["activation.0.row: found an unknown key", "did you mean rows?"]),
    ({"protocol": {"codec": [{**INT8, "bits": 4}]}}, ["activation.0.bits: found an unknown key; allowed: group, kind"]),
    ({"protocol": {"codec": [{"kind": "cast", "dtype": "fp15"}]}}, ["0.dtype: found fp15", "did you mean fp16?"]),
    (
        {"protocol": {"codec": [{"kind": "no_such_module:C"}]}},
        ["activation.0.kind: found no_such_module:C; allowed: an"],
    ),
    (
        {"protocol": {"codec": [{"kind": "json:JSONDecoder"}]}},
        ["0.kind: found json:JSONDecoder; allowed: a class with"],
    ),
    (
        {"protocol": {"split": {"front": 3, "back": 1}}},
        ["protocol.split: found front 3 + back 1 of 4 blocks", "front + back <= 3"],
    ),
    ({"world": {"clients": {"device": "phon"}}}, ["world.clients.device: found phon", "did you mean phone?"]),
    ({"world": {"edges": {"device": "edge_sever"}}}, ["world.edges.device: found edge_sever", "mean edge_server?"]),
    ({"topology": {"name": "metr0"}}, ["topology.name: found metr0; allowed: "]),
    ({"task": {"lora": {"targets": ["qery"]}}}, ["task.lora.targets: found qery", "did you mean query?"]),
    ({"task": {"lora": {"targets": []}}}, ["task.lora.targets: found an empty list; allowed: auto, or some of"]),
    (
        {"task": {"model": "tiny_gpt2", "lora": {"train_pooler": True}}},
        ["task.lora.train_pooler: found true; allowed: false: this model has no pooler"],
    ),
    ({"task": {"model": "tiny", "kind": "causal_lm"}}, ["task.model: found tiny (bert); allowed: for causal_lm"]),
    (
        {"world": {"faults": {"edges": [{"edge": "edg0", "duration_seconds": 1}]}}},
        ["world.faults.edges.0.edge: found edg0; allowed: edge0; did you mean edge0?"],
    ),
    (
        {"world": {"round_policy": {"over_sample": 1.5}}},
        ["world.round_policy.over_sample: found 1.5; allowed: null, or protocol.participation below 1"],
    ),
    ({"world": {"availability": {"kind": "trace", "file": "no_such.csv"}}}, ["no_such.csv: found No such file"]),
    ({"world": {"availability": {"kind": "fedscale", "file": "no_such"}}}, ["no_such: found No such file"]),
    (
        {"world": {"clients": {"capacities": {"file": "no_such", "flops_per_sample": 1e9}}}},
        ["no_such: found No such file"],
    ),
    ({"task": {"max_length": 1000}}, ["task.max_length: found 1000; allowed: at most 512"]),
    ({"task": {"dataset": {"train": "no_such.jsonl"}}}, ["no_such.jsonl"]),
    ({"task": {"dataset": {"train": "no_such.jsonl", "test": ""}}}, ["no_such.jsonl"]),
    ({"task": {"model": f"./{'long' * 99}"}}, ["task.model: found ", "allowed: an existing folder, a hub id, or"]),
]


def case_name(value: Any) -> str | None:
    return str(value) if isinstance(value, dict) else ""


def assert_one_line(error: InputError, fragments: list[str]) -> None:
    line = str(error)
    for fragment in fragments:
        assert fragment in line
    assert "\n" not in line
    assert ": found " in line
    assert "; allowed: " in line


@pytest.mark.parametrize(("data", "fragments"), REFUSED_BY_THE_CONFIG, ids=case_name)
def test_a_mistake_in_the_config_is_told_in_one_line(data: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make_config(data)
    assert_one_line(error.value, fragments)
    assert str(error.value).startswith(tuple(data))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize(("data", "fragments"), REFUSED_BY_THE_PARTS, ids=case_name)
def test_a_mistake_that_only_data_or_model_show_is_told_in_one_line(
    data: dict[str, Any], fragments: list[str], dataset: Mapping[str, str]
) -> None:
    task = {"dataset": dict(dataset), "model": "tiny", **data.get("task", {})}
    config = make_config({"topology": {"clients": 3, "edges": 1}, **data, "task": task})
    with pytest.raises(InputError) as error:
        prepare(config)
    assert_one_line(error.value, fragments)


def test_an_architecture_that_cannot_be_split_is_refused_with_those_that_can(
    dataset: Mapping[str, str], tmp_path: Path
) -> None:
    tokenizer = train_wordpiece([" ".join(WORDS)], causal=False)
    DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_heads=2, hidden_dim=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = {"dataset": dict(dataset), "model": str(tmp_path), "max_length": 16}
    with pytest.raises(InputError) as error:
        prepare(make_config({"task": task, "topology": {"clients": 2, "edges": 1}}))
    splittable = "those that can be split: bert, roberta, llama, mistral, qwen2, gpt2"
    assert_one_line(error.value, ["task.model: found the architecture distilbert", splittable])


def test_a_tied_head_cannot_be_trained(dataset: Mapping[str, str], tmp_path: Path) -> None:
    tokenizer = train_wordpiece([" ".join(WORDS)], causal=True)
    config = small_config("gpt2", tie_word_embeddings=True, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    task = {"dataset": dict(dataset), "model": str(tmp_path / "tied"), "kind": "causal_lm", "max_length": 16}
    prepare(make_config({"task": {**task, "lora": {"train_head": False}}, "topology": {"clients": 2, "edges": 1}}))
    with pytest.raises(InputError) as error:
        prepare(make_config({"task": {**task, "lora": {"train_head": True}}, "topology": {"clients": 2, "edges": 1}}))
    assert_one_line(error.value, ["task.lora.train_head: found true; allowed: false", "shares the embeddings' weights"])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("protocol.rounds", ["--set: found protocol.rounds; allowed: KEY.KEY=VALUE"]),
        ("=3", ["--set: found =3; allowed: KEY.KEY=VALUE"]),
        ("protocol.rounds=[", ["--set protocol.rounds line 1", "valid YAML"]),
        ("protocol.rounds.x=3", ["--set protocol.rounds.x: found x; allowed: no further keys: the value here is 2"]),
        ("protocol.codec.5.kind=cast", ["--set protocol.codec.5.kind: found 5; allowed: an index from 0 to 0"]),
        ("protocol.codec.²=cast", ["--set protocol.codec.²: found ²; allowed: an index from 0 to 0"]),
        ("name=2020-13-45", ["--set name line 1: found the value 2020-13-45; allowed: valid YAML"]),
        pytest.param(
            f"protocol.codec={'[' * 3000}", ["--set protocol.codec: found lists or mappings too deep"], id="too deep"
        ),
        ("protocol.codec.x=cast", ["--set protocol.codec.x: found x; allowed: an index from 0 to 0"]),
        ("protocol.ronds=3", ["protocol.ronds: found an unknown key", "did you mean rounds?"]),
    ],
)
def test_a_malformed_override_is_told_in_one_line(override: str, fragments: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make_config({"protocol": {"rounds": 2, "codec": [INT8]}}, [override])
    assert_one_line(error.value, fragments)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("seed: 1\nseed: 2\n", ["line 2: found the key seed stands twice; allowed: valid YAML"]),
        ("task: {model: a, model: b}\n", ["line 1: found the key model stands twice"]),
        ("task: [\n", ["valid YAML"]),
        ("seed: 1\nname: 2020-13-45\n", ["line 2: found the value 2020-13-45", "valid YAML"]),
        ("seed: !!int many\n", ["line 1: found the value many", "valid YAML"]),
        ("seed: !!bool many\n", ["line 1: found the value many", "valid YAML"]),
        pytest.param(f"seed: {'9' * 5000}\n", ["line 1: found the value 9999", "valid YAML"], id="too long a number"),
        ("task:\n\tmodel: a\n", ["line 2", "valid YAML"]),
        ("? [a]\n: b\n", ["line 1: found the key ['a']", "valid YAML"]),
        ("task: !!python/object:os.system {}\n", ["line 1", "valid YAML"]),
        ("- 1\n", ["found list; allowed: a mapping of sections"]),
        ("just text\n", ["found str; allowed: a mapping of sections"]),
    ],
)
def test_a_file_that_is_no_config_is_told_in_one_line(text: str, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert_one_line(error.value, [str(path), *fragments])


def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(InputError) as error:
            load_config(path)
        assert_one_line(error.value, [str(path), "a readable YAML file"])
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe4\n")
    with pytest.raises(InputError) as error:
        load_config(tmp_path / "latin.yaml")
    assert_one_line(error.value, ["found no UTF-8 text"])


@pytest.mark.parametrize("path", ["a\0b.jsonl", "a\ud800.jsonl", "~no_such_user/a.jsonl"], ids=ascii)
@pytest.mark.parametrize("section", [{"task": {"dataset": {"train": ""}}}, {"topology": {"file": ""}}], ids=str)
def test_what_cannot_be_a_path_is_told_in_one_line(section: dict[str, Any], path: str) -> None:
    data = {
        name: {key: path if isinstance(value, str) else {"train": path} for key, value in keys.items()}
        for name, keys in section.items()
    }
    with pytest.raises(InputError) as error:
        make_config(data)
    assert_one_line(error.value, ["found what cannot be a path here (", "allowed: the path of a file or folder"])


def test_what_no_terminal_should_get_is_spelled_out() -> None:
    line = str(InputError("a\x1b[2J", "b\ud800\0", "漢字"))
    assert line == r"a\x1b[2J: found b\ud800\x00; allowed: 漢字"


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(InputError) as error:
        make_config({"name": "/" + 1000 * "x"})
    assert len(str(error.value)) < 250


def test_anchors_and_merge_keys_are_understood() -> None:
    text = "base: &base {rank: 4, alpha: 8.0}\nother: {<<: *base, rank: 2}\n"
    assert read_yaml(text, "text")["other"] == {"rank": 2, "alpha": 8.0}
