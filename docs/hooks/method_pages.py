"""One page for each method: its docstring, its facts, what was measured, and what its paper states.

Everything is found by the method's name. A method that is new, or that no benchmark has measured yet, has a page that
says so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import curves
import measured
import papers

import tokenreduce
from tokenreduce.reducers.registry import lookup

PICTURES = measured.ROOT / "docs/images/methods"
PICTURE = """![{name}: a photograph, then its tokens after some of the layers](../images/methods/{name}.png)

DINOv2 ViT-S/14 at 60 % of the compute: each token in one colour, and outlined; hatched is what was dropped. Made by
`python benchmarks/method_pictures.py`."""
NO_PICTURE = """Not drawn: `python benchmarks/method_pictures.py` draws what runs on DINOv2 ViT-S/14 and photographs.
Either this method does not, or it is newer than the pictures."""


def sources() -> list[str]:
    """The pages' names, as MkDocs knows them."""
    return [f"methods/{name}.md" for name in tokenreduce.methods()]


def pages() -> dict[str, str | bytes]:
    """All pages, and the pictures of what was measured."""
    made: dict[str, str | bytes] = {}
    for name in tokenreduce.methods():
        drawn = curves.draw(name)
        made[f"methods/{name}.md"] = page(name, bool(drawn))
        if drawn:
            made[f"methods/{name}.svg"] = drawn
    return made


def page(name: str, drawn: bool = False) -> str:
    """The page of one method.

    Args:
        drawn: a picture of its curves stands beside the page.
    """
    text = inspect.getdoc(lookup(name)) or ""
    summary, _, rest = text.partition("\n\n")
    said, _, options = rest.partition("Args:\n")
    sections: dict[str, Callable[[], str]] = {
        "Its tokens": lambda: picture(name),
        "Formula": lambda: papers.formula(name),
        "What it does": lambda: said.strip(),
        "Options": lambda: option_table(name, options),
        "Measured": lambda: measured.text(name, drawn),
        "What the paper states": lambda: papers.published(name),
        "What was reproduced": lambda: papers.reproduced(name),
    }
    parts = [f"# `{name}`", " ".join(summary.split()), facts(name)]
    for title, make in sections.items():
        if made := make():
            parts += [f"## {title}", made]
    return "\n\n".join(parts) + "\n"


def facts(name: str) -> str:
    """What `describe` says, as a table, and how to use it."""
    known = tokenreduce.describe(name)
    paper = known["paper"]
    if paper.startswith("arXiv "):
        number = paper.removeprefix("arXiv ")
        paper = f"[{paper}](https://arxiv.org/abs/{number}) ({known['year']})"
    reads = [f"`{one}`" for one in known["needs"]] + [f"`{one}` where there are any" for one in known["uses"]]
    rows = {
        "kind": known["kind"],
        "paper": paper,
        "use": f"`{call(known)}`",
        "reads, besides the tokens": ", ".join(reads) or "nothing",
        "a budget spreads as": known["budget"],
        "without a budget": known["budgeted"] and "its threshold decides; with one it " + known["budgeted"],
        "tokens come back by": f"`{known['restoring']}` (it has {', '.join(known['modes'])})",
        "exports": {True: "yes", False: "no"}.get(known["exportable"], known["exportable"]),
        "compared with": known["checked"],
    }
    return measured.table(("fact", "what it is"), [(key, value) for key, value in rows.items() if value])


def call(known: dict[str, Any]) -> str:
    """The call of `patch` that shows the method where it belongs."""
    budget = "flops=0.6" if "encoder" in known["places"] else "keep=0.1"
    return f'tokenreduce.patch(model, "{known["name"]}", {budget})'


def picture(name: str) -> str:
    """The picture of its tokens, if it was drawn."""
    return PICTURE.format(name=name) if (PICTURES / f"{name}.png").exists() else NO_PICTURE


def option_table(name: str, docs: str) -> str:
    """The options, with their defaults and what the docstring says of each."""
    defaults = tokenreduce.describe(name)["options"]
    if not defaults:
        return "None."
    said: dict[str, str] = {}
    for match in re.finditer(r"^    ([\w, ]+)(?: \([^)]*\))?: (.*(?:\n {8}.*)*)", docs, re.MULTILINE):
        said |= {option.strip(): " ".join(match[2].split()) for option in match[1].split(",")}
    rows = [(f"`{key}`", f"`{value!r}`", said.get(key, "").replace("|", "\\|")) for key, value in defaults.items()]
    return measured.table(("option", "default", "what it does"), rows)
