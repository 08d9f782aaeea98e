"""Dense tasks from images to rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dense_models
import pytest
import torch
from dense_data import ALIGN, HEAD, HEADLINES, MAKERS, pictures, samples
from torch import Tensor, nn

import tokenreduce
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.embedded import load_scenes
from tokenreduce.lab.quality.named import make_metric
from tokenreduce.lab.quality.predictors import load_predictor


@pytest.mark.parametrize("task", MAKERS)
def test_rows(task: str, tmp_path: Path) -> None:
    predictor: Any = load_predictor(f"hf:{MAKERS[task](tmp_path)}", task)
    shown, seen = samples(task), []
    if task == "detection":  # a third of what it says is true: a random model would find nothing
        for sample in shown.samples:
            found = predictor([sample["image"]])[0]
            sample["target"] = {"boxes": found["boxes"][::3], "labels": found["labels"][::3] + 1}
    arms = [Arm("tome", flops=0.9), Arm("random", ratio=0.5)]
    full, *reduced = rows = measure_dense(
        predictor, arms, shown, 2, align=ALIGN[task], rounds=20, progress=lambda part, what: seen.append(part)
    )
    assert seen == [0, 0.4, 0.8]
    metric = make_metric(shown, ALIGN[task])
    for sample in shown.samples:
        metric.update(predictor([sample["image"]]), [sample["target"]])
    figures = metric.compute()
    assert 0 < figures[HEADLINES[task]] < 1
    assert all(full[key] == pytest.approx(value, abs=1e-9) for key, value in figures.items())
    pixels = predictor.processor(images=[pictures(1)[0]], return_tensors="pt")["pixel_values"]
    assert full["macs"] == tokenreduce.count_flops(predictor.module, pixels).total
    grid = pixels.shape[2] // 4 * (pixels.shape[3] // 4)
    assert (full["method"], full["budget"], full["flops_share"], full["tokens_left"]) == ("unpatched", None, 1, grid)
    assert full["change"] == 0 and full["change_interval"] == (0, 0)
    assert [(row["method"], row["budget"]) for row in reduced] == [("tome", "flops=0.9"), ("random", "ratio=0.5")]
    for row in rows:
        assert row.keys() == HEAD | figures.keys() | {"change_interval"} and row["images"] == 5
    for row in reduced:
        assert row["macs"] < full["macs"] and row["flops_share"] == row["macs"] / full["macs"]
        assert row["tokens_left"] < grid and any(row[key] != full[key] for key in figures)
        headline = HEADLINES[task]
        assert row["change"] == row[headline] - full[headline]
        assert row["change_interval"][0] <= row["change"] <= row["change_interval"][1]
    assert reduced[1]["tokens_left"] == grid / 2
    assert reduced[0]["flops_share"] == pytest.approx(0.9, abs=0.02)  # of the whole module, heads included
    with pytest.raises(ValueError, match="is not patched"):
        tokenreduce.report(predictor.module)


def test_a_reduced_row_is_the_patched_model(tmp_path: Path) -> None:
    folder, shown = dense_models.segmenter(tmp_path), samples("segmentation")
    _, row = measure_dense(load_predictor(f"hf:{folder}", "segmentation"), [Arm("tome", r=9)], shown)
    patched = load_predictor(f"hf:{folder}", "segmentation")
    tokenreduce.patch(patched.module, "tome", r=9)
    metric = make_metric(shown)
    metric.update(patched([sample["image"] for sample in shown.samples]), [s["target"] for s in shown.samples])
    assert {key: row[key] for key in ("miou", "pixel_accuracy")} == metric.compute()


def test_a_method_that_decides_counts_itself(tmp_path: Path) -> None:
    name = next(name for name in tokenreduce.methods() if tokenreduce.describe(name)["adaptive"])
    model, shown = load_predictor(f"hf:{dense_models.segmenter(tmp_path)}", "segmentation"), samples("segmentation")
    full, row = measure_dense(model, [Arm(name)], shown, batch_size=5)
    tokenreduce.patch(model.module, name)
    left, macs = [], []
    for sample in shown.samples:
        inputs = model.processor(images=[sample["image"]], return_tensors="pt", input_data_format="channels_first")
        macs.append(tokenreduce.count_flops(model.module, inputs["pixel_values"]).total)
        left.append(tokenreduce.report(model.module).tokens_left)
    assert row["tokens_left"] == pytest.approx(sum(left) / 5) and row["budget"] == "none"
    assert row["macs"] == pytest.approx(sum(macs) / 5, abs=1) and row["macs"] < full["macs"]


def test_what_an_arm_cannot_reach_is_a_row(tmp_path: Path) -> None:
    model, shown = load_predictor(f"hf:{dense_models.segmenter(tmp_path)}", "segmentation"), samples("segmentation")
    rows = measure_dense(model, [Arm("pool", ratio=0.999), Arm("random", ratio=0.5)], shown)
    assert [(row["method"], "refused" in row) for row in rows] == [
        ("unpatched", False),
        ("random", False),
        ("pool", True),
    ]
    assert [row["options"] for row in rows] == [{}] * 3
    with pytest.raises(InvalidValueError, match="asks for"):
        measure_dense(model, [Arm("pool", ratio=0.999)], shown)
    assert len(measure_dense(model, [], shown)) == 1


class Brightness:
    """A predictor of one's own: the smallest that fits."""

    def __init__(self, module: nn.Module, calls: bool = True) -> None:
        self.module, self.calls = module, calls

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        run = self.module if self.calls else self.module.forward
        logits = [run(image[None, :, :32, :32] / 255)[0] for image in images]
        return [(image[0] > 127).long() + (one.argmax() > 1) for image, one in zip(images, logits, strict=True)]


def test_a_predictor_of_ones_own() -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=5).eval()
    full, row = measure_dense(Brightness(vit), [Arm("tome", r=3)], samples("segmentation"))
    assert full["macs"] == tokenreduce.count_flops(vit, torch.rand(1, 3, 32, 32)).total > row["macs"]
    assert full["tokens_left"] == 16 and row["tokens_left"] == 7
    with pytest.raises(InvalidTypeError, match=r"Brightness does not call its module; it must call self\.module"):
        measure_dense(Brightness(vit, calls=False), [], samples("segmentation"))


@pytest.mark.parametrize(("batch_size", "count"), [(0, 3), (-1, 3), (4, 0)])
def test_there_must_be_something_to_measure_on(batch_size: int, count: int) -> None:
    predictor = load_predictor("scene_segmenter", "segmentation", pretrained=False)
    data = load_scenes("segmentation", count=3)
    data = dataclasses.replace(data, samples=[data.samples[index] for index in range(count)])
    with pytest.raises(InvalidValueError, match=f"batch_size is {batch_size} and there are {count} images; both must"):
        measure_dense(predictor, [Arm("tome", flops=0.8)], data, batch_size)
