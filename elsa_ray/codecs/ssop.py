"""SS-OP: a secret rotation inside the subspace that holds most of the activations' energy (methods.md 1.10).

Where ELSA's paper is silent (who inverts, refresh, effective rank) this is the card's reconstruction.
Shapes: T rows, D width, R rank.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from elsa_ray.codecs.codec import Calibration, Codec, CodecContext, Maker, Rows, Tensors
from elsa_ray.codecs.subspaces import finite_rows, leading_directions, with_columns
from elsa_ray.config.section import Section
from elsa_ray.tasks.seeds import numpy_generator
from elsa_ray.world.roles import Role


class Ssop(Codec):
    """Encode h' = h Qᵀ and decode h = h' Q, where Q = U V Uᵀ + (I - U Uᵀ) is orthogonal and never formed.

    U spans the leading directions of the client's rows (not centred), V is a rotation that only the client draws. An
    end that does not hold (U, V) leaves the rows as they are. With ``invert: edge`` the edge gets them and the cut
    loses nothing; with ``invert: client`` the edge works on rotated activations, and their gradients travel rotated.

    V is drawn from a seed of the run, which stands for the client's secret in the simulation: no attack may derive it.
    """

    class Config(Section):
        """Size of the subspace, who turns back, how long a key serves."""

        kind: Literal["ssop"] = "ssop"
        rank: int = Field(default=64, ge=1)
        """Cap of the rank; keys have this size, whatever the rows are."""
        energy: float = Field(default=0.9, gt=0, le=1)
        """The subspace is the smallest that holds this share of the rows' energy, under the cap."""
        invert: Literal["edge", "client"] = "edge"
        """Who turns back: the edge, which then gets the key, or the client alone."""
        refresh_rounds: int = Field(default=1, ge=1)
        """Global rounds that a key serves."""

    linear = True
    unbiased = True
    lossless = True
    straight_through = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        role = Role.KEY if config.invert == "edge" else None
        self.calibration = Calibration(Maker.CLIENT, role, config.refresh_rounds)

    def calibration_layout(self, width: int) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """U [D, R] and V [R, R] at the cap, in fp32."""
        rank = min(self.config.rank, width)
        return (torch.float32, (width, rank)), (torch.float32, (rank, rank))

    def calibrate(self, x_TD: Tensor, context: CodecContext) -> Tensors:
        """Return U, with zero columns behind the effective rank, and V, which is the identity there."""
        rank = min(self.config.rank, x_TD.shape[1])
        directions_DR, energies = leading_directions(finite_rows(x_TD), rank)
        effective = min(_rank_of_share(energies, self.config.energy), directions_DR.shape[1])
        secret = (context.seed, "client-secret", context.client, context.round_index, context.edge_round)
        rotation_RR = torch.eye(rank, dtype=torch.float64)
        rotation_RR[:effective, :effective] = random_rotation(effective, numpy_generator(*secret))
        return with_columns(directions_DR[:, :effective], rank), rotation_RR

    def encode(self, x_TD: Tensor, context: CodecContext) -> Rows:
        """Return h + (h U)(Vᵀ - I) Uᵀ: 4·D·R FLOPs a token."""
        return Rows(_turned(x_TD, context.memory, inverse=False))

    def decode(self, rows: Rows, width: int, context: CodecContext) -> Tensor:
        """Return h' + (h' U)(V - I) Uᵀ."""
        return _turned(rows.values, context.memory, inverse=True)


def random_rotation(rank: int, generator: np.random.Generator) -> Tensor:
    """Return an orthogonal matrix [R, R] of Haar's (uniform) distribution: QR of a Gaussian one, with signs fixed."""
    q_RR, r_RR = np.linalg.qr(generator.standard_normal((rank, rank)))
    return torch.from_numpy(q_RR * np.sign(np.diag(r_RR)))


def _turned(x_TD: Tensor, memory: Tensors, *, inverse: bool) -> Tensor:
    if not memory:
        return x_TD
    basis_DR, rotation_RR = (tensor.to(x_TD) for tensor in memory)
    turn_RR = (rotation_RR if inverse else rotation_RR.T) - torch.eye(len(rotation_RR)).to(x_TD)
    return x_TD + x_TD @ basis_DR @ turn_RR @ basis_DR.T


def _rank_of_share(energies: Tensor, share: float) -> int:
    """Return the fewest leading energies that sum to the share of them all; 0 if there is none."""
    sums = energies.cumsum(0)
    if len(sums) == 0 or sums[-1] <= 0:
        return 0
    reached = sums >= share * sums[-1] * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1
