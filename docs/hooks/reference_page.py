"""The page of public names: what their docstrings say, by mkdocstrings."""

from __future__ import annotations

import inspect

import tokenreduce

HEAD = """# Public names

What `tokenreduce` exports, with signatures. [What is public](api.md) has it in one table, and commands and JSON keys.
"""


def text() -> str:
    """Every name of `tokenreduce.__all__`, functions first."""
    found: dict[str, list[str]] = {"Functions": [], "Classes": []}
    for name in tokenreduce.__all__:
        kind = "Classes" if inspect.isclass(getattr(tokenreduce, name)) else "Functions"
        found[kind].append(f"::: tokenreduce.{name}\n")
    return "\n".join([HEAD, *(f"## {title}\n\n" + "\n".join(names) for title, names in found.items())])
