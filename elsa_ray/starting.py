"""Loads a run's weights and starts the executor that its config names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from elsa_ray.config.errors import InputError
from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.model.adapters import Adapters
from elsa_ray.prepare import PRECISIONS, Prepared, load_backbone, make_recipe, make_tripartite, with_frame
from elsa_ray.records.progress import RunProgress
from elsa_ray.runtime.executor import Executor, InlineExecutor, NoExecutor
from elsa_ray.signals import sigterm_kept


@contextmanager
def started_executor(
    prepared: Prepared, address: str | None, progress: RunProgress
) -> Iterator[tuple[Executor, Adapters | None]]:
    """Load the weights and start the configured executor, which is ended with the block.

    Args:
        prepared: the run's parts.
        address: of a running Ray cluster.
        progress: told what is under way.

    Yields:
        The executor, and the adapters to start from by name; None where nothing is trained.

    Raises:
        InputError: the weights cannot be loaded, or no Ray is there that can take the run.
    """
    kind = prepared.config.runtime.executor
    if kind == "none":
        yield NoExecutor(), None
        return
    progress.status("loading the model")
    model, adapters = load_backbone(prepared)
    recipe = with_frame(prepared, make_recipe(prepared), model, adapters)
    if kind == "inline":
        with InlineExecutor(prepared.setting, make_tripartite(prepared, model), recipe) as executor:
            yield executor, adapters
        return
    from elsa_ray.runtime.ray_executor import RayExecutor

    model = model.to(PRECISIONS[prepared.config.numerics.precision])
    with sigterm_kept():
        ray_executor = RayExecutor(
            prepared.setting,
            model,
            recipe,
            address=address,
            status=progress.status,
            announce=progress.announce,
        )
    with ray_executor:
        yield ray_executor, adapters


def check_address(address: str | None, config: ExperimentConfig) -> None:
    """Refuse a cluster that would not be used.

    Raises:
        InputError: the executor is another than Ray.
    """
    executor = config.runtime.executor
    if address is not None and executor != "ray":
        found = f"{address} together with runtime.executor: {executor}"
        raise InputError("--address", found, "an address with runtime.executor: ray, or none")
