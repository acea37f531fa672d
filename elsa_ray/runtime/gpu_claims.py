"""Refuses actors whose declared memory a GPU does not have, alone or together with those that may share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elsa_ray.config.errors import InputError
from elsa_ray.runtime.resources import Need, Wanted, gigabytes
from elsa_ray.runtime.shares import times


@dataclass(frozen=True)
class Claim:
    """What the actors of a kind have declared of their GPUs.

    Attributes:
        kind: of the actors, in words.
        where: the config field of their resources.
        num_gpus: share of each.
        memory_bytes: of each, context included.
        count: at most so many actors.
    """

    kind: str
    where: str
    num_gpus: float
    memory_bytes: int
    count: int


def claims_of(wanted: Sequence[Wanted], needs: Sequence[Need]) -> list[Claim]:
    """Return the claims of the kinds that declare their memory."""
    return [
        Claim(own.kind, own.where, need.num_gpus, need.gpu_memory_bytes, own.number or own.clients)
        for own, need in zip(wanted, needs, strict=True)
        if need.gpu_memory_bytes is not None
    ]


def check_gpu_memory(claims: Sequence[Claim], sizes: Sequence[int], context_bytes: int) -> None:
    """Refuse claims that cannot hold.

    Args:
        claims: of all kinds of actors.
        sizes: memory of each GPU; none where it is not known.
        context_bytes: of a GPU's memory that a process takes before its first tensor.

    Raises:
        InputError: a claim has no room for a tensor, or is larger than a GPU; or actors that Ray could put on one GPU,
            by their shares, claim more than it has.
    """
    for claim in claims:
        if claim.memory_bytes <= context_bytes:
            allowed = f"more than runtime.gpu_context, the {gigabytes(context_bytes)} that no tensor can use"
            raise InputError(f"{claim.where}.gpu_memory", gigabytes(claim.memory_bytes), allowed)
    if not claims or not sizes:
        return
    size = min(sizes)
    for claim in claims:
        if claim.memory_bytes > size:
            found = gigabytes(claim.memory_bytes)
            raise InputError(
                f"{claim.where}.gpu_memory", found, f"at most {gigabytes(size)}, what the smallest GPU has"
            )
    numbers = worst_on_one_gpu(claims)
    total = _sum(numbers, claims)
    if total > size:
        sharing = [(number, claim) for number, claim in zip(numbers, claims, strict=True) if number]
        together = " and ".join(f"{number} actors of {claim.kind}" for number, claim in sharing)
        _, greediest = max(sharing, key=lambda pair: pair[1].memory_bytes / max(pair[1].num_gpus, 1e-4))
        raise InputError(
            f"{greediest.where}.gpu_memory",
            f"{gigabytes(greediest.memory_bytes)} with num_gpus {greediest.num_gpus:g}: {together} may share a GPU and "
            f"claim {gigabytes(total)}",
            f"claims that fit its {gigabytes(size)}; num_gpus: auto follows the memory",
        )


def worst_on_one_gpu(claims: Sequence[Claim], free: float = 1.0) -> tuple[int, ...]:
    """Return how many actors of each kind Ray could put on one GPU so that they claim the most together.

    Args:
        claims: of all kinds.
        free: share of the GPU that is left.
    """
    if not claims:
        return ()
    claim, rest = claims[0], claims[1:]
    if claim.num_gpus <= 0:
        most = claim.count
    else:
        most = min(claim.count, times(free, claim.num_gpus)) if claim.num_gpus <= 1 else 0
    candidates = [(number, *worst_on_one_gpu(rest, free - number * claim.num_gpus)) for number in range(most, -1, -1)]
    return max(candidates, key=lambda numbers: _sum(numbers, claims))


def _sum(numbers: Sequence[int], claims: Sequence[Claim]) -> int:
    return sum(number * claim.memory_bytes for number, claim in zip(numbers, claims, strict=True))
