"""Finds what a config names: a built-in, an installed entry point, or ``module:Class`` from outside."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from elsa_ray.config.errors import InputError, unknown_name
from elsa_ray.config.section import Section


def find_class(where: str, group: str, name: str, built_in: Mapping[str, type]) -> Any:
    """Return the class that ``name`` stands for.

    Args:
        where: the config field, for the error's line.
        group: the entry-point group, such as ``elsa_ray.codecs``.
        name: a built-in name, an entry point's name, or ``module:Class``.
        built_in: the classes that the package itself has, by name.

    Raises:
        InputError: nothing goes by that name, the module cannot be imported, or the class has no ``Config``.
    """
    if name in built_in:
        return built_in[name]
    if ":" in name:
        return _with_config(where, name, _import_class(where, name))
    installed = {point.name: point for point in entry_points(group=group)}
    if name in installed:
        return _with_config(where, name, installed[name].load())
    raise unknown_name(where, name, [*built_in, *installed, "module:Class"])


def _import_class(where: str, name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(where, name, f"an importable module:Class ({type(error).__name__}: {error})") from error
    if not isinstance(getattr(module, class_name, None), type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        if not classes:
            raise InputError(where, f"{name}, whose module has no class", "module:Class")
        raise unknown_name(where, name, [f"{module_name}:{key}" for key in classes])
    return getattr(module, class_name)


def _with_config(where: str, name: str, found: Any) -> Any:
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Section)):
        raise InputError(where, name, "a class with a Config, derived from elsa_ray.config.section.Section")
    return found
