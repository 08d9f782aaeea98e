"""Tables of facts that the code states itself: methods by kind, families, public names, entries, shapes, modes.

`make_table.py --write` puts them into the README and docs/, so that a new method or family edits no page.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenreduce
from tokenreduce.maps.restoring import MODES
from tokenreduce.patching.finding import PATCHES, _families
from tokenreduce.reducers.contract import SHAPES
from tokenreduce.reducers.entries import ENTRIES, SCANS, VIDEO
from tokenreduce.reducers.registry import first_sentence

DOCS = Path(__file__).parent.parent / "docs"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def kinds() -> str:
    """Every method by its kind, large kinds first and baselines last."""
    found: dict[str, list[str]] = {}
    elsewhere = set(tokenreduce.methods("language")) - set(tokenreduce.methods("encoder"))
    for name in tokenreduce.methods():
        facts = tokenreduce.describe(name)
        found.setdefault(facts["kind"], []).append(named(name, set(facts["needs"]), name in elsewhere))
    order = sorted(found, key=lambda kind: (kind == "baseline", -len(found[kind]), kind))
    return table(("kind", "methods"), [(kind, ", ".join(found[kind])) for kind in order])


def named(method: str, needs: set[str], language: bool) -> str:
    """The name, linked to the method's own page if there is one, and the models that it is for."""
    name = f"[`{method}`](docs/{method}.md)" if (DOCS / f"{method}.md").exists() else f"`{method}`"
    limits = {"videos": VIDEO, "state-space models": SCANS, "models with auxiliary heads": {"auxiliary_logits"}}
    only = [models for models, entries in limits.items() if needs & entries] + ["vision-language models"] * language
    return f"{name} ({', '.join(only)})" if only else name


def families() -> str:
    """What the adapters of each library say they are for."""
    found: dict[str, list[str]] = {}
    for library, family in _families():
        if library != "scan":  # models of our own
            importlib.import_module(library)
        words = importlib.import_module(f"{PATCHES}.{library}.{family}").ADAPTER.family
        title, _, which = words.partition(" ")
        found.setdefault(title, []).append(which)
    return table(("library", "backbones"), [(library, "; ".join(which)) for library, which in found.items()])


def names() -> str:
    """Every public name and the first sentence of what it says of itself."""
    rows = []
    for name in tokenreduce.__all__:
        value = getattr(tokenreduce, name)
        kind = "class" if inspect.isclass(value) else "function"
        rows.append((f"`{name}`", kind, first_sentence(value.__doc__)))
    return table(("name", "what", "in one line"), rows)


def entries() -> str:
    """What a layer can show a reducer."""
    rows = [(f"`{name}`", entry.axes if entry.shape else "", entry.says) for name, entry in ENTRIES.items()]
    return table(("entry", "shape", "what it is"), rows)


def shapes() -> str:
    """How budgets spread over layers, and the methods that spread theirs so."""
    users: dict[str, list[str]] = {}
    for name in tokenreduce.methods():
        users.setdefault(tokenreduce.describe(name)["budget"], []).append(f"`{name}`")
    rows = [(f"`{name}`", shape.summary, ", ".join(users.get(shape.summary, []))) for name, shape in SHAPES.items()]
    return table(("shape", "where a budget is spent", "methods"), rows)


def modes() -> str:
    """How tokens come back."""
    return table(("mode", "what each restored token is"), [(f"`{name}`", says) for name, says in MODES.items()])


def tables() -> dict[tuple[str, str], str]:
    """(file, marker) -> table, as in `make_table.tables`."""
    return {
        ("README.md", "kinds"): kinds(),
        ("docs/backbones.md", "backbones"): families(),
        ("docs/api.md", "names"): names(),
        ("docs/api.md", "entries"): entries(),
        ("docs/api.md", "shapes"): shapes(),
        ("docs/api.md", "modes"): modes(),
    }
