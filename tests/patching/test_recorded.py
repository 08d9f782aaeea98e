"""`patch(model, schedule=FILE)`: method, options and modes come from the file, and what is given besides must agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tokenreduce import Schedule, patch, reduced, report, save_patch, unpatch
from tokenreduce.errors import InvalidTypeError, InvalidValueError


def small_vit() -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=7).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    schedule = Schedule.keep({1: 40, 2: 30})
    model = patch(small_vit(), "ward", schedule=schedule, early=0, restore="copy", prop_attn=False)
    save_patch(model, tmp_path / "patch.json")
    return tmp_path / "patch.json"


def test_everything_comes_from_the_file(file: Path, tmp_path: Path) -> None:
    for given in (str(file), file):
        model = patch(small_vit(), schedule=given)
        model(torch.randn(1, 3, 32, 32))
        assert report(model).tokens == (64, 40, 30, 30)
        save_patch(model, tmp_path / "again.json")
        assert json.loads((tmp_path / "again.json").read_text()) == json.loads(file.read_text())
    with reduced(unpatch(model), schedule=file):
        model(torch.randn(1, 3, 32, 32))


def test_what_agrees_may_be_given_and_modes_override(file: Path, tmp_path: Path) -> None:
    model = patch(small_vit(), "ward", schedule=file, early=0, restore="delta", prop_attn=True)
    save_patch(model, tmp_path / "again.json")
    data = json.loads((tmp_path / "again.json").read_text())
    assert (data["restore"], data["prop_attn"], data["options"]["early"]) == ("delta", True, 0)


def test_what_does_not_agree_is_named(file: Path) -> None:
    model = small_vit()
    with pytest.raises(InvalidValueError, match="a schedule for ward, not for 'tome'"):
        patch(model, "tome", schedule=file)
    with pytest.raises(InvalidTypeError, match=r"early was given, .*'early': 0"):
        patch(model, schedule=file, early=0.5)
    with pytest.raises(InvalidTypeError, match="colour was given"):
        patch(model, schedule=file, colour=1)
    with pytest.raises(InvalidTypeError, match=r"flops=0\.5 and schedule"):
        patch(model, schedule=file, flops=0.5)
    with pytest.raises(InvalidTypeError, match="layers and schedule"):
        patch(model, schedule=file, layers=[1])
    with pytest.raises(InvalidTypeError, match="no method was given"):
        patch(model, flops=0.5)


START = '{"tokenreduce": 1, "method": "tome", "options": {}, '


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"tokenreduce": 2}',
        '{"tokenreduce": true}',
        "\xff",
        START + '"schedule": {"rule": "keep", "events": [[1]]}}',
        START + '"schedule": {"rule": "keep", "events": [["one", 0.5]]}}',
        START + '"keep": {"one": 0.5}, "positions": "auto"}',
    ],
)
def test_files_of_something_else_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content.encode("latin1"))
    with pytest.raises(InvalidValueError, match=r"x\.json"):
        patch(small_vit(), schedule=tmp_path / "x.json")
    with pytest.raises(InvalidValueError, match="cannot be read"):
        patch(small_vit(), schedule=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("restor", "says restor, .* valid here: calibration, "), ("keep", "says .*schedule, .* valid beside keep: ")],
)
def test_what_this_version_does_not_read_is_named(name: str, said: str, file: Path) -> None:
    """It would be left out in silence otherwise."""
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: "copy"}))
    with pytest.raises(InvalidValueError, match=said):
        patch(small_vit(), schedule=file)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    model = patch(small_vit(), "tome", ratio=0.5)
    with pytest.raises(InvalidValueError, match=r"nowhere.x\.json cannot be written .*; name a file in a folder"):
        save_patch(model, tmp_path / "nowhere" / "x.json")
    with pytest.raises(InvalidValueError, match="None cannot be written"):
        save_patch(model, None)  # type: ignore[arg-type]
