"""Folders that are named by a URI, and what of a URI nobody but its file system may see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from elsa_ray.config.errors import InputError

_MASK = "***"
_OPEN_OPTIONS = frozenset(
    (
        *("region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion"),
        *("background_writes", "allow_delayed_open", "check_directory_existence_before_creation", "smart_defaults"),
        *("tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates", "force_virtual_addressing"),
        *("retry_limit_seconds", "project_id", "blob_storage_authority", "dfs_storage_authority", "enable_tls"),
        *("credential_kind", "tenant_id", "client_id", "use_mmap", "replication", "buffer_size", "user"),
    )
)
"""Options of pyarrow's file systems that may be shown. Any other may be a secret, such as ``client_secret``."""
_SHORTEST_SECRET = 4
"""Characters: what is shorter is no secret, and would be found in the middle of words."""


@dataclass(frozen=True)
class StorageUri:
    """A URI that may have credentials in it: ``s3://KEY:SECRET@bucket/run``, or an option such as ``client_secret``.

    Attributes:
        full: as it was given, for the file system only.
    """

    full: str = field(repr=False)

    @cached_property
    def shown(self) -> str:
        """The URI with a mask in place of each credential."""
        parts = self._parts
        user = f"{parts.name}:{_MASK}" if parts.name and parts.secrets else _MASK if parts.secrets else parts.name
        options = [text if _is_open(text) else f"{text.partition('=')[0]}={_MASK}" for text in parts.options]
        return _joined(parts.scheme, user, parts.place, options)

    @cached_property
    def bare(self) -> str:
        """The URI without its credentials: with it the file system looks for them in the environment."""
        parts = self._parts
        return _joined(parts.scheme, parts.name, parts.place, [text for text in parts.options if _is_open(text)])

    def hide(self, text: str) -> str:
        """Return a text with a mask in place of each credential of this URI."""
        text = text.replace(self.full, self.shown)
        options = (text.partition("=")[2] for text in self._parts.options if not _is_open(text))
        secrets = {form for secret in (*self._parts.secrets, *options) for form in (secret, unquote(secret))}
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, _MASK)
        return text

    @cached_property
    def _parts(self) -> _Parts:
        scheme, _, rest = self.full.partition("://")
        authority = re.split("[/?#]", rest, maxsplit=1)[0]
        # Secrets have slashes that people forget to encode: then no host ends at the first of them.
        is_key = scheme.lower() == "s3"  # There the name is that of a key, elsewhere of a person or a container.
        has_port = not is_key and authority.rpartition(":")[2].isdecimal()
        is_cut = "@" not in authority and ":" in authority and not has_port
        end = (rest if is_cut else authority).rfind("@")
        user, rest = rest[: max(end, 0)], rest[end + 1 :]
        place, _, query = rest.partition("?")
        options = tuple(query.split("&")) if query else ()
        name, _, password = user.partition(":")
        secrets = tuple(filter(None, (name if is_key else "", password)))
        return _Parts(scheme, "" if is_key else name, secrets, place, options)


class _Parts(NamedTuple):
    """A URI's parts; ``name`` may be shown, and is empty where it may not or is not there."""

    scheme: str
    name: str
    secrets: tuple[str, ...]
    place: str
    options: tuple[str, ...]


def is_uri(text: str | Path | None) -> bool:
    """Whether a folder is named by a URI."""
    return isinstance(text, str) and "://" in text


def refuse_uri(where: str, text: str | Path | None) -> None:
    """Refuse a URI where only a local folder will do.

    Raises:
        InputError: it is one.
    """
    if is_uri(text):
        allowed = "a folder on this machine; only run and plan write to storage by a URI"
        raise InputError(where, StorageUri(str(text)).shown, allowed)


def _joined(scheme: str, user: str, place: str, options: Sequence[str]) -> str:
    at, question = "@" if user else "", "?" if options else ""
    return f"{scheme}://{user}{at}{place}{question}{'&'.join(options)}"


def _is_open(option: str) -> bool:
    """Whether an option, ``name=value``, may be shown."""
    name, _, value = option.partition("=")
    return name in _OPEN_OPTIONS and "@" not in value
