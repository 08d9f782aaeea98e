"""Scenes: labels against loops, photographs that do not mix, and the same scenes for the same seed."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.lab.data import fashion_mnist, scenes
from tokenreduce.lab.quality import embedded
from tokenreduce.lab.quality.embedded import load_scenes

PHOTOS, CLASSES = fashion_mnist.load("test", fashion_mnist.SUBSET)


def test_the_same_scenes_whatever_their_number() -> None:
    some, more = scenes.compose(PHOTOS, CLASSES, 10, seed=3), scenes.compose(PHOTOS, CLASSES, 40, seed=3)
    for few, many in zip(vars(some).values(), vars(more).values(), strict=True):
        assert torch.equal(few, many[:10])
    assert not torch.equal(some.images, scenes.compose(PHOTOS, CLASSES, 10, seed=4).images)


def test_a_scene_shows_several_garments_in_clutter() -> None:
    made = scenes.compose(PHOTOS, CLASSES, 200, seed=0)
    assert made.images.shape == (200, 1, 80, 80) and made.images.dtype == torch.uint8
    shown = (made.labels > 0).sum(1)
    assert shown.min() >= 1 and shown.max() <= 6 and shown.float().mean() > 2
    assert set(made.labels.unique().tolist()) == set(range(11)) == set(made.masks.unique().tolist())
    background = made.images[:, 0][made.masks == 0].float()
    assert background.std() > 20  # not a flat wall


def test_masks_boxes_and_labels_tell_the_same() -> None:
    made = scenes.compose(PHOTOS, CLASSES, 60, seed=1)
    for index in range(60):
        mask, found = made.masks[index], made.objects(index)
        assert set(mask.unique().tolist()) - {0} == set(found["labels"].tolist())
        for label in found["labels"].unique():
            boxes = found["boxes"][found["labels"] == label]
            rows, columns = torch.nonzero(mask == label, as_tuple=True)
            # Of one garment or several of a class: together the boxes reach as far as the pixels do.
            assert boxes[:, 0].min() == columns.min() and boxes[:, 2].max() == columns.max() + 1
            assert boxes[:, 1].min() == rows.min() and boxes[:, 3].max() == rows.max() + 1


def test_foreground_is_what_light_surrounds() -> None:
    photo = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    photo[..., 5:20, 5:20] = 200
    photo[..., 9:12, 9:12] = 0  # a dark patch on the garment
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[5:20, 5:20] = True
    assert torch.equal(scenes.foreground(photo)[0, 0], expected)


def test_placing_is_linear_interpolation() -> None:
    weights = scenes._interpolation(torch.tensor([10.0]), torch.tensor([56.0]), 28)[0]
    values = torch.rand(28)
    inner = torch.nn.functional.interpolate(values[None, None], size=56, mode="linear", align_corners=False)[0, 0]
    assert torch.allclose((weights @ values)[11:65], inner[1:55], atol=1e-5)
    assert (weights @ values)[:9].abs().sum() == 0 == (weights @ values)[68:].abs().sum()


def test_only_the_given_photographs_are_used() -> None:
    """Of black photographs nothing can be seen, neither garments nor clutter."""
    made = scenes.compose(torch.zeros_like(PHOTOS[:5]), CLASSES[:5], 5, seed=0)
    assert made.masks.sum() == 0 and (made.labels > 0).sum() == 0
    assert made.images.float().mean() < 128 * 0.75


def test_as_dense_data() -> None:
    segmentation, detection = load_scenes("segmentation", count=5), load_scenes("detection", count=5)
    assert list(segmentation.classes) == list(range(11)) and list(detection.classes) == list(range(1, 11))
    assert torch.equal(segmentation.samples[3]["image"], detection.samples[3]["image"])
    assert segmentation.samples[3]["target"].shape == (80, 80)
    assert set(detection.samples[3]["target"]) == {"boxes", "labels"}


def test_a_data_set_holds_500_scenes_of_the_test_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(embedded.scenes, "load", lambda *arguments: asked.extend(arguments))
    load_scenes("segmentation")
    assert asked == [500, "test", fashion_mnist.SUBSET, 0]
