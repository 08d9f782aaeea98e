"""What the pages say of the code is so: links, paths, names, code blocks, and the lists of api.md."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomllib
import typer

import tokenreduce
from tokenreduce.cli.app import app
from tokenreduce.cli.output import COLUMNS
from tokenreduce.maps.restoring import MODES
from tokenreduce.reducers.contract import SHAPES
from tokenreduce.reducers.entries import ENTRIES

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(ROOT.glob("docs/*.md"))]
SOURCES = [*(ROOT / "tokenreduce").rglob("*.py"), *(ROOT / "patches").rglob("*.py")]
FOLDERS = "tokenreduce|patches|tests|docs|benchmarks|csrc|examples"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def section(page: str, heading: str) -> str:
    """The text below a heading of a page in docs/."""
    text = (ROOT / "docs" / page).read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_column(text: str) -> list[str]:
    """The names in the first cells of a table."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def anchor(heading: str) -> str:
    """The name under which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        name, _, place = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if place:
            assert place in {anchor(h) for h in re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)}, target


@every_page
def test_paths_exist(page: Path) -> None:
    """Every path in backticks that begins with a folder of the repository, and every page or list beside them."""
    for word in re.findall(r"`([^`\n]+)`", prose(page)):
        for path in re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*", word):
            to_write = re.search(r"[A-Z]{4}|anchors|toymodels", path)  # what CONTRIBUTING.md has the reader write
            assert to_write or (ROOT / path).exists(), f"{path} in `{word}`"
        if re.search(r"^[\w.-]+\.(md|toml|txt|cff)$", word):
            assert (ROOT / word).exists() or (page.parent / word).exists(), word


@every_page
def test_dotted_names_exist(page: Path) -> None:
    """Every `tokenreduce.something` in the text and in the prose around it."""
    for name in set(re.findall(r"`(tokenreduce(?:\.\w+)+)", prose(page))):
        if page.name == "CHANGELOG.md" and re.match(r"tokenreduce\.(bench|evaluation|backbones|kernels)$", name):
            continue  # names of the past
        assert resolves(name), name


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(page, block, id=f"{page.name}-{i}") for page in PAGES for i, block in enumerate(blocks(page))],
)
def test_code_compiles_and_its_imports_exist(page: Path, block: str) -> None:
    if block.startswith(" "):
        return  # a quoted line, which tests/test_contributing.py compares with its file
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(known(alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert all(known(f"{node.module}.{alias.name}") for alias in node.names), ast.unparse(node)


def known(name: str) -> bool:
    """Whether an imported name exists; helpers of the tests and the toy library of CONTRIBUTING.md are run there."""
    return name.split(".")[0] in ("toymodels", "backbones", "hugging", "cases", "__future__") or resolves(name)


@every_page
def test_commands_have_their_options(page: Path) -> None:
    """Every `tokenreduce command --option` in blocks and in the text; and scripts that blocks run are there."""
    commands = typer.main.get_command(app).commands
    for line in re.findall(r"(?:^|`)(tokenreduce [a-z]+[^`\n]*)", page.read_text(), re.MULTILINE):
        name, options = line.split()[1], re.findall(r"(?<= )--[\w-]+", line)
        if options or name in commands:
            known = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            assert set(options) <= known, line
    for script in re.findall(r"^(?:\S*python3?) ([\w/]+\.py)", page.read_text(), re.MULTILINE):
        assert (ROOT / script).exists(), script


def test_a_newcomer_needs_at_most_three_commands() -> None:
    """Of the README, and of the quick start before its first block of Python."""
    readme = section_of(ROOT / "README.md", "from nothing", "## Documentation")
    page = section_of(ROOT / "docs/quickstart.md", "## 1.", "```python")
    assert len(readme) <= 3 and readme[0].startswith("pip install") and "tokenreduce bench --model" in readme[-1]
    assert len(page) <= 3 and readme[-1] == page[-1]


def section_of(page: Path, start: str, end: str) -> list[str]:
    """The commands of a page between two words."""
    text = page.read_text().partition(start)[2].partition(end)[0]
    return [
        line for block in re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()
    ]


FIGURE = re.compile(r"[-+]?\d[\d.,]*( ?[x%]| ms| µs)?$|\d[\d.]*[,;] ")


@every_page
def test_tables_of_figures_are_made_of_results(page: Path) -> None:
    """By `benchmarks/make_table.py`, between their comments."""
    text = re.sub(r"<!-- (.+?) table -->\n.*?<!-- end of \1 table -->", "", prose(page), flags=re.DOTALL)
    typed = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()[2:]
        cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
        if sum(bool(FIGURE.match(cell)) for cell in cells) >= 2:
            typed.append(rows[0])
    assert not typed


# api.md
def test_all_names_are_listed() -> None:
    assert first_column(section("api.md", "Names")) == tokenreduce.__all__
    assert all((getattr(tokenreduce, name).__doc__ or "").strip() for name in tokenreduce.__all__)


def test_all_words_are_listed() -> None:
    for heading, known_words in (
        ("What a reducer may need", ENTRIES),
        ("How a budget spreads", SHAPES),
        ("How tokens come back", MODES),
    ):
        rows = re.findall(r"^\| `(\w+)` \|", section("api.md", heading), re.MULTILINE)
        assert rows == list(known_words), heading
    text = section("api.md", "What a reducer may need")
    for name, entry in ENTRIES.items():
        assert f"| `{name}` | {entry.axes if entry.shape else ''} |" in text


def test_all_commands_are_listed() -> None:
    listed = first_column(section("api.md", "Commands"))
    commands = typer.main.get_command(app).commands
    assert {name for name in listed if name.startswith("tokenreduce ")} == {f"tokenreduce {name}" for name in commands}
    with_json = {name for name, command in commands.items() if "--json" in [o for p in command.params for o in p.opts]}
    # These write their results by `--out`.
    assert set(commands) - with_json == {"compare"}


def test_all_keys_are_listed() -> None:
    listed = first_column(section("api.md", "JSON keys"))
    assert len(listed) == len(set(listed))
    assert set(listed) - set(COLUMNS) == {"options", "refused", "uncounted", "images"}
    assert set(COLUMNS) <= set(listed)
    # Rows that commands have written.
    demos = [path.stem for path in (ROOT / "benchmarks/results").glob("demo*.json")]
    for name in (*demos, "deit_small_tome_r13", "segmentation", "detection"):
        rows = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["rows"]
        assert rows and {key for row in rows for key in row} <= set(listed), name


def test_all_environment_variables_are_listed() -> None:
    """Those that the code reads; strings are what it looks up."""
    read: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
                read.add(ast.literal_eval(node.args[0]))
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                read.add(ast.literal_eval(node.slice))
    rows = re.findall(r"^\| `(\w+)` \|", section("api.md", "Environment variables"), re.MULTILINE)
    assert set(rows) == read and len(rows) == len(read) >= 4


# architecture.md
def test_all_rooms_are_listed() -> None:
    """Every package, by its topmost folder, and in the order of `tests/test_architecture.py`."""
    listed = first_column(section("architecture.md", "Rooms"))
    rooms = [name for name in listed if name.startswith(("tokenreduce/", "patches/"))]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {name.split(".")[1] for name in packages if "." in name} - {"csrc"}
    assert {room.removeprefix("tokenreduce/").strip("/") for room in rooms} == folders | {"errors.py", "__init__.py"}
    source = (ROOT / "tests/test_architecture.py").read_text()
    order = re.findall(r'\(\s*"(\w+)"', source.partition("ROOMS = (")[2].partition("\n)")[0])
    known_order = [name for name in dict.fromkeys(order) if name in folders]
    assert [r.removeprefix("tokenreduce/").strip("/") for r in rooms if r.endswith("/")] == known_order


def test_named_classes_are_where_the_page_says() -> None:
    """**`Name`** (`path`) means that the file defines the name."""
    text = (ROOT / "docs/architecture.md").read_text()
    places = re.findall(r"`(\w+)`(?:\*\*)?\s\(`([\w/]+\.py)`\)", text)
    assert len(places) >= 6
    for name, path in places:
        source = (ROOT / path).read_text()
        assert re.search(rf"^class {name}\b", source, re.MULTILINE) or Path(path).stem == name.lower(), (name, path)


def test_exportable_is_what_the_page_on_export_says() -> None:
    """All methods that need neither a video nor auxiliary heads nor crops export."""
    for name in tokenreduce.methods():
        facts = tokenreduce.describe(name)
        if not {"frames", "pixels", "auxiliary_logits", "crops"} & set(facts["needs"]):
            assert facts["exportable"] is True, name


def test_figures_in_the_text_of_the_readme_are_those_of_the_results() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    share, loss, ap_loss = re.search(
        r"At (\d+) % of the compute `ward` loses ([\d.]+) points of mIoU with .* and ([\d.]+) points of AP50", text
    ).groups()
    for task, typed in (("segmentation", loss), ("detection", ap_loss)):
        rows = json.loads((ROOT / f"benchmarks/results/{task}.json").read_text())["rows"]
        row = next(r for r in rows if (r["method"], r["budget"]) == ("ward", f"flops={int(share) / 100}"))
        assert typed == f"{-100 * row['change']:.2f}", task
