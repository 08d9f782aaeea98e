"""What papers state of their methods: formulas and figures, written down in docs/papers.toml."""

from __future__ import annotations

import functools
from typing import Any

import measured
import tomllib

import tokenreduce

FILE = measured.ROOT / "docs/papers.toml"
NO_FIGURE = "No figure of the paper is written down here (`docs/papers.toml`)."


@functools.cache
def read() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text())


def formula(name: str) -> str:
    """The method in a few lines; empty where nobody wrote them."""
    lines = read().get(name, {}).get("formula", "").strip("\n")
    return f"```text\n{lines}\n```" if lines else ""


def published(name: str) -> str:
    """Figures of training-free models, as others state them; nothing for a method without a paper."""
    if tokenreduce.describe(name)["paper"] == "none":
        return ""
    known = read().get(name, {})
    rows = known.get("published", [])
    note = known.get("note", "")
    if not rows:
        return " ".join(filter(None, [NO_FIGURE, note]))
    keys = ("model", "data", "budget", "full", "reduced", "source")
    lines = [[str(row[key]) for key in keys] for row in rows]
    drawn = measured.table(("model", "data, figure", "budget", "unreduced", "reduced", "source"), lines)
    return "\n\n".join(filter(None, [drawn, note, "Not measured here, but read: `docs/papers.toml`."]))


def reproduced(name: str) -> str:
    """What of the paper was checked here, and what was not."""
    known = tokenreduce.describe(name)
    if known["checked"] == "unknown":
        said = "Nothing was compared with anything yet."
    else:
        said = f"Compared with: {known['checked']}. [Methods](../methods.md#notes) says how."
    if known["paper"] == "none":
        return said
    return (
        f"{said} The accuracies that the paper publishes were not reproduced: neither their data nor their weights "
        "were there ([Reproducing published numbers](../reproduce.md)). What was measured instead stands above."
    )
