"""Simulated seconds of a config under ``split: auto`` and under every fixed split with the same privacy floor.

    python experiments/benchmarks/splits.py experiments/split.yaml [a.b=c ...]

Nothing is trained: with the same rounds every split gives the same model, up to rounding (test_split_equals_whole.py).
So the time to any accuracy has the ratio of the times to the same round.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from elsa_ray.config.load import load_config
from elsa_ray.experiment import rounds
from elsa_ray.model.split import Part
from elsa_ray.prepare import prepare
from elsa_ray.protocols.protocol import ProtocolState
from elsa_ray.protocols.split_choice import split_options
from elsa_ray.runtime.executor import NoExecutor
from elsa_ray.world.roles import Role


def planned(path: str, overrides: list[str]) -> tuple[ProtocolState, float, int, int]:
    """Return the last state, the simulated seconds, the bytes of frozen blocks, and the number of different splits."""
    prepared = prepare(load_config(path, [*overrides, "runtime.executor=none"]))
    weights, splits = 0, set()
    with NoExecutor() as executor:
        for finished in rounds(prepared, prepared.protocol.start(None), executor):
            activities = finished.timeline.activities
            weights += int(finished.timeline.carried_bytes[activities.label == Role.WEIGHTS_DOWN].sum())
            work = finished.plan.work
            splits |= set(zip(work.front.tolist(), work.back.tolist(), strict=True))
    return finished.state, finished.state.simulated_seconds, weights, len(splits)


def main() -> None:
    """Print a table."""
    path, *overrides = sys.argv[1:]
    config = load_config(path, overrides)
    num_layers = prepare(config).setting.shape.num_layers
    floor = config.protocol.split.auto
    table = Table(
        "split", "simulated seconds", "times auto", "weights_down bytes", title=f"{path} {' '.join(overrides)}"
    )
    _, auto_seconds, weights, count = planned(path, overrides)
    table.add_row(f"auto ({count} different)", f"{auto_seconds:.1f}", "1.00", f"{weights:,}")
    for split in split_options(num_layers, min_front=floor.min_front, min_back=floor.min_back):
        front, back = len(split.layers(Part.FRONT)), len(split.layers(Part.BACK))
        fixed = [*overrides, f"protocol.split={{front: {front}, back: {back}}}"]
        _, seconds, weights, _ = planned(path, fixed)
        table.add_row(f"{front} + {back}", f"{seconds:.1f}", f"{seconds / auto_seconds:.2f}", f"{weights:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
