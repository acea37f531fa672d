from __future__ import annotations

from collections import Counter

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.tasks import pydocs
from elsa_ray.tasks.table import Table
from tests.tasks.helpers import digest, run_python


def test_every_area_has_enough_texts_and_none_rules(pydocs_table: Table) -> None:
    counts = Counter(pydocs_table.columns["label"])
    assert set(counts) == set(pydocs.AREAS)
    assert len(counts) == 10
    assert min(counts.values()) >= 300
    assert max(counts.values()) <= pydocs.MAX_PER_AREA
    assert 8_000 <= sum(counts.values()) <= 10_000


def test_texts_are_clean_distinct_and_sorted(pydocs_table: Table) -> None:
    texts = pydocs_table.columns["text"]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert pydocs.MIN_CHARACTERS <= len(text) <= pydocs.MAX_CHARACTERS
        assert text == " ".join(text.split())
    modules = pydocs_table.columns["module"]
    assert modules == sorted(modules)


def test_another_process_reads_the_same_without_importing_the_packages(pydocs_table: Table) -> None:
    code = """
import sys
from elsa_ray.tasks.pydocs import read_pydocs
from tests.tasks.helpers import digest
table = read_pydocs()
loaded = {"networkx", "scipy", "ray", "torch", "sympy", "jinja2"} & set(sys.modules)
print(digest(table.columns), sorted(loaded))
"""
    assert run_python(code, PYTHONHASHSEED="11") == f"{digest(pydocs_table.columns)} []"


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("Return the sum of all the values.", "Return the sum of all the values."),
        ("Too short.", None),
        ("1234567890 1234567890 1234567890 12345", None),
        (
            "Return the sum\n    of all the values.\n\n    Parameters\n    ----------\n    x : array",
            "Return the sum of all the values.",
        ),
        ("Return the sum of values.\n\nArgs:\n    x: the values", "Return the sum of values."),
        ("Return the sum of values.\nReturns:\n    x: the values", "Return the sum of values."),
        ("Short, not alone.\n\nA second paragraph goes with it.", "Short, not alone. A second paragraph goes with it."),
        ("Calls :func:`~a.b.total` and ``np.sum`` of it.", "Calls a.b.total and np.sum of it."),
        ("Return the sum of values.\n\n>>> total([1])\n1", "Return the sum of values."),
        ("Gib die Größe der Werte zurück, bitte sehr.", None),
    ],
)
def test_cleaning(docstring: str, text: str | None) -> None:
    assert pydocs.clean(docstring) == text


def test_long_texts_end_at_a_word() -> None:
    text = pydocs.clean("word " * 500)
    assert text is not None
    assert len(text) <= pydocs.MAX_CHARACTERS
    assert set(text.split()) == {"word"}


def test_an_area_without_sources_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs, "AREAS", {"graphs": {"no_such_package": "."}})
    with pytest.raises(InputError, match="pydocs without texts on graphs"):
        pydocs.read_pydocs()


def test_garbage_collection_is_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    monkeypatch.setattr(pydocs, "AREAS", {"math": {"stdlib": "statistics"}})
    assert gc.isenabled()
    pydocs.read_pydocs()
    assert gc.isenabled()
