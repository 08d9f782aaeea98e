"""The documentation site: it builds strictly, no link is dead, nothing comes from the network; pages of methods."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

import tokenreduce
from tokenreduce.reducers import registry

pytest.importorskip("mkdocs", reason="pip install 'tokenreduce[docs]'")
ROOT = Path(__file__).parents[1]
HOOKS = str(ROOT / "docs/hooks")
sys.path.append(HOOKS)  # as MkDocs has it

import diagrams  # noqa: E402
import links  # noqa: E402
import measured  # noqa: E402
import method_pages  # noqa: E402
import papers  # noqa: E402


class Page(HTMLParser):
    """What a page links to, what it loads, and the places that others can link to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attrs}
        self.places |= {named[key] for key in ("id", "name") if key in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in named:
            self.loads.append(named["src"])
        if tag == "link" and named.get("rel") != "canonical":
            self.loads.append(named["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Built once for all processes of a run."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "site"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


@cache
def read(file: Path) -> Page:
    return Page(file.read_text())


def test_no_link_is_dead(site: Path) -> None:
    """Files, and places in them; also of what plugins and the theme write, which MkDocs does not check."""
    checked = 0
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":
            continue  # its links are from the root of a server
        for link in (*read(file).links, *read(file).loads):
            parts = urlsplit(link)
            if parts.scheme or link.startswith(("data:", "#__")):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{file.relative_to(site)} links to {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in read(target).places, f"{file.relative_to(site)} links to {link}"
            checked += 1
    assert checked > 5000


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert not [one for one in read(file).loads if urlsplit(one).scheme in ("http", "https")], file
    styles = [file.read_text() for file in site.rglob("*.css")]
    assert styles and not any("url(http" in style or "@import" in style for style in styles)


def test_the_site_has_every_page(site: Path) -> None:
    pages = {file.stem for file in (ROOT / "docs").glob("*.md")} | {"index", "contributing", "changelog", "reference"}
    assert pages <= {file.stem for file in site.glob("*.html")}
    assert {file.stem for file in (site / "methods").glob("*.html")} == set(tokenreduce.methods())
    names = read(site / "reference.html").places
    assert {f"tokenreduce.{name}" for name in tokenreduce.__all__} <= names
    home = read(site / "index.html").links
    assert all(any(link.endswith(f"{page}.html") for link in home) for page in pages - {"index", "reference"})


# pages of methods
@dataclass(frozen=True)
class Nobody(tokenreduce.Reducer):
    """Keep whatever comes first. It says no more.

    Args:
        first, second: what
            there is.
    """

    name: ClassVar[str] = "nobody"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 0000.00000"
    year: ClassVar[int] = 2026
    first: int = 1
    second: str = "a|b"

    def plan(self, tokens, keep, state=None):  # type: ignore[no-untyped-def]
        raise NotImplementedError


def test_a_new_method_has_a_page_without_anything_else(monkeypatch) -> None:
    tokenreduce.methods()
    monkeypatch.setattr(registry, "_registry", {**registry._registry, "nobody": Nobody})
    assert "methods/nobody.md" in method_pages.sources()
    page = method_pages.page("nobody")
    for said in ("# `nobody`", method_pages.NO_PICTURE, measured.NOTHING, papers.NO_FIGURE, "Nothing was compared"):
        assert said in page
    assert "| `first` | `1` | what there is. |" in page and "| `second` | `'a|b'` | what there is. |" in page
    assert "## Formula" not in page and "[arXiv 0000.00000](https://arxiv.org/abs/0000.00000) (2026)" in page


def test_a_page_has_what_was_measured() -> None:
    page = method_pages.page("tome", drawn=True)
    row = next(r for r in measured.rows("quality_real", "tome") if r["budget"] == "flops=0.45")
    assert f"| 45% | {row['tokens_left']} | {row['class_error']:.4f} | 1.00 (1.00-1.00) |" in page
    assert "](tome.svg)" in page and "(../images/methods/tome.png)" in page and "## Formula" in page
    for file in ("quality_real", "quality", "segmentation", "speed", "gpu", "scans"):
        assert measured.origins.note(file).strip() in page
    assert "| DeiT-S | ImageNet, top-1 | 2.9 GMACs | 79.82 | 78.89 |" in page


def test_papers_are_those_of_methods() -> None:
    assert papers.read().keys() <= set(tokenreduce.methods())
    for name, known in papers.read().items():
        assert known.keys() <= {"formula", "published", "note"}, name
        assert all(len(line) <= 140 for line in known.get("formula", "").splitlines()), name
        for row in known.get("published", []):
            assert {"model", "data", "budget", "full", "reduced", "source"} <= row.keys(), (name, row)
        assert not known.get("published") or tokenreduce.describe(name)["paper"] != "none"


def test_pictures_are_of_methods_and_small() -> None:
    files = list(method_pages.PICTURES.glob("*.png"))
    assert len(files) >= 20 and {file.stem for file in files} <= set(tokenreduce.methods())
    assert max(file.stat().st_size for file in files) < 60_000


# links
def test_links_are_rewritten_for_the_site() -> None:
    text = "[a](../csrc/ops.cpp) [b](dense.md#taps) [c](../CONTRIBUTING.md#a-method) [d](https://x.org)\n```\n[e](../f)\n```\n"
    assert links.localised(text, "onnx.md") == (
        "[a](source/csrc/ops.cpp.page.md) [b](dense.md#taps) [c](contributing.md#a-method) [d](https://x.org)\n"
        "```\n[e](../f)\n```\n"
    )
    assert links.localised("![p](docs/images/a.png) [q](docs/vlm.md)", "index.md") == "![p](images/a.png) [q](vlm.md)"
    assert links.localised("[r](../benchmarks/a.json)", "results.md") == "[r](source/benchmarks/a.json)"
    assert links.localised("<!-- a table -->\n| b |\n", "vlm.md") == "\n| b |\n"
    assert (
        links.to_methods("| `tome` | 1 |\n| `what` |\n", ["tome"]) == "| [`tome`](methods/tome.md) | 1 |\n| `what` |\n"
    )


def test_every_diagram_is_drawn() -> None:
    """Where this fails, the block was changed: docs/hooks/diagrams.py says how it is drawn again."""
    blocks = [block for page in (ROOT / "docs").glob("*.md") for block in diagrams.BLOCK.findall(page.read_text())]
    assert {diagrams.name(block) for block in blocks} == {file.name for file in diagrams.FOLDER.iterdir()} != set()
    assert diagrams.drawn("```mermaid\nA --> B\n```") == "```mermaid\nA --> B\n```"
