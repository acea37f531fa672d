"""The cohort's optimiser is torch's AdamW or SGD for each client by itself; masked clients do not move by a bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elsa_ray.config.protocol import OptimizerConfig
from elsa_ray.training.optimizer import CohortOptimizer

CLIENTS, STEPS = 3, 6
SHAPES = {"matrix": (4, 5), "bias": (7,)}
CONFIGS = [
    OptimizerConfig(kind="adamw", learning_rate=3e-3),
    OptimizerConfig(kind="adamw", learning_rate=3e-3, weight_decay=0.2),
    OptimizerConfig(kind="sgd", learning_rate=0.1),
    OptimizerConfig(kind="sgd", learning_rate=0.1, weight_decay=0.2),
]


def config_name(config: OptimizerConfig) -> str:
    return f"{config.kind}-decay{config.weight_decay}"


def random_parameters(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(CLIENTS, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in SHAPES.items()
    }


def random_gradients(dtype: torch.dtype) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    scale_C = torch.tensor([1e-4, 1.0, 30.0], dtype=torch.float64)

    def gradient(shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(CLIENTS, *shape, generator=generator, dtype=torch.float64)
        return (drawn * scale_C.reshape(-1, *[1] * len(shape))).to(dtype)

    return [{name: gradient(shape) for name, shape in SHAPES.items()} for _ in range(STEPS)]


def cohort_trajectory(
    config: OptimizerConfig, dtype: torch.dtype, steps_of_client: list[int]
) -> list[dict[str, Tensor]]:
    """Return the parameters after each step of a cohort whose members make so many steps."""
    parameters = {name: value.clone().requires_grad_() for name, value in random_parameters(dtype).items()}
    optimizer = CohortOptimizer(parameters, config, config.learning_rate)
    trajectory = []
    for step, gradients in enumerate(random_gradients(dtype)):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].clone()
        optimizer.step(torch.tensor([step < count for count in steps_of_client]))
        trajectory.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    return trajectory


def torch_trajectory(config: OptimizerConfig, dtype: torch.dtype, client: int) -> list[dict[str, Tensor]]:
    parameters = {name: value[client].clone().requires_grad_() for name, value in random_parameters(dtype).items()}
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[config.kind]
    optimizer = kind(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    trajectory = []
    for gradients in random_gradients(dtype):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][client].clone()
        optimizer.step()
        trajectory.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    return trajectory


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-7)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("config", CONFIGS, ids=config_name)
def test_each_client_moves_as_by_torchs_own_optimizer(
    config: OptimizerConfig, dtype: torch.dtype, tolerance: float
) -> None:
    cohort = cohort_trajectory(config, dtype, [STEPS] * CLIENTS)
    for client in range(CLIENTS):
        for step, alone in enumerate(torch_trajectory(config, dtype, client)):
            for name, expected in alone.items():
                difference = (cohort[step][name][client] - expected).norm() / expected.norm()
                assert difference < tolerance


@pytest.mark.parametrize("config", CONFIGS, ids=config_name)
def test_a_masked_client_stands_still_to_the_bit_and_the_others_go_on(config: OptimizerConfig) -> None:
    ragged = cohort_trajectory(config, torch.float32, [2, STEPS, 4])
    full = cohort_trajectory(config, torch.float32, [STEPS] * CLIENTS)
    for client, last in enumerate([2, STEPS, 4]):
        for step in range(STEPS):
            for name in SHAPES:
                expected = full[min(step, last - 1)][name][client]
                assert torch.equal(ragged[step][name][client], expected)


@pytest.mark.parametrize("config", CONFIGS, ids=config_name)
def test_a_masked_clients_nan_gradient_reaches_nobody(config: OptimizerConfig) -> None:
    parameters = {name: value.clone().requires_grad_() for name, value in random_parameters(torch.float32).items()}
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = CohortOptimizer(parameters, config, config.learning_rate)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
        parameter.grad[1] = torch.nan
    optimizer.step(torch.tensor([True, False, True]))
    for name, parameter in parameters.items():
        assert torch.equal(parameter[1], before[name][1])
        assert torch.isfinite(parameter).all()


def test_gradients_are_cleared_and_one_that_is_missing_counts_as_zero() -> None:
    parameters = {name: value.clone().requires_grad_() for name, value in random_parameters(torch.float64).items()}
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = CohortOptimizer(parameters, OptimizerConfig(kind="sgd", learning_rate=0.5), 0.5)
    parameters["matrix"].grad = torch.ones_like(parameters["matrix"])
    optimizer.step(torch.ones(CLIENTS, dtype=torch.bool))
    assert torch.equal(parameters["matrix"], before["matrix"] - 0.5)
    assert torch.equal(parameters["bias"], before["bias"])
    assert all(parameter.grad is None for parameter in parameters.values())
