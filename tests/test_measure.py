"""Measuring a device: the fit finds made-up figures again, and a measured profile serves as a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from elsa_ray import measure
from elsa_ray.config.errors import InputError
from elsa_ray.world.devices import Device, StepSize, read_profile

SIZES = [
    StepSize(flops, states, blocks)
    for flops, states, blocks in ((1e8, 1e5, 1), (9e8, 3e5, 4), (5e9, 4e6, 2), (2e10, 9e6, 6), (3e9, 1e5, 12))
]


@pytest.mark.parametrize(
    "device",
    [
        Device("whole", 5e10, 0.0, 0.0, states_per_second=4e7, block_seconds=1e-3),
        Device("products alone", 5e10, 0.0, 0.0),
        Device("products and starts", 5e10, 0.0, 0.0, block_seconds=1e-3),
        Device("products and states", 5e10, 0.0, 0.0, states_per_second=4e7),
    ],
    ids=lambda device: device.name,
)
def test_the_fit_finds_the_figures_that_made_the_times(device: Device) -> None:
    times = [measure.StepTime(size, device.step_seconds(size)) for size in SIZES]
    rate, states, block = measure.fit_rates(times)
    fitted = Device("fitted", rate, 0.0, 0.0, states_per_second=states or float("inf"), block_seconds=block)
    assert rate == pytest.approx(device.flops_per_second, rel=1e-6)
    for size in SIZES:
        assert fitted.step_seconds(size) == pytest.approx(device.step_seconds(size), rel=1e-6)


def test_a_measured_profile_is_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MODELS", ((64, 64, 1), (96, 192, 2)))
    monkeypatch.setattr(measure, "BATCHES", ((2, 8), (8, 16)))
    monkeypatch.setattr(measure, "_LEAST_SECONDS", 0.01)
    told: list[str] = []
    profile = measure.measure_device(threads=1, device="cpu", repetitions=2, status=told.append)
    measure.write_profile(profile, tmp_path / "this.yaml")
    read = read_profile(tmp_path / "this.yaml")
    assert read.device.name == "this-machine" and read.device.flops_per_second > 1e6
    assert read.device.memory_bytes > 0 and "measured" in read.sources["flops_per_second"]
    assert "not measured" in read.sources["active_watts"] and len(told) == 2
    with pytest.raises(InputError, match="--out"):
        measure.write_profile(profile, tmp_path / "none" / "this.yaml")
