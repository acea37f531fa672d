"""SS-OP against its algebra: orthogonal, inside the subspace only, uniform, exact gradients (methods.md 1.10, 1.16).

Shapes: T rows, D width, R rank, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elsa_ray.codecs.chain import CodecChain, Memory, matching_memory
from elsa_ray.codecs.codec import Maker
from elsa_ray.codecs.ssop import Ssop, random_rotation
from elsa_ray.codecs.subspaces import leading_directions
from elsa_ray.codecs.wire import decode_calibrations, encode_calibrations
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.world.roles import Role

from .ends import CONTEXT, MAKERS, build, calibrated, round_trip, rows

WIDTH, RANK = 24, 8


def low_rank_rows(seed: int, strengths: list[float], num_rows: int = 40, width: int = WIDTH) -> Tensor:
    """Return rows whose squared singular values are the strengths."""
    generator = torch.Generator().manual_seed(seed)
    count = len(strengths)
    left, _ = torch.linalg.qr(torch.randn(num_rows, count, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64))
    return left * torch.tensor(strengths, dtype=torch.float64).sqrt() @ right.T


def ssop(**parameters: Any) -> Ssop:
    return Ssop(Ssop.Config(**parameters))


def held_by(codec: Ssop, x_TD: Tensor, context: Any = CONTEXT) -> tuple[Tensor, Tensor]:
    """Return U and V in fp64, before they are rounded to travel."""
    basis_DR, rotation_RR = codec.calibrate(x_TD, context)
    return basis_DR, rotation_RR


def encoded(codec: Ssop, x_TD: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
    return codec.encode(x_TD, replace(CONTEXT, memory=memory)).values


def test_it_is_the_formula_of_the_orthogonal_matrix() -> None:
    codec = ssop(rank=RANK)
    basis_DR, rotation_RR = held_by(codec, rows(0, 40))
    eye = torch.eye(WIDTH, dtype=torch.float64)
    matrix_DD = basis_DR @ rotation_RR @ basis_DR.T + eye - basis_DR @ basis_DR.T
    assert torch.allclose(matrix_DD.T @ matrix_DD, eye, rtol=0, atol=1e-12)
    x = rows(1)
    rotated = encoded(codec, x, (basis_DR, rotation_RR))
    assert torch.allclose(rotated, x @ matrix_DD.T, rtol=0, atol=1e-12)
    assert torch.allclose(rotated.norm(dim=1), x.norm(dim=1), rtol=1e-12, atol=0)
    assert float((rotated - x).norm()) > 1


def test_what_is_orthogonal_to_the_subspace_is_left_as_it_is() -> None:
    codec = ssop(rank=RANK)
    basis_DR, rotation_RR = held_by(codec, rows(0, 40))
    outside = rows(1) - rows(1) @ basis_DR @ basis_DR.T
    assert torch.allclose(encoded(codec, outside, (basis_DR, rotation_RR)), outside, rtol=0, atol=1e-12)


def test_without_the_key_rows_pass_as_they_are_and_with_it_they_come_back() -> None:
    of = build({"kind": "ssop", "rank": RANK}, wire_dtype="fp64")
    x, memory = rows(1), calibrated(build({"kind": "ssop", "rank": RANK}, wire_dtype="fp64"), rows(0, 40))
    assert torch.equal(round_trip(of, x), x)
    body = of.encode(x, CONTEXT, memory)
    assert torch.allclose(of.decode(body, 6, WIDTH, CONTEXT, memory), x, rtol=0, atol=1e-6)
    assert not torch.allclose(of.decode(body, 6, WIDTH, CONTEXT), x, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("share", "cap", "expected"), [(0.5, 8, 1), (0.6, 8, 2), (0.81, 8, 3), (0.9, 8, 3), (0.91, 8, 4), (1.0, 3, 3)]
)
def test_the_effective_rank_is_the_smallest_with_the_energys_share_under_the_cap(
    share: float, cap: int, expected: int
) -> None:
    x = low_rank_rows(0, [50.0, 30.0, 10.0, 6.0, 4.0])
    basis_DR, rotation_RR = held_by(ssop(rank=cap, energy=share), x)
    assert basis_DR.shape == (WIDTH, cap)
    assert rotation_RR.shape == (cap, cap)
    used = torch.eye(cap, dtype=torch.float64)
    used[expected:] = 0
    assert torch.allclose(basis_DR.T @ basis_DR, used, rtol=0, atol=1e-9)
    assert torch.equal(rotation_RR[expected:], torch.eye(cap, dtype=torch.float64)[expected:])
    assert torch.equal(rotation_RR[:, expected:], torch.eye(cap, dtype=torch.float64)[:, expected:])
    kept = (x @ basis_DR).square().sum() / x.square().sum()
    assert kept == pytest.approx(sum([50, 30, 10, 6, 4][:expected]) / 100, rel=1e-9)


@pytest.mark.parametrize("num_rows", [10, 60], ids=["by-rows", "by-columns"])
def test_the_directions_are_those_of_the_singular_value_decomposition_with_signs_fixed(num_rows: int) -> None:
    x = rows(3, num_rows)
    directions_DR, energies = leading_directions(x, 5)
    _, singular, right = torch.linalg.svd(x, full_matrices=False)
    assert torch.allclose(energies[: len(singular)][:10], singular[:10] ** 2, rtol=1e-9, atol=0)
    assert torch.allclose((directions_DR * right[:5].T).sum(dim=0).abs(), torch.ones(5).double(), rtol=0, atol=1e-9)
    assert bool((directions_DR.gather(0, directions_DR.abs().argmax(dim=0, keepdim=True)) > 0).all())
    again, _ = leading_directions(-x.flip(0), 5)
    assert torch.allclose(again, directions_DR, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("num_rows", "width"), [(10, 200), (200, 10)])
def test_the_smaller_gram_matrix_is_taken(num_rows: int, width: int) -> None:
    with FlopCounterMode(display=False) as counter:
        leading_directions(rows(0, num_rows, width), 5)
    assert counter.get_total_flops() <= 2 * 10 * 10 * 200 + 2 * 10 * 5 * 200


def test_rows_without_energy_get_no_rotation() -> None:
    for nothing in (torch.zeros(5, WIDTH), torch.zeros(0, WIDTH), torch.full((3, WIDTH), torch.nan)):
        basis_DR, _ = held_by(ssop(rank=RANK), nothing)
        assert torch.equal(basis_DR, torch.zeros(WIDTH, RANK).double())


def test_the_rotation_is_uniform_over_the_orthogonal_matrices() -> None:
    rank, num_seeds = 4, 4000
    rotations_SRR = torch.stack([random_rotation(rank, numpy_generator(seed, "test")) for seed in range(num_seeds)])
    eye = torch.eye(rank, dtype=torch.float64).expand_as(rotations_SRR)
    assert torch.allclose(rotations_SRR.mT @ rotations_SRR, eye, rtol=0, atol=1e-12)
    sigma = num_seeds**-0.5
    # Each entry has mean 0 and variance 1/R; the determinant either sign as often as the other.
    assert bool((rotations_SRR.mean(dim=0).abs() < 4 * sigma * rank**-0.5).all())
    assert torch.allclose(rotations_SRR.square().mean(dim=0), torch.full((rank, rank), 1 / rank).double(), atol=0.02)
    assert abs(float(torch.linalg.det(rotations_SRR).mean())) < 4 * sigma
    # Of Haar's distribution the trace has variance 1, and the square's trace mean 1.
    traces_S = rotations_SRR.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert float(traces_S.square().mean()) == pytest.approx(1, abs=0.1)
    squares_S = (rotations_SRR @ rotations_SRR).diagonal(dim1=1, dim2=2).sum(dim=1)
    assert float(squares_S.mean()) == pytest.approx(1, abs=0.15)


def test_the_mean_cosine_of_before_and_after_is_as_predicted() -> None:
    codec = ssop(rank=RANK, energy=1.0)
    generator = torch.Generator().manual_seed(2)
    inside, outside = torch.randn(20_000, RANK, generator=generator), torch.randn(20_000, 16, generator=generator)
    inside, outside = torch.nn.functional.normalize(inside), torch.nn.functional.normalize(outside)
    energy_inside = 0.93
    x = torch.cat([inside * energy_inside**0.5, outside * (1 - energy_inside) ** 0.5], dim=1).double()
    basis_DR, rotation_RR = torch.eye(WIDTH, RANK).double(), random_rotation(RANK, np.random.default_rng(0))
    rotated = encoded(codec, x, (basis_DR, rotation_RR))
    found = torch.nn.functional.cosine_similarity(x, rotated).mean()
    predicted = 1 - energy_inside * (1 - float(rotation_RR.trace()) / RANK)
    assert found == pytest.approx(predicted, abs=0.01)


def test_a_token_costs_4_d_r_flops_in_each_direction_and_no_product_with_a_d_by_d_matrix() -> None:
    """So no D x D matrix is made either, which would take 2 D D R by itself."""
    num_rows, width, rank = 50, 512, 16
    of = build({"kind": "ssop", "rank": rank}, wire_dtype="fp64")
    x, memory = torch.randn(num_rows, width, dtype=torch.float64), ((torch.randn(width, rank), torch.eye(rank)),)
    body = of.encode(x, CONTEXT, memory)
    for do in (
        lambda: of.encode(x, CONTEXT, memory),
        lambda: of.decode(body, num_rows, width, CONTEXT, memory),
    ):
        with FlopCounterMode(display=False) as counter:
            do()
        assert counter.get_total_flops() == num_rows * (4 * width * rank + 2 * rank**2)


def test_keys_are_a_clients_own_and_new_with_each_refresh_but_do_not_depend_on_the_message() -> None:
    _, rotation = held_by(ssop(rank=RANK), rows(0, 40))
    for same in ({"step": 9}, {"role": "key"}):
        assert torch.equal(held_by(ssop(rank=RANK), rows(0, 40), replace(CONTEXT, **same))[1], rotation)
    for other in ({"seed": 9}, {"client": 9}, {"round_index": 9}, {"edge_round": 9}):
        assert not torch.equal(held_by(ssop(rank=RANK), rows(0, 40), replace(CONTEXT, **other))[1], rotation)


@dataclass(frozen=True)
class Ends:
    """A chain for activations and one for gradients, and what each end holds after the client has made its key."""

    activation: CodecChain
    gradient: CodecChain
    client: Memory
    edge: Memory

    def send(self, role: Role, x_TD: Tensor) -> Tensor:
        """Encode at the role's sender, decode at its receiver."""
        is_up = role in (Role.ACTIVATION_UP, Role.GRADIENT_UP)
        of = self.activation if role in (Role.ACTIVATION_UP, Role.ACTIVATION_DOWN) else self.gradient
        at_sender, at_receiver = (self.client, self.edge) if is_up else (self.edge, self.client)
        if of is self.gradient:
            at_sender, at_receiver = (matching_memory(self.activation, of, m) for m in (at_sender, at_receiver))
        context, (num_rows, width) = replace(CONTEXT, role=role.label), x_TD.shape
        return of.decode(of.encode(x_TD, context, at_sender), num_rows, width, context, at_receiver)


def keyed_ends(invert: str, x_TD: Tensor, *behind: dict[str, Any]) -> Ends:
    spec = {"kind": "ssop", "rank": RANK, "invert": invert}
    activation, gradient = build(spec, *behind, wire_dtype="fp64"), build(spec, wire_dtype="fp64")
    client = calibrated(activation, x_TD)
    payloads = encode_calibrations(activation, client, WIDTH, MAKERS, CONTEXT)
    assert len(payloads) == (1 if invert == "edge" else 0)
    return Ends(activation, gradient, client, decode_calibrations(activation, payloads, (), WIDTH, MAKERS, CONTEXT))


def split_step(ends: Ends, x_TD: Tensor, middle_DD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, gradient at the client's first cut, gradient of the edge's weights, of one split step."""
    h1 = ends.send(Role.ACTIVATION_UP, x_TD).requires_grad_()
    weights = middle_DD.clone().requires_grad_()
    sent = (h1 @ weights).tanh()
    h2 = ends.send(Role.ACTIVATION_DOWN, sent.detach()).requires_grad_()
    loss = client_loss(h2)
    (at_h2,) = torch.autograd.grad(loss, h2)
    back = ends.send(Role.GRADIENT_UP, at_h2)
    at_sent = ends.activation.backward(sent, back, replace(CONTEXT, role="activation_down"), ends.edge)
    at_h1, at_weights = torch.autograd.grad(sent, (h1, weights), at_sent)
    returned = ends.send(Role.GRADIENT_DOWN, at_h1)
    at_x = ends.activation.backward(x_TD, returned, replace(CONTEXT, role="activation_up"), ends.client)
    return loss.detach(), at_x, at_weights


def client_loss(h2_TD: Tensor) -> Tensor:
    return (h2_TD * torch.linspace(-1, 2, WIDTH).double()).sin().sum()


SKETCH = {"kind": "sketch", "rows": 2, "buckets": 8, "decode": "mean", "backward": "exact"}


def map_of(of: CodecChain) -> Callable[[Tensor], Tensor]:
    """Return what a linear chain does to rows, as one matrix product."""
    matrix_DD = round_trip(of, torch.eye(WIDTH, dtype=torch.float64))
    return lambda x_TD: x_TD @ matrix_DD


@pytest.mark.parametrize("behind", [[], [SKETCH]], ids=["alone", "in-front-of-a-sketch"])
@pytest.mark.parametrize("invert", ["edge", "client"])
def test_the_gradients_that_travel_are_the_exact_ones_of_the_composed_function(
    invert: str, behind: list[dict[str, Any]]
) -> None:
    x, middle_DD = rows(1), rows(2, WIDTH) / 5
    ends = keyed_ends(invert, rows(0, 40), *behind)
    basis_DR, rotation_RR = (tensor.double() for tensor in ends.client[0])
    turn_DD = torch.eye(WIDTH).double() + basis_DR @ (rotation_RR.T - torch.eye(RANK)) @ basis_DR.T
    codec = map_of(build(*behind, wire_dtype="fp64"))

    leaf, weights = x.clone().requires_grad_(), middle_DD.clone().requires_grad_()
    if invert == "edge":
        sent = (codec(leaf @ turn_DD) @ turn_DD.T @ weights).tanh()
        loss = client_loss(codec(sent @ turn_DD) @ turn_DD.T)
    else:
        sent = (codec(leaf @ turn_DD) @ weights).tanh()
        loss = client_loss(codec(sent) @ turn_DD.T)
    expected_x, expected_weights = torch.autograd.grad(loss, (leaf, weights))

    found_loss, at_x, at_weights = split_step(ends, x, middle_DD)
    # The key is in fp32, so turning and turning back is the identity to 1e-7 only; not so what is turned just once.
    turned_once = invert == "client" and not behind
    assert found_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(at_x, expected_x, rtol=0, atol=1e-12 if turned_once else 1e-5)
    assert torch.allclose(at_weights, expected_weights, rtol=0, atol=1e-12 if turned_once else 1e-5)


def train(ends: Ends, steps: int = 25) -> tuple[list[float], Tensor, Tensor]:
    """Run SGD on a client's matrix in front of the cut and the edge's behind it."""
    front_DD, middle_DD, texts = rows(4, WIDTH) / 5, rows(5, WIDTH) / 5, rows(6)
    losses = []
    for _ in range(steps):
        loss, at_h1, at_middle = split_step(ends, texts @ front_DD, middle_DD)
        front_DD, middle_DD = front_DD - 0.01 * texts.T @ at_h1, middle_DD - 0.01 * at_middle
        losses.append(float(loss))
    return losses, front_DD, middle_DD


def test_training_with_a_key_at_the_edge_is_training_without() -> None:
    nothing = build(wire_dtype="fp64")
    losses, front, middle = train(Ends(nothing, nothing, (), ()))
    found, found_front, found_middle = train(keyed_ends("edge", rows(0, 40)))
    assert found == pytest.approx(losses, rel=1e-6)
    assert torch.allclose(found_front, front, rtol=1e-6, atol=1e-6)
    assert torch.allclose(found_middle, middle, rtol=1e-6, atol=1e-6)
    assert losses[-1] < losses[0] - 1
    rotated, *_ = train(keyed_ends("client", rows(0, 40)))
    assert rotated[0] != pytest.approx(losses[0], rel=1e-2), "the edge works on rotated activations"
    assert rotated[-1] < rotated[0] - 1, "and their gradients still lead down"


def test_the_key_is_made_by_the_client_only() -> None:
    of = build({"kind": "ssop", "rank": RANK})
    assert of.calibrate(rows(0), CONTEXT, (), frozenset({Maker.SENDER})) == ((),)
