"""Links of the pages: as files they lead through the repository, so that GitHub follows them; in the site, where most
of the repository is missing, to pages that are made of the files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LANGUAGES = {".py": "python", ".cpp": "cpp", ".cu": "cpp", ".h": "cpp", ".toml": "toml"}
DATA = (".json",)  # kept as they are: too large to be read as pages
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCES = re.compile(r"^(?:```.*?^```$|~~~.*?^~~~$)", re.DOTALL | re.MULTILINE)
MARKERS = re.compile(r"^<!-- .* -->\n", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)  # of a table, by a name in code


def origin(page: str) -> str:
    """The file, from the root of the repository, that a page of the site is made of."""
    back = {name: file for file, name in ROOT_PAGES.items()}
    if page.startswith("source/"):
        return page.removeprefix("source/").removesuffix(".page.md")
    return back.get(page, f"docs/{page}")


def inside(file: str) -> str:
    """The page or file of the site for a path from the root of the repository."""
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    return ROOT_PAGES.get(file, f"source/{file}" if file.endswith(DATA) else f"source/{file}.page.md")


def targets(text: str, file: str) -> Iterator[str]:
    """Where the links of a file lead, from the root of the repository."""
    for target in LINK.findall(FENCES.sub("", text)):
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z]+:", target):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(file), path))


def localised(text: str, page: str) -> str:
    """The text of a page with its links as they are in the site, and without the comments around tables."""
    folder = posixpath.dirname(origin(page))
    here = posixpath.dirname(page) or "."

    def rewritten(match: re.Match[str]) -> str:
        path, mark, place = match[1].partition("#")
        if not path or re.match(r"[a-z]+:", match[1]):
            return match[0]
        file = posixpath.normpath(posixpath.join(folder, path))
        return f"]({posixpath.relpath(inside(file), here)}{mark}{place})"

    parts, end = [], 0
    for fence in FENCES.finditer(text):
        parts += [outside(text[end : fence.start()], rewritten), fence[0]]
        end = fence.end()
    return "".join([*parts, outside(text[end:], rewritten)])


def outside(prose: str, rewritten: Callable[[re.Match[str]], str]) -> str:
    """Prose as the site needs it; Markdown would take a comment and the table below it for one block of HTML."""
    return MARKERS.sub("\n", LINK.sub(rewritten, prose))


def to_methods(text: str, methods: Collection[str]) -> str:
    """The text of a page beside index.md where rows of tables lead to the page of the method that they begin with."""
    return ROW.sub(lambda row: f"| [`{row[1]}`](methods/{row[1]}.md) |" if row[1] in methods else row[0], text)


def source_pages() -> dict[str, str]:
    """A page for each file of the repository that pages link to and that is none itself; data as it is."""
    waiting = [*ROOT_PAGES, *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
    seen, made = set(waiting), {}
    while waiting:
        file = waiting.pop()
        if inside(file).startswith("source/"):
            made[inside(file)] = source_page(file)
        if file.endswith(".md"):
            found = {target for target in targets((ROOT / file).read_text(), file) if target not in seen}
            waiting += sorted(target for target in found if inside(target).startswith("source/"))
            seen |= found
    return made


def source_page(file: str) -> str:
    """The text of a file, of code as a page; of a folder, the names in it."""
    path = ROOT / file
    if path.suffix in DATA:
        return path.read_text()
    if path.is_dir():
        return "\n".join([f"# {file}", "", *(f"- `{one.name}`" for one in sorted(path.iterdir()))])
    if path.suffix == ".md":
        return path.read_text()
    return f"# {path.name}\n\n`{file}`\n\n```{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}```\n"
