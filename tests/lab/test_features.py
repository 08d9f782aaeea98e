"""Errors of features, of models without labels: against one image at a time, and their means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dense_models
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.lanes import patched_lane, restored_lane
from tokenreduce.lab.pretrained import load_pretrained
from tokenreduce.lab.quality.classification import measure
from tokenreduce.lab.quality.features import FeatureMetric, Features, measure_features, unlabelled_lanes

NO_LABELS = torch.full((3,), -1)


def tiny_vit(**arguments: Any) -> Any:
    torch.manual_seed(0)
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    return VisionTransformer(**(defaults | arguments)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return [(images[:3], NO_LABELS), (images[3:], NO_LABELS[:2])]


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1 - float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def halves(tokens: torch.Tensor) -> torch.Tensor:
    """A dense head: which side of 0 the first two channels of each token are on, softly."""
    return tokens[..., :2].sigmoid()


@pytest.mark.parametrize("arguments", [{"reg_tokens": 2}, {"global_pool": "avg", "class_token": False}])
def test_errors_agree_with_one_image_at_a_time(arguments: dict[str, Any]) -> None:
    model, arm = tiny_vit(**arguments), Arm("tome", r=3)
    deployed, whole = patched_lane(model, arm), restored_lane(model, arm)
    lanes, refused = unlabelled_lanes(model, [arm], halves)
    full, row = measure_features(lanes, batches())
    assert refused == [] and (full["method"], row["method"]) == ("unpatched", "tome")
    errors: dict[str, list[float]] = {"class_error": [], "token_error": [], "saliency_error": []}
    start = model.num_prefix_tokens
    for image in torch.cat([images for images, _ in batches()])[:, None]:
        with torch.no_grad():
            ours = model.forward_features(image)
            theirs = whole.forward_features(image)
            errors["class_error"].append(cosine_distance(model(image)[0], deployed(image)[0]))
            pairs = [cosine_distance(a, b) for a, b in zip(ours[0, start:], theirs[0, start:], strict=True)]
            errors["token_error"].append(sum(pairs) / len(pairs))
            difference = halves(ours[:, start:]) - halves(theirs[:, start:])
            errors["saliency_error"].append(float(difference.abs().mean()))
    for name, values in errors.items():
        assert row[name] == pytest.approx(sum(values) / 5, abs=1e-6) and row[name] > 1e-4, name
        assert row[f"{name}_geometric"] == pytest.approx(math.prod(values) ** (1 / 5), rel=1e-3), name
        assert full[name] == full[f"{name}_geometric"] == 0
    assert row["flops_share"] < 1 and not {"top1", "change"} & row.keys()


def test_only_image_tokens_are_compared(tmp_path: Path) -> None:
    """YOLOS has a class token before its 64 image tokens, and 12 detection tokens behind them."""
    model = load_pretrained(str(dense_models.detector(tmp_path)), True)
    images = torch.randn(2, 3, 32, 32)
    lanes, _ = unlabelled_lanes(model, [Arm("tome", r=3)])
    with torch.no_grad():
        assert torch.equal(lanes[0].look(images)[2], model.whole(images)[2][:, 1:65])
        assert lanes[1].look(images)[2].shape == (2, 64, 32)


def test_labels_change_no_error() -> None:
    model, arm = tiny_vit(num_classes=7), Arm("random", r=4)
    labelled = measure(model, [arm], [(images, labels + 1) for images, labels in batches()], 7)[1]
    lanes, _ = unlabelled_lanes(model, [arm])
    row = measure_features(lanes, batches())[1]
    for key in ("class_error", "token_error", "macs", "flops_share", "tokens_left"):
        assert row[key] == labelled[key], key
    assert "saliency_error" not in row


def test_what_cannot_be_reached_is_a_row() -> None:
    lanes, refused = unlabelled_lanes(tiny_vit(), [Arm("random", ratio=0.5), Arm("pool", ratio=0.99)])
    assert len(lanes) == 2 and [row["method"] for row in refused] == ["pool"]


def test_figures_of_single_images_make_the_resamples() -> None:
    metric = FeatureMetric()
    zero, one, both = torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), torch.tensor([1.0, 1])
    for tokens in ([zero, one], [zero, zero], [both, both]):
        seen = Features(zero[None], torch.stack(tokens)[None])
        metric.update(seen, Features(zero[None], torch.stack([zero, zero])[None]))
    bent = 1 - math.sqrt(0.5)
    assert metric.images == 3
    assert metric.figures["token_error"].tolist() == pytest.approx([0.5, 0, bent], abs=1e-6)
    times = torch.tensor([[3.0, 0, 0], [1, 1, 1]]).double()
    assert metric.resampled(times).tolist() == pytest.approx([0.5, (0.5 + bent) / 3], abs=1e-6)
    found = metric.compute()
    assert found["class_error"] == found["class_error_geometric"] == 0
    assert found["token_error_geometric"] == pytest.approx((0.5 * 1e-9 * bent) ** (1 / 3), rel=1e-4)
