"""Are clients that learn the same topic found together? The adjusted Rand index of edges against planted topics.

python experiments/benchmarks/clusters.py experiments/clusters.yaml [a.b=c ...]
"""

from __future__ import annotations

import sys

import numpy as np
from rich.console import Console
from scipy.special import comb

from elsa_ray.config.load import load_config
from elsa_ray.experiment import rounds
from elsa_ray.prepare import load_backbone, make_recipe, make_tripartite, prepare, with_frame
from elsa_ray.runtime.executor import InlineExecutor


def adjusted_rand_index(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Return how far two groupings of the same items agree: 1 in full, about 0 by chance."""
    first, second = (np.unique(groups, return_inverse=True)[1] for groups in (first_N, second_N))
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    both, rows, columns = (comb(counts, 2).sum() for counts in (table, table.sum(axis=1), table.sum(axis=0)))
    by_chance = rows * columns / comb(len(first), 2)
    return float((both - by_chance) / ((rows + columns) / 2 - by_chance))


def main() -> None:
    """Train, cluster, compare."""
    prepared = prepare(load_config(sys.argv[1], sys.argv[2:]))
    model, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
    start = prepared.protocol.start(adapters)
    with InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe) as executor:
        *_, last = rounds(prepared, start, executor)
    labels, partition = prepared.setting.task.train.labels, prepared.setting.task.partition
    assert labels is not None, "topics are the labels"
    topic_N = np.array([np.bincount(labels[indices]).argmax() for indices in partition])
    purest = min(float((labels[indices] == topic).mean()) for indices, topic in zip(partition, topic_N, strict=True))
    before, after = (adjusted_rand_index(np.array(s.edge_of_client), topic_N) for s in (start, last.state))
    Console().print(
        f"{len(topic_N)} clients of {len(set(topic_N.tolist()))} topics (at least {purest:.0%} of a client's texts are "
        f"of its topic): adjusted Rand index {before:.3f} by latency alone, {after:.3f} after clustering"
    )


if __name__ == "__main__":
    main()
