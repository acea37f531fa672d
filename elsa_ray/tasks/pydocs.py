"""The docstrings of the installed packages and the standard library, labelled by subject area.

Sources are parsed, never imported. Only packages that an installation of this project always has are read, so that a
developer's environment and a user's give the same texts; other versions of these packages give other texts, which the
data's hash tells.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.util
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from elsa_ray.config.errors import InputError
from elsa_ray.tasks.table import Table

STDLIB = "stdlib"
MIN_CHARACTERS, MAX_CHARACTERS = 20, 600
MAX_PER_AREA = 1000
_ENOUGH_CHARACTERS = 80

AREAS: dict[str, dict[str, str]] = {
    "arrays": {"numpy": "_core lib ma linalg fft polynomial matrixlib random ctypeslib"},
    "concurrency": {
        STDLIB: "asyncio concurrent multiprocessing queue selectors signal subprocess threading _threading_local",
        "ray": "actor.py exceptions.py remote_function.py runtime_context.py dag util/actor_group.py util/actor_pool.py"
        " util/collective util/multiprocessing util/placement_group.py util/queue.py util/scheduling_strategies.py"
        " _private/async_compat.py _private/worker.py experimental/channel autoscaler/v2",
        "torch": "multiprocessing distributed/elastic distributed/rpc",
    },
    "files": {
        STDLIB: "_compression _pyio bz2 dbm filecmp fileinput fnmatch genericpath glob gzip importlib/resources lzma"
        " mimetypes ntpath os pathlib posixpath shelve shutil stat tarfile tempfile zipfile",
        "filelock": ".",
        "fsspec": ".",
        "pyarrow": "dataset.py feather.py fs.py ipc.py orc.py parquet",
        "safetensors": ".",
        "scipy": "io",
        "torch": "package serialization.py storage.py",
    },
    "graphs": {"networkx": "."},
    "math": {
        STDLIB: "_pydecimal fractions numbers random statistics",
        "mpmath": "calculus ctx_base.py ctx_fp.py ctx_mp.py functions matrices",
        "scipy": "special",
        "sympy": "calculus combinatorics ntheory series sets",
    },
    "network": {
        STDLIB: "email ftplib http imaplib ipaddress mailbox nntplib poplib smtplib socket socketserver ssl telnetlib"
        " urllib webbrowser wsgiref xmlrpc",
        "requests": ".",
        "urllib3": ".",
    },
    "tensors": {
        "torch": "_lobpcg.py _lowrank.py _refs _tensor.py _tensor_str.py autograd/function.py autograd/functional.py"
        " distributions functional.py masked nested nn optim"
    },
    "testing": {
        STDLIB: "bdb doctest pdb trace unittest",
        "networkx": "algorithms/tests classes/tests generators/tests linalg/tests readwrite/tests utils/tests",
        "numpy": "testing linalg/tests",
        "torch": "testing/_comparison.py testing/_creation.py testing/_internal/common_utils.py"
        " testing/_internal/common_device_type.py testing/_internal/opinfo",
    },
    "text": {
        STDLIB: "codecs configparser csv difflib encodings gettext html json locale pprint pydoc re string stringprep"
        " textwrap tokenize",
        "jinja2": ".",
        "markdown_it": ".",
        "rich": ".",
        "pygments": "filters formatters lexer.py lexers/python.py lexers/markup.py lexers/templates.py lexers/html.py"
        " token.py unistring.py util.py",
    },
    "time": {
        STDLIB: "_pydatetime _strptime cProfile calendar datetime profile pstats sched timeit zoneinfo",
        "simpy": ".",
        "torch": "autograd/profiler.py autograd/profiler_util.py profiler utils/benchmark",
    },
}
"""Of each area, the files and folders of each package that belong to it (``.``: all)."""


class Docstring(NamedTuple):
    """One text and where it was found."""

    module: str
    name: str
    label: str
    text: str


def read_pydocs() -> Table:
    """Return the table of docstrings: columns ``text``, ``label``, ``module``, ``package``.

    Rows are sorted by module and qualified name. A text that occurs twice counts once, and an area with more than
    ``MAX_PER_AREA`` texts keeps those with the smallest SHA-256: a choice that needs no seed.

    Raises:
        InputError: an area has no text at all (its package is not installed, or without sources).
    """
    found: dict[str, Docstring] = {}
    with _no_garbage_collection():
        for docstring in sorted(_all_docstrings()):
            found.setdefault(docstring.text, docstring)
    chosen: list[Docstring] = []
    for label in AREAS:
        of_label = [docstring for docstring in found.values() if docstring.label == label]
        if not of_label:
            packages = ", ".join(AREAS[label])
            raise InputError("task.dataset.name", f"pydocs without texts on {label}", f"with the sources of {packages}")
        chosen += sorted(of_label, key=lambda docstring: _hash(docstring.text))[:MAX_PER_AREA]
    chosen.sort()
    columns = {
        "text": [docstring.text for docstring in chosen],
        "label": [docstring.label for docstring in chosen],
        "module": [docstring.module for docstring in chosen],
        "package": [docstring.module.partition(".")[0] for docstring in chosen],
    }
    return Table("pydocs", columns, list(range(1, len(chosen) + 1)))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # Millions of short-lived nodes, none in a cycle: with torch loaded, collecting would take as long as parsing.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _all_docstrings() -> Iterator[Docstring]:
    for label, packages in AREAS.items():
        for package, places in packages.items():
            root = _folder(package)
            if root is None:
                continue
            prefix = () if package == STDLIB else (package,)
            for path in sorted({path for place in places.split() for path in _sources(root, place)}):
                module = ".".join((*prefix, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
                for name, docstring in _docstrings(path):
                    text = clean(docstring)
                    if text is not None:
                        yield Docstring(module, name, label, text)


def _folder(package: str) -> Path | None:
    if package == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    # For a top-level name this finds the folder without running a line of the package.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _sources(root: Path, place: str) -> Iterator[Path]:
    path = root / place
    if path.is_file():
        yield path
    elif path.is_dir():
        # Tests go to the area that asks for them by name.
        hidden = {"test", "tests"} - set(path.parts)
        for source in path.rglob("*.py"):
            if hidden.isdisjoint(source.relative_to(root).parts):
                yield source
    elif path.with_suffix(".py").is_file():
        yield path.with_suffix(".py")


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield qualified name and docstring of a file's module, classes, functions and methods."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in somebody else's source
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    nodes: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]] = [("", tree)]
    while nodes:
        name, node = nodes.pop()
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            yield name, docstring
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    nodes.append((f"{name}.{child.name}".lstrip("."), child))


def clean(docstring: str) -> str | None:
    """Return the prose that a docstring begins with, in one line of 20 to 600 characters; None where there is none.

    That is its first paragraph, and the following ones while the text is short; markup, examples and the sections of
    parameters are left out, and so are texts with other than ASCII characters.
    """
    text = ""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        prose = _prose(paragraph)
        if text and (not prose or len(text) >= _ENOUGH_CHARACTERS):
            break
        text = f"{text} {prose}".strip()
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS].rpartition(" ")[0]
    words = re.findall(r"[A-Za-z]{2,}", text)
    return text if len(text) >= MIN_CHARACTERS and len(words) >= 4 and text.isascii() else None


_SECTION = r"(Args|Arguments?|Parameters?|Returns?|Raises|Examples?):"
_MARKUP_LINE = re.compile(rf"\s*(>>>|\.\. |:\w+|@\w+|[-=~*^]{{3,}}\s*$|{_SECTION})")
_ROLE = re.compile(r":[a-z:]+:`~?\.?([^`<]*?)\s*(?:<[^`]*>)?`")


def _prose(paragraph: str) -> str:
    """Return a paragraph's lines up to the first that is markup; nothing of an underlined heading."""
    lines = _ROLE.sub(r"\1", paragraph).splitlines()
    end = next((index for index, line in enumerate(lines) if _MARKUP_LINE.match(line)), len(lines))
    if end == 1 and len(lines) > 1 and not lines[1].strip("-=~*^ "):
        return ""
    return " ".join(" ".join(lines[:end]).replace("`", "").split())


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
