"""The command of the quick start that shows what is lost, on folders as users have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_rows import read
from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs/quickstart.md").read_text()


@pytest.mark.parametrize("folders", [("",), ("cat", "dog", "cup")], ids=["images", "three classes"])
def test_it_runs_with_labels_and_without(run: Callable[..., str], tmp_path: Path, folders: tuple[str, ...]) -> None:
    """Three classes are not the model's thousand: no accuracy can be measured, and none is asked for."""
    for place, name in enumerate(folders):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90 * place).convert("RGB").save(tmp_path / "photos" / name / f"{place}.png")
    [command] = re.findall(r"^tokenreduce (eval .*)$", PAGE, re.MULTILINE)
    command = command.replace("FOLDER", str(tmp_path / "photos")).replace("deit_small_patch16_224", "test_vit")
    run(*command.split(), "--no-pretrained", "--workers", 0, "--json", tmp_path / "rows.json")
    rows, settings = read(tmp_path / "rows.json")
    assert settings["images"] == len(folders) and {row["method"] for row in rows} == {"unpatched", "ward", "tome"}
    assert all("top1" not in row for row in rows)
