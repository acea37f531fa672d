"""Reads text files, and says in one line why one cannot be read."""

from __future__ import annotations

from pathlib import Path

from elsa_ray.config.errors import InputError


def read_text(path: Path, where: str) -> str:
    """Return the file's text, without a byte-order mark.

    Raises:
        InputError: it is missing, unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(where, "no such file", "an existing file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(where, f"an unreadable file ({reason})", "a readable text file") from error
