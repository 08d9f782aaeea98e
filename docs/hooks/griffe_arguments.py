"""Lets mkdocstrings read docstrings that say one thing of several arguments: "height, width: of the image"."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

SHARED = re.compile(r"^( {4,}\*{0,2}\w+)((?:, \*{0,2}\w+)+)(?: \([^)]*\))?: ", re.MULTILINE)


class SharedArguments(Extension):
    """Gives each of them a line of its own that names the others' line."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.is_alias or not obj.docstring:
            return
        before, mark, arguments = obj.docstring.value.partition("Args:\n")
        obj.docstring.value = before + mark + SHARED.sub(apart, arguments)


def apart(match: re.Match[str]) -> str:
    """A line for each name; all but the last say "as the next"."""
    indent = match[1][: len(match[1]) - len(match[1].lstrip())]
    *first, last = (match[1].strip() + match[2]).split(", ")
    return "".join(f"{indent}{name}: as the next.\n" for name in first) + f"{indent}{last}: "
