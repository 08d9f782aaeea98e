"""Diagrams: GitHub draws blocks of Mermaid itself, the site shows pictures, since Mermaid would come from the network.

`npx @mermaid-js/mermaid-cli -i BLOCK.mmd -o docs/images/diagrams/NAME.svg` draws one, NAME being what `name` says.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "images/diagrams"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name(block: str) -> str:
    """Of the file in `FOLDER` that shows this block: another block needs another picture."""
    return f"{hashlib.sha256(block.encode()).hexdigest()[:12]}.svg"


def drawn(text: str) -> str:
    """The text with pictures where they are there, and the block as it is where its picture is missing."""

    def picture(match: re.Match[str]) -> str:
        file = FOLDER / name(match[1])
        return f"![diagram](images/diagrams/{file.name})" if file.exists() else match[0]

    return BLOCK.sub(picture, text)
