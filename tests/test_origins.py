"""Results say where they come from, and pages say so where the code has changed since."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from scripts import script

origins, code_digests = script("origins"), script("code_digests")
ROOT = Path(__file__).parents[1]
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the sources are not in a git repository")


def test_every_results_file_has_an_origin_and_is_the_one_that_was_noted() -> None:
    names = {path.stem for path in (ROOT / "benchmarks/results").glob("*.json")}
    assert names == set(origins.known()) <= set(origins.ORIGINS)
    for (page, marker), results in origins.TABLES.items():
        if results in set(origins.ORIGINS) - names:
            text = (ROOT / page).read_text().partition(f"<!-- {marker} table -->")[2].partition("<!-- end of")[0]
            assert "Not measured for this version yet" in text, results
    replaced = [name for name in names if origins.known()[name]["results"] != origins.content(name)]
    assert not replaced, f"run: python benchmarks/origins.py measured {' '.join(replaced)}"


def test_what_results_measure_is_there() -> None:
    paths = {path for name in origins.ORIGINS for path in origins.watched(name)}
    assert [path for path in paths if not (ROOT / path).exists()] == []
    named = {name for found in origins.TABLES.values() for name in ((found,) if isinstance(found, str) else found)}
    assert named <= set(origins.ORIGINS)
    for name, (command, _) in origins.ORIGINS.items():
        made_by = re.findall(r"(?:benchmarks|examples)/\w+\.py", command)
        assert made_by or command.startswith(("tokenreduce ", "make ")), name


@needs_git
def test_a_changed_file_makes_results_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    for name, text in (("code/a.py", "a = 1\n"), ("other.py", ""), ("benchmarks/results/speed.json", "{}")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(origins, "ROOT", tmp_path)
    monkeypatch.setattr(code_digests, "ROOT", tmp_path)
    monkeypatch.setattr(origins, "RESULTS", tmp_path / "benchmarks/results")
    monkeypatch.setattr(origins, "FILE", tmp_path / "benchmarks/origins.json")
    monkeypatch.setattr(origins, "ORIGINS", {"speed": ("make speed", ("code",))})

    def state(text: str, where: str = "code/a.py") -> bool:
        (tmp_path / where).write_text(text)
        code_digests.files_now.cache_clear()
        return origins.outdated("speed")

    git("init")
    git("add", ".")
    git("commit", "-m", "measured")
    monkeypatch.setattr("sys.argv", ["origins.py", "measured", "speed"])
    code_digests.files_now.cache_clear()
    origins.main()
    assert not state("a = 1\n") and not state("b = 1\n", "other.py")
    assert not state('"""What it says."""\n\na = 1  # a reason\n')
    assert state("a = 2\n") and not state("a = 1\n")
    assert origins.record("speed", "HEAD") == origins.known()["speed"]  # of the commit, what the files said
    assert "make speed" in origins.note("speed") and "changed" not in origins.note("speed")
    assert state("a = 2\n") and "changed since" in origins.note("speed") and "**changed**" in origins.table()
    code_digests.files_now.cache_clear()
