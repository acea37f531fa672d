"""Numbers as people read them: bytes, seconds, joules, shares, and short names of a config's choices."""

from __future__ import annotations

import math

from elsa_ray.config.experiment import ExperimentConfig
from elsa_ray.config.protocol import CodecChains
from elsa_ray.config.split import AutoSplitConfig
from elsa_ray.config.task import SizeRange, SizesDataset

NOTHING = "–"
"""Stands for a value that there is not."""


def human_bytes(num_bytes: float | None) -> str:
    """Return such as ``17.9 MB``, in powers of 1000."""
    return _scaled(num_bytes, ("B", "kB", "MB", "GB", "TB", "PB"))


def human_bandwidth(bytes_per_second: float) -> str:
    """Return bytes per second as such as ``20 Mbit/s``."""
    return _scaled(bytes_per_second * 8, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"))


def human_joules(joules: float | None) -> str:
    """Return such as ``4.2 kJ``."""
    return _scaled(joules, ("J", "kJ", "MJ", "GJ"))


def human_count(count: float | None) -> str:
    """Return such as ``950``, ``1.2 M`` or ``6.8 T``."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E")).strip()


def human_flops(flops_per_second: float) -> str:
    """Return such as ``20 GFLOP/s``."""
    return _scaled(flops_per_second, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"))


def human_seconds(seconds: float | None) -> str:
    """Return such as ``15 ms``, ``1.66 s``, ``3 min 12 s``, ``2 h 05 min`` or ``3 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 1:
        return f"{_short(seconds * 1e3)} ms"
    if seconds < 99.95:
        return f"{_short(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def human_number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def human_share(value: float | None) -> str:
    """Return a number from 0 to 1 in percent, such as ``95.2 %``."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def human_ratio(value: float | None) -> str:
    """Return how many times smaller, such as ``3.9×``."""
    return NOTHING if value is None else f"{value:.3g}×"


def codec_name(config: ExperimentConfig) -> str:
    """Return the codecs of a config in one word, such as ``int8`` or ``activation int8, adapter cast``."""
    codec = getattr(config.protocol, "codec", CodecChains())
    chains = {
        kind: "+".join(spec.kind for spec in getattr(codec, kind)) for kind in ("activation", "gradient", "adapter")
    }
    if chains["activation"] == chains["gradient"] and not chains["adapter"]:
        return chains["activation"] or f"none ({config.protocol.wire_dtype})"
    return ", ".join(f"{kind} {chain}" for kind, chain in chains.items() if chain)


def split_name(config: ExperimentConfig) -> str:
    """Return the client's blocks before and after the edge's, such as ``2 + 2``; ``auto``; a dash for no split."""
    split = getattr(config.protocol, "split", None)
    if split is None:
        return NOTHING
    return "auto" if isinstance(split, AutoSplitConfig) else f"{split.front} + {split.back}"


def data_name(config: ExperimentConfig) -> str:
    """Return what the data are called: the packaged name, the file's name, or the hub's."""
    dataset = config.task.dataset
    if isinstance(dataset, SizesDataset):
        return f"sizes only, {sizes_text(dataset)}"
    for field in ("name", "train", "hub"):
        value = getattr(dataset, field, None)
        if value is not None:
            return str(value).replace("\\", "/").rsplit("/", 1)[-1] if field == "train" else str(value)
    return type(dataset).__name__


def sizes_text(dataset: SizesDataset) -> str:
    """Return how many samples a client has, such as ``32`` or ``lognormal (mean 32, sigma 1) samples a client``."""
    sizes = dataset.sizes
    if isinstance(sizes, int):
        return f"{sizes:,} samples a client"
    if isinstance(sizes, SizeRange):
        return f"{sizes.min:,} to {sizes.max:,} samples a client"
    ((kind, figures), *_) = sizes.model_dump().items()
    told = ", ".join(f"{name} {value:g}" for name, value in figures.items())
    at_most = f", at most {sizes.max:,}" if sizes.max is not None else ""
    return f"{kind} ({told}){at_most} samples a client"


def _scaled(value: float | None, units: tuple[str, ...]) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    position = 0
    # 999.5 would be written as 1000 of a unit.
    while abs(value) >= 999.5 and position < len(units) - 1:
        value, position = value / 1000, position + 1
    return f"{_short(value)} {units[position]}"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
