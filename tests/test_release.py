"""What a release says of itself in several places agrees."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib
import yaml
from scripts import script

import tokenreduce

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "tokenreduce.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == tokenreduce.__version__


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog: releases, the newest first, and under each only these headings, each once."""
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert releases[0].startswith("Unreleased\n")
    assert all(re.match(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d\n", release) for release in releases[1:])
    for release in releases:
        headings = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert len(headings) == len(set(headings)) > 0
        assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_public_ci_runs_the_versions_that_the_page_names() -> None:
    flow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    columns = ("python", "torch", "torchvision", "timm", "transformers")
    rows = flow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    versions = script("versions")
    assert {tuple(str(row[name]) for name in columns) for row in rows} == set(versions.ENVIRONMENTS.values())
    steps = " ".join(step.get("run", "") for step in flow["jobs"]["versions"]["steps"])
    assert all(f'"{tool}"' in steps for tool in versions.TOOLS) and all(path in steps for path in versions.TESTS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={min((row['python'] for row in rows), key=lambda v: int(v[2:]))}"


def test_forms_for_issues_are_whole() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms[:2]:
        data = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= set(data) or form.name == "config.yml"
        for item in data.get("body", ()):
            assert item["type"] in ("textarea", "input", "markdown") and item["attributes"]["label"]
