"""The base of every config section: strict, frozen, and silent about nothing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0, le=2**31 - 1)]
"""A count: at least one, and few enough for the arrays that are computed with it."""


class Section(BaseModel):
    """A part of the config file. Unknown keys are errors, values are not coerced between kinds, and it is immutable.

    Numbers are finite: no infinity, no NaN.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        """Refuse an unknown key together with the list of known ones, which pydantic's own error lacks."""
        if isinstance(data, dict) and cls.model_config.get("extra") == "forbid":
            for key in data:
                if key not in cls.model_fields:
                    context = {"key": str(key), "known": sorted(cls.model_fields)}
                    raise PydanticCustomError("unknown_key", "unknown key {key}", context)
        return data
