"""The one error that a user's wrong input raises, and how it suggests the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """The user's input (config, topology, data, payload, option) is wrong; the command line exits with code 2.

    The message is one line: where (field or file), what was found, what is allowed, and the nearest valid name.
    """

    def __init__(self, where: str, found: object, allowed: str, *, nearest: str | None = None) -> None:
        self.where = where
        self.found = found
        self.allowed = allowed
        self.nearest = nearest
        super().__init__(where, found, allowed, nearest)

    def __str__(self) -> str:
        found = self.found if isinstance(self.found, str) else repr(self.found)
        line = f"{self.where}: found {_shorten(found)}; allowed: {self.allowed}"
        if self.nearest is not None:
            line += f"; did you mean {self.nearest}?"
        return _printable(" ".join(line.split()))


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that looks most like ``name``, or None when none is close."""
    matches = difflib.get_close_matches(name, sorted(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(where: str, name: str, valid: Iterable[str]) -> InputError:
    """Build the error for a name that is not among the ``valid`` ones."""
    names = sorted(valid)
    return InputError(where, name, ", ".join(names), nearest=nearest_name(name, names))


def _printable(text: str) -> str:
    """Spell out what no terminal should get: control characters, and halves of characters that cannot be encoded."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
