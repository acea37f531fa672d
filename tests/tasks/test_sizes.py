"""A data set that is sizes only: the draws, the batches that follow from them, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.config.task import SizesDataset
from elsa_ray.config.validate import validate
from elsa_ray.prepare import Prepared, load_backbone, prepare
from elsa_ray.protocols.local_work import local_work
from elsa_ray.protocols.setting import Setting
from elsa_ray.tasks.client_examples import ClientExamples
from elsa_ray.tasks.sizes import draw_sizes
from elsa_ray.training.batches import batch_sizes, examples_of_steps
from elsa_ray.world.plan import WorkKey

CLIENTS = 1_000_000


def dataset(sizes: Any) -> SizesDataset:
    return validate(SizesDataset, {"sizes": sizes})


def prepared(sizes: Any, *, executor: str = "none", **sections: Any) -> Prepared:
    task = {"dataset": {"sizes": sizes}, "model": "tiny", "max_length": 24, **sections.pop("task", {})}
    topology = sections.pop("topology", {"kind": "hierarchical", "clients": 12, "edges": 2})
    protocol, world = sections.pop("protocol", {}), sections.pop("world", {})
    if protocol.get("name") != "fedavg":
        protocol = {"split": {"front": 1, "back": 1}, "local_steps": 3, **protocol}
    return prepare(
        make_config(
            {
                "task": task,
                "topology": topology,
                "protocol": protocol,
                "world": world,
                "runtime": {"executor": executor},
            }
        )
    )


def test_a_number_and_a_range() -> None:
    assert draw_sizes(dataset(32), 5, seed=0).tolist() == [32] * 5
    drawn = draw_sizes(dataset({"min": 3, "max": 6}), CLIENTS, seed=1)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert np.all(np.abs(counts / CLIENTS - 0.25) < 0.002)  # 4.6 standard deviations


def test_distributions_have_the_stated_figures() -> None:
    lognormal = draw_sizes(dataset({"lognormal": {"mean": 1000, "sigma": 0.5}}), CLIENTS, seed=1)
    assert lognormal.mean() == pytest.approx(1000, rel=0.005)
    assert np.log(lognormal).std() == pytest.approx(0.5, rel=0.005)
    normal = draw_sizes(dataset({"normal": {"mean": 1000, "sigma": 50}}), CLIENTS, seed=1)
    assert (normal.mean(), normal.std()) == pytest.approx((1000, 50), rel=0.005)
    pareto = draw_sizes(dataset({"pareto": {"min": 1000, "shape": 2.0}}), CLIENTS, seed=1)
    assert pareto.min() == 1000
    for x in (2000, 5000, 20_000):
        assert np.mean(pareto > x) == pytest.approx((1000 / x) ** 2, rel=0.1)


def test_draws_are_at_least_one_at_most_max_and_follow_the_seed() -> None:
    wide = {"normal": {"mean": 1, "sigma": 100}, "max": 150}
    drawn = draw_sizes(dataset(wide), 10_000, seed=3)
    assert (drawn.min(), drawn.max()) == (1, 150)
    assert np.array_equal(drawn, draw_sizes(dataset(wide), 10_000, seed=3))
    assert not np.array_equal(drawn, draw_sizes(dataset(wide), 10_000, seed=4))
    assert draw_sizes(dataset({"lognormal": {"mean": 7, "sigma": 0}}), 3, seed=0).tolist() == [7, 7, 7]


def test_holdings_of_counts_and_of_arrays() -> None:
    counted = ClientExamples.of_counts(np.array([2, 3, 1]))
    assert [own.tolist() for own in counted] == [[0, 1], [2, 3, 4], [5]]
    arrays = [np.array([4, 9]), np.array([0]), np.array([1, 2, 3])]
    held = ClientExamples.of_arrays(arrays)
    assert [own.tolist() for own in held] == [own.tolist() for own in arrays]
    assert (held.counts.tolist(), held.num_examples, len(held)) == ([2, 1, 3], 6, 3)
    assert [own.tolist() for own in held[1:]] == [[0], [1, 2, 3]]
    assert held[-1].tolist() == [1, 2, 3]
    values = np.array([10, 20, 30, 40, 50, 0, 0, 0, 0, 5])
    assert held.reduced(values, np.maximum).tolist() == [50, 10, 40]
    assert held.reduced(values, np.add).tolist() == [55, 10, 90]
    with pytest.raises(IndexError):
        held[3]


@pytest.mark.parametrize("amount", ["local_steps", "local_epochs"])
@settings(max_examples=20, deadline=None)
@given(sizes=st.tuples(st.integers(1, 30), st.integers(0, 30)), batch=st.integers(1, 12), steps=st.integers(1, 4))
def test_batches_are_those_that_would_be_drawn(amount: str, sizes: tuple[int, int], batch: int, steps: int) -> None:
    least, more = sizes
    local = {"local_steps": None, "local_epochs": None, amount: steps}
    ready = prepared({"min": least, "max": least + more}, protocol={**local, "batch_size": batch})
    setting, config = ready.setting, ready.config.protocol
    clients = np.array([0, 3, 4, 11])
    work = local_work(setting, config, round_index=2, edge_round=1, clients=clients)
    lengths = np.full(setting.task.partition.num_examples, 24)
    for row, client in enumerate(clients.tolist()):
        examples_TB = examples_of_steps(WorkKey(2, 1, client), setting.task.partition[client], config, 0)
        batch_T, length_T = batch_sizes(examples_TB, lengths)
        count = len(batch_T)
        assert work.num_steps_W[row] == count
        assert work.batch_WT[row].tolist() == [*batch_T, *[0] * (work.batch_WT.shape[1] - count)]
        assert work.length_WT[row].tolist() == [*length_T, *[0] * (work.batch_WT.shape[1] - count)]


def test_a_million_clients_are_a_few_arrays() -> None:
    setting: Setting = prepared({"min": 1, "max": 60}).setting
    held = ClientExamples.of_counts(draw_sizes(dataset({"min": 1, "max": 60}), CLIENTS, seed=0))
    assert held.num_examples == held.counts.sum() == held.offsets[-1]
    assert held[999_999].tolist() == list(range(held.offsets[-2], held.offsets[-1]))
    assert setting.task.mean_length_C.tolist() == [24.0] * 12
    assert setting.task.longest_C.tolist() == [24] * 12


def test_generated_probes_need_no_text_and_others_do() -> None:
    probes = {"probes": {"kind": "generated", "count": 6, "length": 9}}
    found = prepared(8, task=probes).setting.task.probes
    assert found is not None
    assert found.lengths.tolist() == [9] * 6
    with pytest.raises(InputError, match=r"task.probes.kind: found dataset; allowed: generated"):
        prepared(8, task={"probes": {"kind": "dataset"}})
    with pytest.raises(InputError, match=r"task.probes.length: found 25; allowed: 1 to 24"):
        prepared(8, task={"probes": {"kind": "generated", "length": 25}})


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_sizes_cannot_be_trained_on(executor: str) -> None:
    with pytest.raises(InputError, match=rf"task.dataset.sizes: found .* runtime.executor {executor}; allowed: texts"):
        prepared(8, executor=executor)


def test_nothing_is_loaded_for_sizes() -> None:
    with pytest.raises(InputError, match=r"task.dataset.sizes: found a data set of sizes"):
        load_backbone(prepared(8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (0, "task.dataset.sizes: found 0; allowed: greater than 0"),
        (2.5, "task.dataset.sizes: found 2.5; allowed: a number of samples a client, {min: N, max: N}"),
        (True, "task.dataset.sizes: found True; allowed: a number of samples"),
        ("32", "task.dataset.sizes: found 32; allowed: a number of samples"),
        ({"poisson": 3}, "task.dataset.sizes: found {'poisson': 3}; allowed: a number"),
        ({"min": 5, "max": 2}, "task.dataset.sizes: found {'min': 5, 'max': 2}; allowed: a max of at least min (5)"),
        ({"min": 5}, "task.dataset.sizes.max: found nothing"),
        ({"lognormal": {"mean": 0, "sigma": 1}}, "task.dataset.sizes.lognormal.mean: found 0; allowed: greater than 0"),
        ({"lognormal": {"mean": 1, "sgma": 1}}, "task.dataset.sizes.lognormal.sgma: found an unknown key"),
        ({"normal": {"mean": math.nan, "sigma": 1}}, "task.dataset.sizes.normal.mean: found nan"),
        ({"pareto": {"min": 8, "shape": 0}}, "task.dataset.sizes.pareto.shape: found 0; allowed: greater than 0"),
        ({"pareto": {"min": 8, "shape": 1}, "max": 0}, "task.dataset.sizes.max: found 0; allowed: greater than 0"),
        ({"pareto": {"min": 8, "shape": 1e-3}}, "samples of all clients together; allowed: at most 1.1e+12"),
    ],
)  # fmt: skip
def test_wrong_sizes_are_one_line(sizes: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        prepared(sizes)
    assert message in str(caught.value)


def test_more_operations_than_can_be_counted_are_refused() -> None:
    """405 billion parameters and 4e8 tokens: 7e20 operations in one computation of a client's whole round."""
    boundless = {"clients": {"device": {"flops_per_second": 1e12}}}
    huge = {"model": "llama-3.1-405b", "kind": "causal_lm", "max_length": 4096}
    ready = prepared(
        100_000, task=huge, protocol={"name": "fedavg", "local_steps": None, "local_epochs": 1}, world=boundless
    )
    with pytest.raises(
        InputError, match=r"task: found one computation of \d.*e\+20 FLOPs; allowed: less than 9.2e\+18"
    ):
        ready.protocol.plan(ready.protocol.start(None), ready.world.start())
