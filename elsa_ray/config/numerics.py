"""The ``numerics`` section: everything about the computation that can change a number."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elsa_ray.config.section import Section


class NumericsConfig(Section):
    """Precision, device and the shape of the batches of clients."""

    precision: Literal["fp64", "fp32", "bf16", "auto"] = "auto"
    """``auto`` is bf16 where the hardware multiplies it natively, else fp32; resolved once and stored."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """``auto`` is cuda where there is one; resolved once and stored."""
    cohort: Annotated[int, Field(gt=0)] = 16
    """Clients trained as one batch."""
    edges_per_group: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    """Edges whose clients may share cohorts; ``auto`` takes as many as fill a cohort."""
