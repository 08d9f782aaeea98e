"""Metrics against slow, obvious computations; heads against scikit-learn."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier
from timm.models.vision_transformer import VisionTransformer

import tokenreduce
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, restored_lane
from tokenreduce.lab.quality import heads
from tokenreduce.lab.quality.classification import ClassificationMetric, Seen, distance, measure

CLASSES = 7


def tiny_vit(**arguments: Any) -> Any:
    torch.manual_seed(0)
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    return VisionTransformer(**(defaults | arguments)).eval()


def batches(images: torch.Tensor, labels: torch.Tensor, size: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def examples(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return images, torch.randint(0, CLASSES, (count,), generator=generator)


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return 1 - float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("arguments", [{"reg_tokens": 2}, {"global_pool": "avg", "class_token": False}])
def test_figures_agree_with_one_image_at_a_time(arguments: dict[str, Any]) -> None:
    model = tiny_vit(**arguments)
    arm = Arm("tome", r=3)
    deployed, whole = patched_lane(model, arm), restored_lane(model, arm)
    images, labels = examples()
    rows = measure(model, [arm], batches(images, labels), CLASSES)
    assert [row["method"] for row in rows] == ["unpatched", "tome"]

    hits: dict[str, list[float]] = {"full": [], "top1": [], "top5": [], "class": [], "token": []}
    for image, label in zip(images[:, None], labels.tolist(), strict=True):
        with torch.no_grad():
            full, reduced = model.forward_features(image), deployed.forward_features(image)
            ranking = deployed(image)[0].argsort(descending=True).tolist()
            hits["full"].append(int(model(image)[0].argmax()) == label)
            heads_of = [m.forward_head(f, pre_logits=True)[0] for m, f in ((model, full), (deployed, reduced))]
            restored = whole.forward_features(image)
        hits["top1"].append(ranking[0] == label)
        hits["top5"].append(label in ranking[:5])
        hits["class"].append(cosine_distance(*heads_of))
        start = model.num_prefix_tokens
        hits["token"].append(sum(cosine_distance(full[0, i], restored[0, i]) for i in range(start, start + 16)) / 16)
    mean = {name: sum(values) / len(values) for name, values in hits.items()}
    assert rows[1]["top1"] == pytest.approx(mean["top1"], abs=1e-6)
    assert rows[1]["top5"] == pytest.approx(mean["top5"], abs=1e-6)
    assert rows[1]["top1_change"] == pytest.approx(mean["top1"] - mean["full"], abs=2e-6)
    assert rows[1]["class_error"] == pytest.approx(mean["class"], abs=1e-6)
    assert rows[1]["token_error"] == pytest.approx(mean["token"], abs=1e-6)
    assert mean["class"] > 1e-4


def test_costs_are_those_of_the_deployed_model() -> None:
    model = tiny_vit()
    arm = Arm("tome", r=3)
    full, row = measure(model, [arm], batches(*examples(3)), CLASSES)
    image = examples(1)[0]
    assert row["macs"] == tokenreduce.count_flops(patched_lane(model, arm), image).total
    assert row["flops_share"] == row["macs"] / tokenreduce.count_flops(model, image).total
    assert (full["tokens_left"], row["tokens_left"]) == (16, 16 - 9)
    assert full["flops_share"] == 1 and full["uncounted"] == {}


def test_nothing_removed_gives_no_error_and_no_change() -> None:
    model = tiny_vit()
    full, row = measure(model, [Arm("tome", r=0)], batches(*examples()), CLASSES)
    assert row["class_error"] == row["token_error"] == row["top1_change"] == 0
    assert full | {"method": "tome", "budget": "r=0"} == row


def test_both_patched_copies_answer_alike() -> None:
    for arguments in ({}, {"global_pool": "avg"}, {"global_pool": "map", "class_token": False}):
        model = tiny_vit(**arguments)
        arm = Arm("tome", r=3)
        with torch.no_grad():
            torch.testing.assert_close(
                patched_lane(model, arm)(examples()[0]), restored_lane(model, arm)(examples()[0])
            )


def test_few_classes_have_no_top5_and_no_images_is_an_error() -> None:
    model = tiny_vit(num_classes=3)
    images, labels = examples()
    assert "top5" not in measure(model, [], batches(images, labels % 3), 3)[0]
    with pytest.raises(ValueError, match="no images"):
        measure(model, [], [], 3)


def test_what_an_adaptive_method_leaves_is_a_mean_over_images() -> None:
    """All images of a batch keep as many tokens as the one that needs most; here batches hold 3, 3 and 2 images."""
    model = tiny_vit()
    images, labels = examples()
    images[:3] = images[:3, :, :1, :1]  # plain images keep few tokens, noise keeps many
    images[6:, :, :, :20] = images[6:, :, :1, :1]  # and what is plain in part a number between
    restored = restored_lane(model, Arm("algm"))
    left, shares = [], []
    for batch in images.split(3):
        with torch.no_grad():
            restored(batch)
        done = tokenreduce.report(restored)
        left += [done.tokens_left] * len(batch)
        shares += [done.flops_share] * len(batch)
    full, row = measure(model, [Arm("algm")], batches(images, labels), CLASSES)
    assert len({left[0], left[3], left[6]}) == 3 and row["budget"] == "none"
    assert row["tokens_left"] == pytest.approx(sum(left) / 8)
    assert row["tokens_left"] != pytest.approx((left[0] + left[3] + left[6]) / 3), "a small batch counts less"
    assert row["macs"] == round(full["macs"] * sum(shares) / 8)
    assert row["flops_share"] == row["macs"] / full["macs"] < 1


def test_figures_of_single_images_make_the_means_and_the_resamples() -> None:
    metric, generator = ClassificationMetric(6), torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 3, 4])
    logits = torch.zeros(5, 6)
    logits[:, 5] = 1
    logits[[0, 2], [0, 2]] = 2
    logits[3] = torch.tensor([6.0, 5, 4, 1, 3, 2])  # the truth is last of six
    features, other = (torch.randn(5, 4, generator=generator) for _ in range(2))
    tokens, others = (torch.randn(5, 3, 4, generator=generator) for _ in range(2))
    for part in (slice(0, 3), slice(3, 5)):
        seen = Seen(logits[part], features[part], tokens[part])
        metric.update(seen, Seen(logits[part], other[part], others[part]), labels[part])
    assert metric.images == 5 and metric.figures["top1"].tolist() == [1, 0, 1, 0, 0]
    assert metric.figures["top5"][3] == 0 and metric.figures["top5"][[0, 2]].tolist() == [1, 1]
    errors = [cosine_distance(a, b) for a, b in zip(features, other, strict=True)]
    assert metric.figures["class_error"].tolist() == pytest.approx(errors, abs=1e-6)
    assert metric.compute()["class_error"] == pytest.approx(sum(errors) / 5, abs=1e-6)
    pairs = [[cosine_distance(*two) for two in zip(*one, strict=True)] for one in zip(tokens, others, strict=True)]
    assert metric.figures["token_error"].tolist() == pytest.approx([sum(one) / 3 for one in pairs], abs=1e-6)
    assert metric.compute()["top1"] == 0.4
    times = torch.tensor([[5.0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 3, 1, 1, 0]]).double()
    assert metric.resampled(times).tolist() == [1, 0.4, 0.2]


def test_small_distances_survive_fp32() -> None:
    a = torch.tensor([[1.0, 0.0]])
    angle = 1e-4
    b = torch.tensor([[math.cos(angle), math.sin(angle)]])
    assert float(distance(a, b)) == pytest.approx(angle**2 / 2, rel=1e-3)


def test_votes_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 6, generator=generator) for n in (11, 60))
    labels = torch.randint(0, 4, (60,), generator=generator)
    votes = heads.vote(queries, gallery, labels, 4, k=20, temperature=0.07)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: torch.tensor((1 - d) / 0.07).exp().numpy())
    expected = torch.tensor(theirs.fit(gallery.numpy(), labels.numpy()).predict_proba(queries.numpy()))
    torch.testing.assert_close(votes / votes.sum(1, keepdim=True), expected.float(), atol=1e-4, rtol=1e-4)


def test_neighbours_in_the_gallery_of_the_same_model_are_found() -> None:
    model = tiny_vit()
    images, labels = examples()
    head = heads.NearestNeighbours(batches(images, labels), CLASSES, k=1)
    rows = measure(model, [Arm("random", r=4)], batches(images, labels), CLASSES, head)
    assert [row["top1"] for row in rows] == [1, 1]


@pytest.mark.parametrize(("outputs", "width"), [(5, 5), (7, 32), (0, 32)])
def test_zero_shot_from_a_file(tmp_path: Path, outputs: int, width: int) -> None:
    """Texts as wide as the head's output meet the output, texts as wide as the features meet these."""
    model = tiny_vit(num_classes=outputs)
    images, _ = examples()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=width == 32)
    save_file({"embeddings": 3 * features[:4].clone()}, tmp_path / "texts.safetensors")
    text = heads.text_embeddings(tmp_path / "texts.safetensors", None, ["a", "b", "c", "d"])
    row = measure(model, [], [(images[:4], torch.arange(4))], 4, heads.ZeroShot(text))[0]
    assert row["top1"] == 1


def test_zero_shot_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--text-embeddings FILE.*--text-model NAME:PRETRAINED"):
        heads.text_embeddings(None, None, ["a", "b"])
    save_file({"embeddings": torch.ones(3, 8), "other": torch.ones(1)}, tmp_path / "texts.safetensors")
    with pytest.raises(ValueError, match=r"holds embeddings \(3, 8\), other \(1,\); .* shape \(2, d\)"):
        heads.text_embeddings(tmp_path / "texts.safetensors", None, ["a", "b"])
    with pytest.raises(ValueError, match="have 8 channels, but the model's head gives 7 and its features have 32"):
        heads.ZeroShot(torch.ones(3, 8))(tiny_vit())


def test_text_embeddings_that_cannot_be_read(tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("no tensors")
    for file in (foreign, tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(InvalidValueError, match=f"--text-embeddings {file} cannot be read .*; give a safetensors"):
            heads.text_embeddings(file, None, ["a", "b"])


def test_a_text_model_that_open_clip_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, pretrained: str) -> None:
        raise RuntimeError(f"Model config for '{name}' not found.")

    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(create_model=fail))
    monkeypatch.setattr(heads, "find_spec", lambda name: object())
    with pytest.raises(InvalidValueError, match=r"cannot load --text-model A:b \(Model config for 'A' not found"):
        heads.text_embeddings(None, "A:b", ["a", "b"])


def test_open_clip_is_asked_for_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip is not a dependency: a stand-in with the same functions records how it is called."""
    asked: list[Any] = []

    def build(model: Any, tokenizer: Any, names: Any, templates: Any) -> torch.Tensor:
        asked.append((names, templates))
        return torch.ones(8, len(names))

    stand_in = SimpleNamespace(
        create_model=lambda name, pretrained: asked.append((name, pretrained)) or torch.nn.Identity(),
        get_tokenizer=lambda name: None,
        build_zero_shot_classifier=build,
        OPENAI_IMAGENET_TEMPLATES=("a photo of a {}.",),
        IMAGENET_CLASSNAMES=tuple(f"thing {i}" for i in range(1000)),
    )
    monkeypatch.setitem(sys.modules, "open_clip", stand_in)
    monkeypatch.setattr(heads, "find_spec", lambda name: object())
    assert heads.text_embeddings(None, "ViT-B-16:openai", ("bag", "coat")).shape == (2, 8)
    assert asked == [("ViT-B-16", "openai"), (("bag", "coat"), ("a photo of a {}.",))]
    heads.text_embeddings(None, "hf-hub:someone/model", [f"n{i:08}" for i in range(1000)])
    assert asked[2] == ("hf-hub:someone/model", None) and asked[3][0][7] == "thing 7"
    with pytest.raises(ValueError, match="give NAME:PRETRAINED"):
        heads.text_embeddings(None, "ViT-B-16", ("bag", "coat"))
