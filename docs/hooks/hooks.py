"""What MkDocs calls while it builds the site: pages that are no files of docs/, and links that leave docs/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import tokenreduce

sys.path.insert(0, str(Path(__file__).parent))

import diagrams
import links
import method_pages
import reference_page

ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    """Pages of methods go into the section Methods, and pages that nobody put into `nav` into More."""
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    sections["Methods"] += method_pages.sources()
    named = {source for entry in config.nav for source in leaves(entry)}
    more = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in named)
    if more:
        config.nav.append({"More": more})
    return config


def leaves(entry: Any) -> list[str]:
    """The sources of a part of `nav`."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [source for part in parts for source in leaves(part)]


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made here."""
    made: dict[str, str | bytes] = {"reference.md": reference_page.text()}
    made |= {name: (ROOT / file).read_text() for file, name in links.ROOT_PAGES.items()}
    made |= method_pages.pages()
    made |= links.source_pages()
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The text with links as they are in the site."""
    text = links.localised(markdown, page.file.src_uri)
    return text if "/" in page.file.src_uri else links.to_methods(diagrams.drawn(text), tokenreduce.methods())
