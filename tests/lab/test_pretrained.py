"""Models of transformers on the command line: `hf:NAME`, from folders that the test writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

import tokenreduce
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.comparing.reading import read_images
from tokenreduce.lab.pretrained import first_line, load_pretrained
from tokenreduce.lab.quality.classification import distance
from tokenreduce.lab.quality.loading import Setup, load

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SIZES, intermediate_size=64, num_labels=10)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def rows_in(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def test_eval(run: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    run("eval", "--model", f"hf:{classifier}", "--method", "tome,evit", "--flops", "0.7", "--limit", 20, "--json", out)
    full, *reduced = rows_in(out)
    assert full["class_error"] == full["token_error"] == 0
    for row in reduced:
        assert row["flops_share"] == pytest.approx(0.7, abs=0.02)
        assert 0 < row["class_error"] < 1 and 0 < row["token_error"] < 1


def test_bench_and_its_limit(run: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--method", "tome", "--flops", "0.7", "--batch-size", 2, "--rounds", 1, "--min-time", 0)
    run("bench", "--model", f"hf:{classifier}", *arguments, "--json", out)
    full, reduced = rows_in(out)
    assert full["speedup"] == 1 and reduced["limit_share"] > 0
    assert reduced["tokens_left"] < 64 and reduced["macs"] < full["macs"]


def test_visualize(run: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    run("visualize", "--model", f"hf:{classifier}", "--method", "tome", "--ratio", "0.5", "--out", out)
    assert out.stat().st_size > 1000


def test_a_model_without_a_classifier(run: Callable[..., str], tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(InvalidValueError, match="the head of this Dinov2Model has 0 classes"):
        run("eval", "--model", f"hf:{tmp_path}", "--flops", "0.7", "--limit", 20)
    logits, features, tokens = load_pretrained(str(tmp_path), True).whole(torch.randn(2, 3, 32, 32))
    assert logits is features and features.shape == (2, 32) and tokens.shape == (2, 65, 32)


def test_one_forward_gives_logits_features_and_tokens(classifier: Path) -> None:
    model, x = load_pretrained(str(classifier), True), torch.randn(2, 3, 32, 32)
    logits, features, tokens = model.whole(x)
    assert torch.equal(logits, model(x)) and torch.equal(model.model.classifier(features), logits)
    assert model.input_shape == (3, 32, 32) and tokens.shape == (2, 65, 32)
    tokenreduce.patch(model, "tome", ratio=0.5, restore=True)
    assert distance(model.whole(x)[2], tokens).max() > 0
    tokenreduce.patch(model, "tome", ratio=0.5)  # the wrapper reads no tokens: they stay reduced
    assert not tokenreduce.patching.finding.reduction_of(model).restoring.ends


def test_untrained_weights_and_other_sizes(classifier: Path) -> None:
    model = load_pretrained(str(classifier), False, image_size=48)
    assert model(torch.randn(1, *model.input_shape)).shape == (1, 10) and model.input_shape == (3, 48, 48)


def test_pictures_of_several_sizes(run: Callable[..., str], tmp_path: Path) -> None:
    """YOLOS keeps the aspect ratio, and its configuration has a pair of sizes. compare times images of one size."""
    sizes = SIZES | {"image_size": [32, 32], "patch_size": 8, "intermediate_size": 64}
    YolosForObjectDetection(YolosConfig(**sizes, num_detection_tokens=3)).save_pretrained(tmp_path / "yolos")
    YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(tmp_path / "yolos")
    (tmp_path / "images").mkdir()
    for number, width in enumerate((32, 64, 32, 64)):
        Image.new("RGB", (width, 32), (60 * number, 9, 9)).save(tmp_path / "images" / f"{number}.png")
    words = ("--model", f"hf:{tmp_path / 'yolos'}", "--data", tmp_path / "images", "--workers", 0)
    timed = ("--batch-size", 1, "--budgets", 0.9, "--methods", "tome", "--rounds", 1, "--speed-batch-size", 2)
    run("compare", *words, *timed, "--out", tmp_path / "report")
    assert all(row["median_ms"] > 0 for row in rows_in(tmp_path / "report" / "rows.json"))
    loaded = load(Setup(words[1], str(words[3]), batch_size=1))
    assert read_images(loaded, 3).first.shape == (2, 3, 32, 32)
    run("eval", *words, "--flops", 0.9, "--image-size", 32, "--json", tmp_path / "e.json")
    assert rows_in(tmp_path / "e.json")[0]["tokens_left"] == 16
    with pytest.raises(
        InvalidValueError, match=r"yolos with --image-size 99'.*; leave that out: its weights may fit one"
    ):
        run("eval", *words, "--flops", 0.9, "--image-size", 99)


@pytest.mark.parametrize("pretrained", [True, False])
def test_weights_in_half_precision_are_float32(tmp_path: Path, pretrained: bool) -> None:
    """Library and tables are about float32, and some families fail in half precision."""
    model = BeitForImageClassification(BeitConfig(**SIZES, intermediate_size=64, num_labels=10)).half()
    model.save_pretrained(tmp_path)
    found = load_pretrained(str(tmp_path), pretrained)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert found(torch.randn(1, 3, 32, 32)).dtype == torch.float32
    same = torch.equal(found.model.classifier.weight, model.classifier.weight.float())
    assert same == pretrained


def test_a_class_that_this_version_does_not_have(classifier: Path, tmp_path: Path) -> None:
    config = json.loads((classifier / "config.json").read_text()) | {"architectures": ["ViTForDreams"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidValueError, match=r"transformers cannot load .*ViTForDreams.*install another version"):
        load_pretrained(str(tmp_path), False)


def test_errors_without_words_have_a_kind() -> None:
    assert first_line(OSError()) == "OSError" and first_line(ValueError("\n \n two\nthree")) == "two"
    assert len(first_line(ValueError("one of many, " * 99))) <= 300
    assert first_line(RuntimeError("Errors:\n\tsize mismatch\n\tmore")) == "Errors: size mismatch"


def test_what_does_not_exist_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="transformers cannot load"):
        load_pretrained(str(tmp_path / "nothing"), True)
