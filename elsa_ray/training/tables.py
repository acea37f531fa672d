"""Tables of numbers between an edge and the cloud: fingerprints and trust of an edge's members, in the clear, in fp32.

A table has a row for each member that was planned for the round, whatever became of it, so that its size is known
beforehand; the row of a member of which nothing is known is NaN.
Shapes: N members, d projected width, P numbers of a fingerprint, d + d(d+1)/2 in the common basis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from elsa_ray.clustering.fingerprints import Fingerprint
from elsa_ray.clustering.trust import TrustState
from elsa_ray.codecs.chain import CodecChain
from elsa_ray.codecs.codec import CodecContext
from elsa_ray.codecs.wire import HEADER_BYTES, decode_adapters, encode_adapters
from elsa_ray.world.roles import Role

_PLAIN = CodecChain([], "fp32")
_NUMBER_BYTES = 4
TRUST_COLUMNS = 4
Count = TypeVar("Count", int, npt.NDArray[np.int64])


def table_num_bytes(num_rows: Count, num_columns: int) -> Count:
    """Return the size of a table, header included; of many tables their sizes."""
    return HEADER_BYTES + num_rows * num_columns * _NUMBER_BYTES


def encode_table(role: Role, rows_NP: npt.NDArray[np.float32], context: CodecContext) -> bytes:
    """Encode a table."""
    return encode_adapters(_PLAIN, role, [torch.from_numpy(np.ascontiguousarray(rows_NP))], context)


def decode_table(role: Role, payload: bytes, shape: tuple[int, int], context: CodecContext) -> npt.NDArray[np.float32]:
    """Decode a table of known shape.

    Raises:
        PayloadError: the payload is damaged or not what is expected.
    """
    (rows,) = decode_adapters(_PLAIN, role, payload, [shape], context)
    table: npt.NDArray[np.float32] = rows.numpy()
    return table


def fingerprint_rows(
    clients: Sequence[int], rows: Mapping[int, npt.NDArray[np.float32]], num_columns: int
) -> npt.NDArray[np.float32]:
    """Return the table of the fingerprints [N, P] of some clients."""
    absent = np.full(num_columns, np.nan, np.float32)
    return np.stack([rows.get(client, absent) for client in clients])


def known_rows(clients: Sequence[int], rows_NP: npt.NDArray[np.float32]) -> dict[int, npt.NDArray[np.float32]]:
    """Return the rows of a table that are finite, by client."""
    return {client: row for client, row in zip(clients, rows_NP, strict=True) if np.isfinite(row).all()}


def row_of_fingerprint(own: Fingerprint) -> npt.NDArray[np.float32]:
    """Return a fingerprint as a row [P]: the mean, then the lower triangle of the covariance."""
    lower = np.tril_indices(len(own.mean_d))
    row: npt.NDArray[np.float32] = np.concatenate([own.mean_d, own.covariance_dd[lower]]).astype(np.float32)
    return row


def fingerprint_of_row(row_P: npt.NDArray[np.float32], dimensions: int) -> Fingerprint:
    """Return the fingerprint that a row stands for."""
    numbers = row_P.astype(np.float64)
    covariance_dd = np.zeros((dimensions, dimensions))
    covariance_dd[np.tril_indices(dimensions)] = numbers[dimensions:]
    return Fingerprint(numbers[:dimensions], covariance_dd + np.tril(covariance_dd, -1).T)


def trust_rows(clients: Sequence[int], states: Mapping[int, TrustState]) -> npt.NDArray[np.float32]:
    """Return the table of trust [N, 4]: client, score, and until which rounds it is excluded and on probation."""
    rows_N4 = np.full((len(clients), TRUST_COLUMNS), np.nan, np.float32)
    for row, client in enumerate(clients):
        state = states.get(client, TrustState())
        rows_N4[row] = (client, state.score, state.excluded_until_round, state.probation_until_round)
    return rows_N4
