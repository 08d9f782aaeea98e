"""Dense tasks from images to rows, in Python and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dense_models
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import tokenreduce
from tokenreduce.cli import app as application
from tokenreduce.cli import dense
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.samples import DenseData
from tokenreduce.lab.quality import named as named_data
from tokenreduce.lab.quality import predictors
from tokenreduce.lab.quality.dense import measure_dense
from tokenreduce.lab.quality.named import make_metric
from tokenreduce.lab.quality.predictors import load_predictor

HEAD = {"method", "budget", "images", "tokens_left", "macs", "uncounted", "flops_share", "change"}


def pictures(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    coarse = torch.rand(count, 3, 5, 6) * 255
    return list(nn.functional.interpolate(coarse, (40, 48), mode="bicubic").clamp(0, 255).to(torch.uint8))


def samples(task: str, count: int = 5) -> DenseData:
    """Random truth for random pictures."""
    shown = pictures(count)
    if task == "segmentation":
        targets: Any = [torch.randint(dense_models.CLASSES, (40, 48)) for _ in shown]
        for target in targets:
            target[:5] = 255
    elif task == "depth":
        targets = [1 + 5 * torch.rand(40, 48) for _ in shown]
    else:
        boxes = torch.cat([torch.rand(count, 4, 2) * 20, 20 + torch.rand(count, 4, 2) * 20], 2)
        targets = [{"boxes": box, "labels": torch.randint(1, 6, (4,))} for box in boxes]
    classes = {
        "segmentation": dict.fromkeys(range(5), ""),
        "detection": dict(enumerate(dense_models.NAMES, 1)),
        "depth": {},
    }
    found = [
        {"image": i, "target": t, "path": f"picture {k}"} for k, (i, t) in enumerate(zip(shown, targets, strict=True))
    ]
    return DenseData("random", task, found, classes[task])


MAKERS = {"segmentation": dense_models.segmenter, "detection": dense_models.detector, "depth": dense_models.depth}
HEADLINES = {"segmentation": "miou", "detection": "ap50", "depth": "delta1"}
ALIGN = {"segmentation": "none", "detection": "none", "depth": "inverse"}


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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def invoke(*arguments: object) -> str:
        monkeypatch.setattr("tokenreduce.cli.output.console.width", 200)
        result = CliRunner().invoke(application.app, ["eval", *map(str, arguments)])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return invoke


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)


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
    output = run(*choice, "--method", "tome,random", "--flops", "0.97", "--limit", 3, "--rounds", 10, "--json", out)
    written = json.loads(out.read_text())
    settings, rows = written["settings"], written["rows"]
    assert [row["method"] for row in rows] == ["unpatched", "tome", "random"]
    assert all(row.keys() == HEAD | keys | {"change_interval"} for row in rows)
    assert settings["task"] == task and settings["images"] == 3 and settings["batch_size"] == 8
    assert settings["data"] == data
    for word in (*headings, "share", "change", "95 % interval", f"3 images of {data}"):
        assert word in output
    assert "Evaluat" not in output and "DONE" not in output, "pycocotools is quiet"


def test_eval_of_the_default_data_and_model(run: Callable[..., str], tmp_path: Path, monkeypatch: Any) -> None:
    """What ships is entered in two tables."""
    folder = dense_models.segmenter(tmp_path)
    shipped = {"scene_segmenter": lambda pretrained: load_predictor(f"hf:{folder}", "segmentation", pretrained)}
    monkeypatch.setitem(predictors.SHIPPED, "segmentation", shipped)
    monkeypatch.setitem(named_data.EMBEDDED, "segmentation", {"scenes": lambda folder: samples("segmentation")})
    output = run("--task", "segmentation", "--flops", 0.9, "--limit", 2)
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
        (("--task", "segmentation", "--align", "median"), "--align median mean nothing to --task segmentation"),
        (("--task", "segmentation", "--head", "knn", "--all-images"), "--all-images and --head knn mean nothing to"),
        (("--rounds", "5"), "--rounds 5 mean nothing to --task classification; leave them out"),
    ],
)
def test_eval_refuses_with_a_sentence(arguments: tuple[str, ...], sentence: str, run: Callable[..., str]) -> None:
    with pytest.raises((InvalidValueError, InvalidTypeError), match=sentence):
        run(*arguments, "--flops", "0.7")


def test_eval_says_that_pycocotools_is_missing(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "find_spec", lambda name: None)
    with pytest.raises(InvalidValueError, match="average precision needs pycocotools, which the extra 'bench' brings"):
        run("--task", "detection", "--flops", "0.7")


def test_eval_refuses_models_that_do_not_fit(run: Callable[..., str], tmp_path: Path) -> None:
    write_folders(tmp_path)
    folders = {task: make(tmp_path / task) for task, make in MAKERS.items()}

    def refusal(task: str, data: str, model: str) -> str:
        with pytest.raises(InvalidValueError) as caught:
            choice = ("--task", task, "--data", data, "--model", f"hf:{folders[model]}")
            run(*choice, "--data-dir", tmp_path, "--flops", "0.7")
        return str(caught.value)

    assert "the model has 5 classes (LABEL_0, LABEL_1, LABEL_2, ...), ade20k has 150" in refusal(
        "segmentation", "ade20k", "segmentation"
    )
    assert "YolosForObjectDetection does not do depth" in refusal("depth", "nyuv2", "detection")
    assert "predicts relative depth, not metres; align its" in refusal("depth", "nyuv2", "depth")
