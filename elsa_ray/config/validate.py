"""Validates data by a config model and tells the first mistake in one line."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from elsa_ray.config.errors import InputError, nearest_name, unknown_name

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], data: object, where: str = "") -> Model:
    """Return ``data`` as an instance of ``model``.

    Args:
        model: the pydantic model.
        data: plain values, as read from YAML.
        where: the field path that ``data`` comes from, put before the path of the mistake.

    Raises:
        InputError: with the path of the first mistake, what was found there and what is allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _first_mistake(error.errors(include_url=False), data, where) from None
    except InputError as error:
        if not where:
            raise
        raise InputError(f"{where}.{error.where}", error.found, error.allowed, nearest=error.nearest) from None


def validate_file(model: type[Model], data: object, file: str) -> Model:
    """Return the content of a file as an instance of ``model``; a mistake is told with the file before the field.

    Raises:
        InputError: as for ``validate``.
    """
    try:
        return validate(model, data)
    except InputError as error:
        raise InputError(f"{file}: {error.where}", error.found, error.allowed, nearest=error.nearest) from None


def _first_mistake(problems: list[Any], data: object, where: str) -> InputError:
    """Tell the first mistake; of a value that fits no kind of a union, the one inside of it, else all kinds."""
    first = _input_error(problems[0], data, where)
    inside = [_input_error(problem, data, where) for problem in problems]
    deeper = next((error for error in inside if error.where.startswith(f"{first.where}.")), None)
    if deeper is not None:
        return deeper
    alike = [error for error in inside if error.where == first.where]
    allowed = " or ".join(dict.fromkeys(error.allowed for error in alike))
    nearest = next((error.nearest for error in alike if error.nearest is not None), None)
    return InputError(first.where, first.found, allowed, nearest=nearest)


def _input_error(problem: Any, data: object, where: str) -> InputError:
    path = _real_path(problem["loc"], data, missing=problem["type"] == "missing")
    field = ".".join(part for part in [where, *path] if part) or "the config"
    if problem["type"] == "unknown_key":
        key, known = problem["ctx"]["key"], problem["ctx"]["known"]
        return InputError(
            f"{field}.{key}" if path or where else key,
            "an unknown key",
            ", ".join(known),
            nearest=nearest_name(key, known),
        )
    if problem["type"] == "missing":
        return InputError(field, "nothing", "a value: this field is required")
    found, context = problem["input"], problem.get("ctx", {})
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        key = context["discriminator"].strip("'")
        if problem["type"] == "union_tag_not_found":
            return InputError(f"{field}.{key}", "nothing", "a value: this field is required")
        names = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return unknown_name(f"{field}.{key}", context["tag"], names)
    expected = context.get("expected")
    # The text of a number looks like the number itself.
    if isinstance(found, str) and (problem["type"] in ("int_type", "float_type", "bool_type") or found == expected):
        found = f"the text '{found}'"
    names = [part.strip(" '") for part in str(expected).replace(" or ", ", ").split(",")] if expected else []
    nearest = nearest_name(found, names) if isinstance(found, str) else None
    return InputError(field, found, _allowed(problem["msg"]), nearest=nearest)


def _real_path(loc: tuple[int | str, ...], data: object, *, missing: bool) -> list[str]:
    """Drop the union tags that pydantic puts into a location: keep what exists in ``data``."""
    path: list[str] = []
    current: Any = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(current, dict) and part in current:
            current = current[part]
        elif isinstance(current, list) and isinstance(part, int) and part < len(current):
            current = current[part]
        elif not (missing and last):
            continue
        path.append(str(part))
    return path


def _allowed(message: str) -> str:
    for opening in ("Value error, ", "Input should be ", "Input should have ", "String should match pattern "):
        message = message.removeprefix(opening)
    return re.sub(
        r"a valid dictionary( or instance of \w+| or object to extract fields from)?",
        "a mapping of keys to values",
        message,
    )
