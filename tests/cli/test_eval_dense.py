"""`tokenreduce eval` of dense tasks, end to end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_models
import numpy as np
import pytest
from dense_data import HEAD, MAKERS, pictures, samples
from dense_files import write
from torch.utils.data import Subset

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.quality import evaluation, predictors
from tokenreduce.lab.quality import named as named_data
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.named import load_dense
from tokenreduce.lab.quality.predictors import load_predictor


def write_folders(root: Path) -> None:
    """Data of every task in their official layouts, all in one folder."""
    for i, picture in enumerate(pictures(4)):
        rgb = picture.permute(1, 2, 0).numpy()
        write(root / "images" / "validation" / f"ADE_val_{i}.jpg", rgb)
        write(root / "annotations" / "validation" / f"ADE_val_{i}.png", (rgb[..., 0] // 2).astype(np.uint8))
        write(root / "val2017" / f"{i}.jpg", rgb)
        write(root / "rgb" / f"{i}.png", rgb)
        write(root / "depth" / f"{i}.png", 1000 + rgb[..., 1].astype(np.uint16) * 10)
    content: dict[str, Any] = {"categories": [{"id": i + 1, "name": name} for i, name in enumerate(dense_models.NAMES)]}
    content["images"] = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 48} for i in range(4)]
    box = {"bbox": [10, 8, 20, 20], "iscrowd": 0, "area": 400}
    content["annotations"] = [
        {"id": 5 * i + k, "image_id": i, "category_id": k + 1, **box} for i in range(4) for k in range(5)
    ]
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


CASES = {
    "segmentation": ("ade20k", ("mIoU", "pixel accuracy"), {"miou", "pixel_accuracy"}, ()),
    "detection": ("coco", ("AP", "AP50"), {"ap", "ap50"}, ()),
    "depth": ("nyuv2", ("delta-1", "AbsRel", "RMSE"), {"delta1", "abs_rel", "rmse"}, ("--align", "inverse")),
}


@pytest.mark.parametrize("task", CASES)
def test_eval(task: str, run: Callable[..., str], tmp_path: Path) -> None:
    data, headings, keys, more = CASES[task]
    write_folders(tmp_path)
    makers = MAKERS | {"segmentation": lambda folder: dense_models.segmenter(folder, 150)}
    model, out = makers[task](tmp_path / "model"), tmp_path / "rows.json"
    choice = ("--task", task, "--data", data, "--data-dir", tmp_path, "--model", f"hf:{model}", *more)
    output = run(
        "eval", *choice, "--method", "tome,random", "--flops", "0.97", "--limit", 3, "--rounds", 10, "--json", out
    )
    written = json.loads(out.read_text())
    settings, rows = written["settings"], written["rows"]
    assert [row["method"] for row in rows] == ["unpatched", "tome", "random"]
    assert all(row.keys() == HEAD | keys | {"change_interval"} for row in rows)
    assert settings["task"] == task and settings["images"] == 3 and settings["batch_size"] == 8
    assert settings["data"] == data
    for word in (*headings, "share", "change", "95 % interval", f"3 images of {data}"):
        assert word in output
    assert "Evaluat" not in output and "DONE" not in output, "pycocotools is quiet"


@pytest.mark.parametrize("task", CASES)
def test_images_that_cannot_be_read_count_nowhere(task: str, run: Callable[..., str], tmp_path: Path) -> None:
    data, _, keys, more = CASES[task]
    write_folders(tmp_path)
    makers = MAKERS | {"segmentation": lambda folder: dense_models.segmenter(folder, 150)}
    model, out = makers[task](tmp_path / "model"), tmp_path / "rows.json"
    alone = dataclasses.replace(whole := load_dense(data, task, tmp_path), samples=Subset(whole.samples, [1, 3]))
    align = "inverse" if task == "depth" else "none"
    arms = [Arm("tome", flops=0.97)]
    expected = measure_dense(load_predictor(f"hf:{model}", task), arms, alone, align=align)
    damaged = sorted(tmp_path.glob({"ade20k": "images/*/*.jpg", "coco": "val2017/*.jpg", "nyuv2": "rgb/*.png"}[data]))
    for path in damaged[::2]:
        path.write_bytes(b"")
    choice = ("--task", task, "--data", data, "--data-dir", tmp_path, "--model", f"hf:{model}", *more)
    output = run("eval", *choice, "--method", "tome", "--flops", "0.97", "--batch-size", 1, "--json", out)
    written = json.loads(out.read_text())
    said = " ".join(output.split())  # long paths are wrapped
    assert written["settings"]["images"] == 2 and "2 images of" in said and "2 of 4 images" in said
    for path, told in zip(damaged[::2], written["settings"]["left_out"], strict=True):
        assert str(path) in told
    for row, figures in zip(written["rows"], expected, strict=True):
        assert row["images"] == 2 and all(row[key] == pytest.approx(figures[key]) for key in keys | {"macs"})


def test_eval_of_the_default_data_and_model(run: Callable[..., str], tmp_path: Path, monkeypatch: Any) -> None:
    """What ships is entered in two tables."""
    folder = dense_models.segmenter(tmp_path)
    shipped = {"scene_segmenter": lambda pretrained: load_predictor(f"hf:{folder}", "segmentation", pretrained)}
    monkeypatch.setitem(predictors.SHIPPED, "segmentation", shipped)
    monkeypatch.setitem(named_data.EMBEDDED, "segmentation", {"scenes": lambda folder: samples("segmentation")})
    output = run("eval", "--task", "segmentation", "--flops", 0.9, "--limit", 2)
    assert "scene_segmenter, 2 images of random" in output
    with pytest.raises(InvalidValueError, match="scene_segmenter does segmentation; valid for depth: hf:NAME"):
        load_predictor("scene_segmenter", "depth")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--task", "pose"), "unknown task 'pose'; valid: classification, depth, detection, segmentation"),
        (("--task", "depth"), "no model for depth ships with the library; give --model hf:NAME"),
        (("--task", "depth", "--model", "hf:x"), "nyuv2 does not ship with the library; give --data-dir"),
        (("--task", "detection", "--data", "ade20k"), "unknown data for detection 'ade20k'; valid: .*coco"),
        (
            ("--task", "segmentation", "--align", "median"),
            "--task segmentation does not use --align median; leave that out",
        ),
        (
            ("--task", "segmentation", "--head", "knn", "--all-images"),
            "--task segmentation does not use --all-images and --head knn",
        ),
        (("--rounds", "5"), "--task classification does not use --rounds 5; leave that out"),
    ],
)
def test_eval_refuses_with_a_sentence(arguments: tuple[str, ...], sentence: str, run: Callable[..., str]) -> None:
    with pytest.raises((InvalidValueError, InvalidTypeError), match=sentence):
        run("eval", *arguments, "--flops", "0.7")


def test_eval_says_that_pycocotools_is_missing(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
    with pytest.raises(InvalidValueError, match="average precision needs pycocotools, which the extra 'bench' brings"):
        run("eval", "--task", "detection", "--flops", "0.7")


def test_eval_refuses_models_that_do_not_fit(run: Callable[..., str], tmp_path: Path) -> None:
    write_folders(tmp_path)
    folders = {task: make(tmp_path / task) for task, make in MAKERS.items()}

    def refusal(task: str, data: str, model: str) -> str:
        with pytest.raises(InvalidValueError) as caught:
            choice = ("--task", task, "--data", data, "--model", f"hf:{folders[model]}")
            run("eval", *choice, "--data-dir", tmp_path, "--flops", "0.7")
        return str(caught.value)

    assert "the model has 5 classes (LABEL_0, LABEL_1, LABEL_2, ...), ade20k has 150" in refusal(
        "segmentation", "ade20k", "segmentation"
    )
    assert "YolosForObjectDetection does not do depth" in refusal("depth", "nyuv2", "detection")
    assert "predicts relative depth, not metres; align its" in refusal("depth", "nyuv2", "depth")
