"""What the README and the docs say is run: code blocks, commands and the table of methods."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import transformers
from scripts import script

import tokenreduce

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(block, monkeypatch, tmp_path) -> None:
    """As written, except that weights are random: tests do not download."""
    from tokenreduce.reducers import registry

    tokenreduce.methods()  # all are registered before the copy is made
    create, known = timm.create_model, dict(registry._registry)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: create(name, **kw))
    small = transformers.ViTConfig(num_hidden_layers=4)
    made = classmethod(lambda cls, name: transformers.ViTForImageClassification(small))
    monkeypatch.setattr(transformers.AutoModelForImageClassification, "from_pretrained", made)
    monkeypatch.chdir(tmp_path)
    module = ModuleType("readme_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    try:
        exec(compile(block, "README.md", "exec"), vars(module))
    finally:
        registry._registry.clear()
        registry._registry.update(known)


def test_commands_exist() -> None:
    from tokenreduce.cli.app import app

    commands = {command.name for command in app.registered_commands}
    assert set(re.findall(r"^\| `tokenreduce (\w+)", README, re.MULTILINE)) == commands
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    targets |= set(re.findall(r"`make ([\w-]+)", README))
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets <= known


def test_every_method_has_its_row() -> None:
    table = (ROOT / "docs/methods.md").read_text().partition("<!-- methods table -->")[2].partition("<!-- end of")[0]
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", table, re.MULTILINE)}
    assert sorted(rows) == tokenreduce.methods()
    for name, row in rows.items():
        facts = tokenreduce.describe(name)
        assert f"| {facts['kind']} |" in row and facts["paper"] in row
        assert f"`{name}`" in README


def test_pictures_and_links_exist() -> None:
    for text, folder in ((README, ROOT), ((ROOT / "docs/methods.md").read_text(), ROOT / "docs")):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (folder / target).exists(), target


def test_tables_are_those_of_the_results() -> None:
    """`python benchmarks/make_table.py --write` makes them."""
    assert script("make_table").outdated() == []


def test_methods_that_other_models_need_are_marked() -> None:
    """A reader of the table must not try what a vision transformer refuses."""
    table = README.partition("<!-- kinds table -->")[2].partition("<!-- end of kinds")[0]
    for name in set(tokenreduce.methods("language")) - set(tokenreduce.methods("encoder")):
        assert f"`{name}` (vision-language models" in table, name
    assert "`tome`, " in table or "`tome` |" in table


def test_extras_of_commands_and_of_the_table_are_there() -> None:
    import tomllib

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    commands = re.findall(r"^\| `tokenreduce .*` \| `([\w,-]+)` \|$", README, re.MULTILINE)
    named = {name for found in commands for name in found.split(",")}
    assert len(commands) >= 10 and {"bench", "report", "ray", "real", "transformers"} <= named <= extras
    install = README.partition("| extra | for |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`([\w-]+)`", "".join(row.split("|")[1] for row in install.splitlines() if row)))
    assert listed == extras - {"docs", "dev", "all"}
