from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from elsa_ray.config.errors import InputError
from elsa_ray.config.load import make_config
from elsa_ray.network import make_network
from elsa_ray.records.drawing import topology_svg
from elsa_ray.records.folder import RunFolder
from elsa_ray.records.report import write_report
from tests.records.conftest import Recorded
from tests.records.helpers import played, prepared_run, recorded


class _Page(HTMLParser):
    """Collects what a test asks of a page, and that its tags are closed."""

    VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.resources: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)

    def _note(self, attrs: dict[str, str | None]) -> None:
        if attrs.get("id"):
            self.ids.append(str(attrs["id"]))
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attrs.get(name)
            if value:
                (self.references if value.startswith("#") else self.resources).append(value.lstrip("#"))
        for value in attrs.values():
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")


def _check(path: Path) -> _Page:
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.open == []
    assert page.resources == []
    assert not re.search(r"@import|url\((?!#)|<script|<link|<iframe", text)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?://""", text)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert set(page.references) <= set(page.ids)
    return page


def test_the_report_of_a_trained_run_is_one_page(trained: Recorded) -> None:
    path = write_report(trained.path)
    assert path == trained.path / "report.html"
    page, text = _check(path), path.read_text()
    for heading in ("Accuracy over rounds", "Accuracy over simulated time", "Accuracy over bytes sent", "Bytes by role",
                    "Where simulated time went", "Where wall-clock time went", "Topology", "Rounds"):  # fmt: skip
        assert heading in page.headings
    assert text.count("<tr><td>") == 2
    assert "fluid flows" in text and "schema_version: 1" in text
    assert "no summary" not in text


def test_the_same_run_gives_the_same_page(trained: Recorded, tmp_path: Path) -> None:
    pages = [write_report(trained.path, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_reports_of_runs_without_training(timed: Recorded, tmp_path: Path) -> None:
    page = _check(write_report(timed.path, tmp_path / "page.html"))
    assert not any(heading.startswith("Accuracy") for heading in page.headings)
    assert "nothing was trained" in (tmp_path / "page.html").read_text()


def test_the_report_of_an_interrupted_run(trained: Recorded, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", trained.prepared.config)
    folder.write_round(trained.rounds[0], trained.prepared.setting)
    text = write_report(folder.path).read_text()
    _check(folder.path / "report.html")
    assert "interrupted, or still goes on" in text and "Accuracy over rounds" in text
    folder.close()


def test_the_report_of_a_run_without_a_round(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", prepared_run(tmp_path).config) as folder:
        _check(write_report(folder.path))


def test_the_report_of_a_language_model(tmp_path: Path) -> None:
    prepared = prepared_run(tmp_path, "task.model=tiny_gpt2", "task.kind=causal_lm", "runtime.executor=inline")
    path, _ = recorded(prepared, tmp_path / "run")
    page = _check(write_report(path))
    assert "Loss over rounds" in page.headings
    assert "perplexity" in (path / "report.html").read_text()


def test_a_network_of_very_many_edges_is_not_drawn(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", prepared_run(tmp_path, "topology.edges=300").config) as folder:
        text = write_report(folder.path).read_text()
    _check(folder.path / "report.html")
    assert "Not drawn: 602 nodes" in text


def test_text_from_the_config_is_escaped(tmp_path: Path) -> None:
    data = tmp_path / "<img src=x>"
    data.mkdir()
    prepared = prepared_run(data)
    with RunFolder.create(tmp_path / "run", prepared.config) as folder:
        for finished in played(prepared):
            folder.write_round(finished, prepared.setting)
    _check(write_report(folder.path))


def test_mistakes_are_one_line(trained: Recorded, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--out"):
        write_report(trained.path, tmp_path / "no" / "such" / "folder.html")
    with pytest.raises(InputError, match=r"without config\.yaml"):
        write_report(tmp_path)


@pytest.mark.parametrize(("clients", "edges"), [(1, 1), (40, 3), (400, 4), (301, 150)])
def test_topologies_of_all_sizes_can_be_drawn(clients: int, edges: int) -> None:
    config = make_config({"topology": {"clients": clients, "edges": edges}})
    svg = topology_svg(make_network(config.topology, 0, Path()))
    assert svg.startswith("<svg") and svg == topology_svg(make_network(config.topology, 0, Path()))
