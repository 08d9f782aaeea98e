"""No sentence states a measured figure that somebody typed: figures come from results files, by
`benchmarks/make_table.py`, or from a paper that is named beside them.

Read are pages and docstrings, typed tables too, without code and without what `make_table.py` writes. A number with a
unit of measurement, or with two and more decimals, is taken for a measurement. It may be typed where its paragraph or
row names a paper, where it is a budget or a confidence that we set, and where `SETTINGS` says why.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CARD = ROOT / "tokenreduce/lab/shipped/assets/MODEL_CARD.md"
PAGES = [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md")), CARD]
SOURCES = [file for room in ("tokenreduce", "patches", "examples") for file in sorted((ROOT / room).rglob("*.py"))]

NUMBER = r"(?<![\w.])\d[\d.,]*"
UNIT = r"(?:%|percent\b|points?\b|times\b|x\b(?! ?\d)|[mµ]?s\b|seconds?\b|minutes?\b|hours?\b|[KMG]i?B\b)"
FIGURE = re.compile(rf"{NUMBER}[ -]?{UNIT}|(?<![\w.])(?:0\.\d\d+|\d+\.\d\d\d+)")
PAPER = re.compile(r"arXiv|\b[Pp]apers?\b|\b[Pp]ublished\b|\bauthors\b")
# What is asked for, and how sure an interval is.
SHARES = rf"(?:{NUMBER}, )*(?:{NUMBER} and )?{NUMBER} %"
ASKED = re.compile(rf"{SHARES}(?= of the (?:compute|(?:model's )?multiply-adds|backbone))|\b(?:99|95|90) %")
# Text of a page or docstring, as `sentences` leaves it, with a number that nobody measured -> why it may be typed.
SETTINGS = {
    "stays below 0.01 by": "an example of what may be asked for",
    "to 90, 75, 50 and 25 %": "the shares that are tried",
    "does 80 % of its work": "the budget of a copy that is counted",
    "Up to 1 GiB": "a limit that the code sets",
    "larger than 20 MiB": "a limit that the code sets",
    "at most 6 MB": "a limit that a test holds",
    "at most 2 GB": "a limit of the file format",
    "plus 20 seconds": "a limit that the code sets",
    "IoU 0.50 to 0.95": "the definition of AP by COCO",
    "between 0.001 and 0.1": "where Mamba's steps start",
    "add up to 64 times": "a factor in a kernel",
    "plus 4096 times": "the square of that factor",
    "Released values are 0.005 to 1": "settings of the authors' code",
}


def sentences(page: str) -> str:
    """The text without code, headings, targets of links, options of commands and what is made of results."""
    text = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- (.+?) table -->\n.*?<!-- end of \1 table -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`|(?<=\])\([^)]*\)|--[\w-]+ [\d.,]+", "", text)


def typed_figures(text: str) -> list[str]:
    """Each figure that looks measured, with the words around it."""
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.) )", text):
        if not PAPER.search(paragraph):
            words = ASKED.sub("", " ".join(paragraph.split()))
            for setting in SETTINGS:
                words = words.replace(setting, "")
            found += [words[max(0, one.start() - 40) : one.end() + 20] for one in FIGURE.finditer(words)]
    return found


@functools.cache
def told() -> dict[str, list[str]]:
    """The sentences of each page, and of each docstring of a source file."""
    pages = {page.name: [sentences(page.read_text())] for page in PAGES}
    return pages | {str(file.relative_to(ROOT)): list(map(sentences, docstrings(file))) for file in SOURCES}


def docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_no_page_and_no_docstring_has_a_typed_figure() -> None:
    found = {place: [figure for text in texts for figure in typed_figures(text)] for place, texts in told().items()}
    assert {place: figures for place, figures in found.items() if figures} == {}


def test_every_setting_is_still_there() -> None:
    every = " ".join(" ".join(text.split()) for texts in told().values() for text in texts)
    assert [setting for setting in SETTINGS if setting not in every] == []


@pytest.mark.parametrize(
    "figure",
    [
        "1.6 x faster",
        "takes 3.5 ms",
        "0.28 points",
        "19.3 MiB",
        "1.5 times",
        "12%",
        "92.3 %",
        "4 minutes",
        "215 µs",
        "0.0063",
    ],
)
def test_a_typed_figure_is_seen(figure: str) -> None:
    text = f"# A page\n\n```\n2 s\n```\n\n- It is said to be\n  {figure} or so.\n- The paper has 3 %.\n"
    assert typed_figures(sentences(f"| one | two |\n|---|---|\n| three | it is {figure} |\n"))
    [found] = typed_figures(sentences(text))
    assert figure in found


@pytest.mark.parametrize(
    "text",
    [
        "At 80, 60 and 45 % of the compute, with a 95 % interval, on 28 x 28 pixels, by torch 2.10 and timm 1.0.28.",
        "In the paper it is 1.6 x faster and loses 0.28 points.",
        "`takes 3.5 ms`, [here](page.md#takes-35-ms).",
        "<!-- some table -->\nIt takes 3.5 ms.\n<!-- end of some table -->",
        "## 60 %",
        "An answer that is larger than 20 MiB.",
    ],
)
def test_what_is_no_typed_figure_is_not(text: str) -> None:
    assert typed_figures(sentences(text)) == []
