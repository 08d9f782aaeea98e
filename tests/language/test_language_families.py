"""A family is one file and one row, and docs/vlm.md names all of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from prompting import ROWS

from tokenreduce.patching.finding import LANGUAGE, _families

TESTS = Path(__file__).parents[1]
FILES = {
    "patches/vision_language/aya_vision.py": """
from tokenreduce.patches.vision_language._adapter import VisionLanguageAdapter
from transformers.models.aya_vision.modeling_aya_vision import AyaVisionModel


class TransformersAyaVision(VisionLanguageAdapter):
    name = "transformers_aya_vision"
    models = (AyaVisionModel,)
    tower = "vision_tower"


ADAPTER = TransformersAyaVision()
""",
    "prompt_rows/aya_vision.py": """
import torch
import transformers as hf
from prompting import IMAGE, TEXT, Row


def build():
    vision = hf.SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=4
    )
    config = hf.AyaVisionConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        downsample_factor=2,
        vision_feature_layer=-1,
    )
    return hf.AyaVisionForConditionalGeneration(config)


def encode(names, generator):
    return {"pixel_values": torch.randn(len(names), 3, 32, 32, generator=generator)}


def make_row():
    return Row("aya_vision", build, {"a": (16,), "b": (16,)}, encode, {})
""",
    # What copying the files into the package's folder and beside the other rows would do.
    "added.py": """
import sys
from pathlib import Path

sys.path.insert(0, TESTS)
import prompt_rows
import tokenreduce.patches
import tokenreduce.patches.vision_language

here = Path(__file__).parent
prompt_rows.__path__.append(str(here / "prompt_rows"))
tokenreduce.patches.__path__.append(str(here / "patches"))
tokenreduce.patches.vision_language.__path__.append(str(here / "patches" / "vision_language"))
""".replace("TESTS", repr(str(TESTS))),
}


def test_a_family_is_one_file_and_one_row(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    options = ("-p", "added", "-p", "no:cacheprovider", "-vv", "--tb=short", "-o", "addopts=")
    laws = ("exact", "by_hand", "generating", "turns", "state")
    files = [TESTS / "language" / f"test_language_{name}.py" for name in laws]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", "aya_vision and not pool", *files],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert len(re.findall(r"\[\S*aya_vision\S*\] PASSED", ran.stdout)) >= 20


def test_every_family_has_a_row_and_is_named_on_the_page() -> None:
    families = {family for _, family in _families(LANGUAGE)}
    page = (TESTS.parent / "docs" / "vlm.md").read_text()
    table = page.partition("\n## Families\n")[2].partition("\n## ")[0]
    assert families == {row.name for row in ROWS} == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
