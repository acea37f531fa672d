"""Measures this machine as a device: how fast it makes training steps, for models and batches of any size.

Steps of small random models are timed; none of them is a model that the profile is used for later. With one thread on
a CPU the processor's own time counts, so that other programs do not make a device slower than it is; else wall-clock
time. Of several repetitions the fastest counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.optimize import nnls
from transformers import AutoModelForSequenceClassification, BertConfig

from elsa_ray.config.errors import InputError
from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.config.task import LoraConfig
from elsa_ray.model.adapters import Adapters, initial_adapters, make_layout
from elsa_ray.model.cost import step_flops
from elsa_ray.model.families import family_of
from elsa_ray.model.split import whole
from elsa_ray.model.tripartite import TripartiteModel
from elsa_ray.runtime.hardware import describe_hardware
from elsa_ray.training.client import stack_adapters
from elsa_ray.training.optimizer import CohortOptimizer
from elsa_ray.world.devices import StepSize

MODELS = ((96, 192, 1), (96, 384, 3), (192, 192, 2), (320, 1280, 3), (512, 2048, 2))
"""Width, inner width and blocks."""
BATCHES = ((4, 16), (8, 32), (8, 64))
"""Texts, and tokens of each."""
_LEAST_SECONDS = 0.25
_HEAD_WIDTH, _VOCABULARY, _LABELS = 32, 1000, 6


@dataclass(frozen=True)
class StepTime:
    """One measurement.

    Attributes:
        size: of the step, by the formulas that simulated time uses.
        seconds: that it took.
    """

    size: StepSize
    seconds: float


def measure_device(
    *, threads: int, device: str, repetitions: int = 5, status: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Return this machine's profile, in the form of a device's file.

    Args:
        threads: of torch.
        device: cpu or cuda.
        repetitions: of each step, after one that does not count.
        status: is told what is measured.

    Raises:
        InputError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "cuda", "cpu: this machine has no usable GPU")
    times = []
    with _threads(threads):
        for width, inner, blocks in MODELS:
            if status is not None:
                status(f"steps of {blocks} blocks of width {width}")
            model, adapters = _random_model(width, inner, blocks, device)
            for texts, length in BATCHES:
                times.append(
                    measure_step(model, adapters, texts=texts, length=length, threads=threads, repetitions=repetitions)
                )
    rate, states_rate, block_seconds = fit_rates(times)
    hardware = describe_hardware()
    what = (
        hardware["gpus"][0] if device == "cuda" else f"{hardware['processor']}, {threads} of {hardware['cpus']} threads"
    )
    measured = f"measured {date.today().isoformat()}, torch {torch.__version__} in fp32"
    unmeasured = "not measured; state the device's own figure"
    return {
        "name": "this-machine",
        "about": what,
        "flops_per_second": {"value": rate, "source": measured},
        **({} if states_rate is None else {"states_per_second": {"value": states_rate, "source": measured}}),
        "block_seconds": {"value": block_seconds, "source": measured},
        "memory_bytes": {"value": _free_memory_bytes(device), "source": "free when it was measured"},
        "idle_watts": {"value": 0.0, "source": unmeasured},
        "active_watts": {"value": 0.0, "source": unmeasured},
        "radio_joules_per_byte": {"value": 0.0, "source": unmeasured},
    }


def write_profile(profile: dict[str, Any], path: str | Path) -> None:
    """Write a device's file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        Path(path).write_text(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    except OSError as error:
        raise InputError("--out", f"{path} ({error.strerror})", "a file that can be written") from error


def fit_rates(times: Sequence[StepTime]) -> tuple[float, float | None, float]:
    """Return FLOP/s, hidden states a second (None: they take no time), and seconds a block (``Device.step_seconds``).

    None is negative, and the relative errors have the least sum of squares.
    """
    seconds = np.array([own.seconds for own in times])
    columns = np.array([[own.size.flops, own.size.states, own.size.blocks + 1] for own in times], np.float64)
    # Columns of about one, so that the solver's tolerances mean the same for each.
    scale = columns.max(axis=0)
    solution, _ = nnls(columns / scale / seconds[:, None], np.ones(len(times)))
    per_flop, per_state, per_block = (solution / scale).tolist()
    # Where all is overhead, products are as fast as the fastest step has shown, and more is not known.
    rate = 1 / per_flop if per_flop > 0 else float((columns[:, 0] / seconds).max())
    return rate, 1 / per_state if per_state > 0 else None, per_block


def measure_step(
    model: TripartiteModel, adapters: Adapters, *, texts: int, length: int, threads: int, repetitions: int
) -> StepTime:
    """Return the time of one client's training step of the whole model: forward, backward, optimiser.

    Args:
        model: the backbone.
        adapters: of the client.
        texts: of the batch.
        length: tokens of each text.
        threads: of torch; tells which clock counts.
        repetitions: at least; the fastest counts.
    """
    step = _training_step(model, adapters, texts, length)
    step()  # a warm-up
    seconds: list[float] = []
    # Small steps are repeated more often: they are the ones that anything else disturbs.
    while len(seconds) < repetitions or sum(seconds) < _LEAST_SECONDS:
        begin = _now(model.device, threads)
        step()
        seconds.append(_now(model.device, threads) - begin)
    shape = model.shape
    flops = step_flops(shape, model.layout, whole(shape.num_layers)).whole.total(texts, length)
    states = texts * length * shape.hidden_size * shape.num_layers
    return StepTime(StepSize(float(flops), float(states), shape.num_layers), min(seconds))


def _training_step(model: TripartiteModel, adapters: Adapters, texts: int, length: int) -> Callable[[], None]:
    config, split = OptimizerConfig(), whole(model.shape.num_layers)
    parameters = stack_adapters([adapters], model.device)
    optimizer = CohortOptimizer(parameters, config, config.learning_rate)
    in_blocks = {name: own for name, own in parameters.items() if name.startswith(model.shape.block_path)}
    in_head = {name: own for name, own in parameters.items() if name not in in_blocks}
    generator = torch.Generator().manual_seed(0)
    highest = int(model.model.config.vocab_size)
    ids_NS = torch.randint(5, highest, (texts, length), generator=generator).to(model.device)
    mask_NS = torch.ones(texts, length, dtype=torch.bool, device=model.device)
    labels_N = torch.zeros(texts, dtype=torch.int64, device=model.device)
    active_C = torch.ones(1, dtype=torch.bool)

    def step() -> None:
        hidden_NSD = model.front(ids_NS, mask_NS, in_blocks, split)
        logits_NK = model.back(hidden_NSD, mask_NS, in_head, split)
        torch.nn.functional.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step(active_C)

    return step


def _random_model(width: int, inner: int, blocks: int, device: str) -> tuple[TripartiteModel, Adapters]:
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=width // _HEAD_WIDTH,
        intermediate_size=inner,
        num_labels=_LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    family = family_of(config)
    shape = family.shape(config, causal_lm=False)
    layout = make_layout(shape, family, LoraConfig(), causal_lm=False)
    adapters = initial_adapters(layout, model, 0, torch.float32)
    return TripartiteModel(model.to(device), family, shape, layout), adapters


def _now(device: torch.device, threads: int) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if threads == 1 else time.perf_counter()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_memory_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
