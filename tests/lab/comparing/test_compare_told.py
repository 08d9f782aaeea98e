"""What a comparison tells of its images, its progress and its pictures, and what it does once for all rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tokenreduce import Schedule, patch, save_patch
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.comparing import Comparison, compare_methods, reading, running
from tokenreduce.lab.comparing.asking import chosen_by
from tokenreduce.lab.comparing.figures import figures
from tokenreduce.lab.comparing.pictures import middle_arms
from tokenreduce.lab.quality.loading import Head, Setup
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.lab.team import Team

SMALL = Setup(limit=12, batch_size=5)


def test_images_that_chose_a_schedule_are_counted(tmp_path: Path) -> None:
    file, other = tmp_path / "s.json", tmp_path / "by_hand.json"
    save_patch(patch(fashion_vit(), "tome", schedule=Schedule.keep({3: 0.5})), file)
    other.write_text(file.read_text())
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"calibration": {"image_marks": ["a", "b"]}}))
    assert chosen_by([other], ["a", "c"]) == [] and chosen_by([file], ["c", "d"]) == []
    [said] = chosen_by([other, file], ["a", "c", "a"])
    assert said.startswith(f"2 of the 3 images are among those that {file} was chosen on")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Seven images and a broken one, which comes last."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(7):
        noise = torch.randint(0, 256, (28, 28), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
    (folder / "9.png").write_bytes(b"no picture")
    return folder


def test_a_finished_comparison_of_many_images_says_the_same_again(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that are not kept in memory are read again; those of the last batch count too."""
    monkeypatch.setattr(reading, "MEMORY", 1)
    setup = Setup(data=str(photographs), batch_size=3)
    run: dict[str, Any] = {"out": tmp_path / "out", "setup": setup, "speed": None}
    first = compare_methods(["tome"], [0.8], **run)
    assert (first.settings["images"], len(first.settings["left_out"])) == (7, 1)
    again = compare_methods(["tome"], [0.8], **run)
    assert again.settings == first.settings and again.remarks == first.remarks and again.rows == first.rows
    Image.new("L", (28, 28)).save(photographs / "6.png")
    with pytest.raises(InvalidValueError, match=r"holds rows of other settings \(pixels '"):
        compare_methods(["tome"], [0.8], **run)


def test_other_weights_are_told_from_other_images(photographs: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {"out": tmp_path / "out", "speed": None}
    setup = Setup(data=str(photographs))
    compare_methods(["tome"], [0.8], setup=setup, **run)
    with pytest.raises(InvalidValueError) as error:
        compare_methods(["tome"], [0.8], setup=replace(setup, pretrained=False), **run)
    assert "weights '" in str(error.value) and "pixels" not in str(error.value)


def test_progress_moves_inside_of_a_row_and_begins_at_nothing(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    compare_methods(
        ["tome", "evit"], [0.8], out=tmp_path, setup=SMALL, speed=None, progress=lambda *given: told.append(given)
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == pytest.approx([0, 5 / 24, 10 / 24, 12 / 24, 17 / 24, 22 / 24])
    assert told[0][1] == "tome at flops=0.8" and told[-1][1] == "evit at flops=0.8"


def test_texts_are_encoded_once_for_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def embeddings(file: object, model: object, names: tuple[str, ...]) -> Tensor:
        asked.append(model)
        return torch.randn(len(names), fashion_vit().num_features, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr("tokenreduce.lab.quality.loading.text_embeddings", embeddings)
    head = Head("zero-shot", text_model="a:b")
    found = compare_methods(["tome", "evit"], [0.8], out=tmp_path, setup=SMALL, head=head, speed=None)
    assert len(found.rows) == 3 and asked == ["a:b"]


def comparison_of(rows: list[Row], arms: list[Arm], budgets: list[float]) -> Comparison:
    return Comparison(rows, {"budgets": budgets}, "", [], nn.Identity(), torch.zeros(1), arms)


def test_tokens_are_drawn_at_one_budget() -> None:
    def row(arm: Arm, error: float) -> Row:
        return {"method": arm.method, "budget": arm.budget, "class_error": error, "token_error": error}

    arms = [Arm("tome", schedule="s.json"), Arm("tome", flops=0.9), Arm("ward", flops=0.8), Arm("evit", flops=0.8)]
    rows = [row(arm, 1 - place / 10) for place, arm in enumerate(arms)]
    assert middle_arms(comparison_of(rows, arms, [0.8, 0.3, 0.2])) == [arms[3], arms[2]]
    files = [Arm("tome", schedule="s.json"), Arm("tome", schedule="t.json")]
    assert middle_arms(comparison_of([row(arm, 1.0) for arm in files], files, [0.8])) == files[:1]


def test_a_method_that_was_only_calibrated_has_no_line(tmp_path: Path) -> None:
    def row(method: str, budget: str, share: float) -> Row:
        errors = {"class_error": share / 10, "token_error": share / 5}
        return {"method": method, "budget": budget, "flops_share": share, "tokens_left": 9, **errors}

    rows = [row("unpatched", "None", 1.0), row("tome", "schedule=s.json", 0.7), row("ward", "flops=0.8", 0.8)]
    for one in figures(rows):
        assert [trace["name"] for trace in one["data"]] == ["ward", "calibrated"] and "for 1 methods" in one["about"]


@pytest.mark.parametrize(
    ("places", "refused"), [(["a 1", "a 2"], False), (["a 1", "a 1"], True), (["a 1", "b 1"], False)]
)
def test_processes_on_one_card_are_not_timed(places: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Team):
        def gather(self, value: Any) -> list[Any]:
            assert value == "this card"
            return places

        def once(self, make: Callable[[], Any]) -> Any:
            return make()

    monkeypatch.setattr(running, "card_name", lambda device: "this card")
    with pytest.raises(InvalidTypeError, match="2 processes have 1 cards") if refused else nullcontext():
        running.check_alone(Two(0, 2), torch.device("cuda"))
