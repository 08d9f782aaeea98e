"""Segmentation and detection heads on a timm backbone, whole and patched, against plain compositions; the examples."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import dense_models
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import tokenreduce
from tokenreduce import InvalidValueError, patch, report, unpatch
from tokenreduce.models.pyramid import SimpleFeaturePyramid
from tokenreduce.models.segmenter import LinearSegmenter, MaskSegmenter
from tokenreduce.models.upernet import BINS, PyramidPooling, UPerNet

ROOT = Path(__file__).parents[2]
CLASSES, SIDE, PATCH, GRID = 5, 64, 8, 8
HEADS = {
    "linear": lambda b: LinearSegmenter(b, CLASSES),
    "mask": lambda b: MaskSegmenter(b, CLASSES),
    "upernet": lambda b: UPerNet(b, CLASSES, channels=16),
    "pyramid": lambda b: SimpleFeaturePyramid(b, 16),
}
SHAPES = {"pyramid": [(2, 16, side, side) for side in (32, 16, 8, 4)]}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 0}
    model = HEADS[name](VisionTransformer(img_size=SIDE, patch_size=PATCH, **sizes))
    return perturbed(model).eval()


@torch.no_grad()
def perturbed(model: nn.Module) -> nn.Module:
    """With no parameter and no running mean left at 0 or 1."""
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def outputs(model: nn.Module) -> list[Tensor]:
    found = model(images())
    return list(found.values()) if isinstance(found, dict) else [found]


def features(model: nn.Module, depth: int = 4) -> Tensor:
    """The map `(B, D, h, w)` after some blocks of the unpatched backbone, by its own parts."""
    backbone = model.backbone
    x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images())))
    for block in backbone.blocks[:depth]:
        x = block(x)
    return backbone.norm(x)[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))


def up(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


@torch.no_grad()
@pytest.mark.parametrize("name", HEADS)
def test_every_head_gets_its_maps(name) -> None:
    model = make(name)
    whole = outputs(model)
    assert [tuple(x.shape) for x in whole] == SHAPES.get(name, [(2, CLASSES, SIDE, SIDE)])
    for method in ("tome", "ward", "expedit", "evit"):
        patch(model, method, ratio=0)
        assert all(map(torch.equal, outputs(model), whole))
        patch(model, method, ratio=0.5)
        fewer = outputs(model)
        assert report(model).tokens_left == GRID**2 // 2
        for before, after in zip(whole, fewer, strict=True):
            assert after.shape == before.shape and after.isfinite().all() and not torch.equal(after, before)
    assert all(map(torch.equal, outputs(unpatch(model)), whole))


@torch.no_grad()
def test_linear_head_token_by_token() -> None:
    model = make("linear")
    x = features(model)
    places = torch.empty(2, CLASSES, 2 * GRID, 2 * GRID)
    for row in range(GRID):
        for column in range(GRID):
            square = model.head(x[:, :, row, column]).view(2, CLASSES, 2, 2)
            places[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = square
    assert torch.allclose(outputs(model)[0], up(places, SIDE), atol=1e-5)


@torch.no_grad()
def test_mask_head_token_by_token() -> None:
    model = make("mask")
    x = features(model)
    tokens = model.enter(x.flatten(2).transpose(1, 2))
    mixed = torch.cat([tokens, torch.stack([model.class_vectors] * 2)], 1)
    for layer in model.layers:
        mixed = layer(mixed)
    mixed, logits = model.norm(mixed), torch.empty(2, CLASSES, GRID, GRID)
    for b in range(2):
        for n in range(GRID**2):
            token = mixed[b, n]
            cosines = torch.stack([token @ c / (token.norm() * c.norm()) for c in mixed[b, GRID**2 :]])
            scaled = (cosines - cosines.mean()) / (cosines.var(unbiased=False) + 1e-5).sqrt()
            logits[b, :, n // GRID, n % GRID] = scaled * model.scale.weight + model.scale.bias
    assert torch.allclose(outputs(model)[0], up(logits, SIDE), atol=1e-4)


@torch.no_grad()
def test_mask_head_minds_neither_order_nor_number() -> None:
    model = make("mask")
    tokens = features(model).flatten(2).transpose(1, 2)
    order = torch.randperm(GRID**2, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(model.decode(tokens[:, order]), model.decode(tokens)[:, order], atol=1e-4)
    patch(model.backbone, "tome", ratio=0.5)
    reduced = model.backbone.forward_features(images())[:, 1:]
    logits = model.decode(reduced)
    restored = report(model).restore(logits)
    assert logits.shape == (2, GRID**2 // 2, CLASSES) and restored.shape == (2, GRID**2, CLASSES)
    dest = report(model).map.dest
    for n in range(GRID**2):
        assert all(torch.equal(restored[b, n], logits[b, dest[b, n]]) for b in range(2))


@torch.no_grad()
@pytest.mark.parametrize("side", [4, 7, 12])
def test_pyramid_pooling_cell_by_cell(side) -> None:
    torch.manual_seed(0)
    pool = perturbed(PyramidPooling(6, 4)).eval()
    x = torch.randn(2, 6, side, side)
    parts = [x]
    for cells, reduce in zip(BINS, pool.reduce, strict=True):
        means = torch.empty(2, 6, cells, cells)
        spans = [(i * side // cells, math.ceil((i + 1) * side / cells)) for i in range(cells)]
        for i, (top, bottom) in enumerate(spans):
            for j, (left, right) in enumerate(spans):
                means[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
        parts.append(up(reduce(means), side))
    assert torch.allclose(pool(x), pool.join(torch.cat(parts, 1)), atol=1e-5)


@torch.no_grad()
def test_upernet_is_its_parts_one_after_the_other() -> None:
    model = make("upernet")
    assert model.taps == [0, 1, 2, 3]
    maps = [resize(features(model, depth)) for depth, resize in zip((1, 2, 3, 4), model.resize, strict=True)]
    assert [SIDE / x.shape[2] for x in maps] == [PATCH / scale for scale in (4, 2, 1, 0.5)]
    p32 = model.pool(maps[3])
    p16 = model.lateral[2](maps[2]) + up(p32, 8)
    p8 = model.lateral[1](maps[1]) + up(p16, 16)
    p4 = model.lateral[0](maps[0]) + up(p8, 32)
    levels = [model.smooth[0](p4), up(model.smooth[1](p8), 32), up(model.smooth[2](p16), 32), up(p32, 32)]
    logits = model.classify(model.fuse(torch.cat(levels, 1)))
    assert torch.allclose(outputs(model)[0], up(logits, SIDE), atol=1e-5)


def test_upernet_taps() -> None:
    backbone = make("linear").backbone
    for taps in ([0, 1, 2], [0, 1, 1, 3], [3, 2, 1, 0], [0, 1, 2, 4], [-1, 0, 1, 2]):
        with pytest.raises(InvalidValueError, match="four layers between 0 and 3, in ascending order"):
            UPerNet(backbone, CLASSES, taps=taps)


@torch.no_grad()
def test_feature_pyramid_levels() -> None:
    model = make("pyramid")
    x, found = features(model), model(images())
    assert list(found) == ["4x", "2x", "1x", "0.5x"]
    for (name, level), head in zip(found.items(), model.levels, strict=True):
        assert SIDE / level.shape[2] == PATCH / float(name[:-1])
        assert torch.allclose(level, head(x), atol=1e-5)
    coarse = torch.stack([x[:, :, i::2, j::2] for i in range(2) for j in range(2)]).amax(0)
    assert torch.equal(model.levels[3][0](x), coarse)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_mask_rcnn() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 0}
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, dynamic_img_size=True, **sizes)
    few = {"box_detections_per_img": 4, "rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20}
    return example("detect_mask_rcnn").mask_rcnn(backbone, 3, 16, SIDE, **few)


PICTURES = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
PICTURES[1] = torch.cat([PICTURES[1], PICTURES[1][:, :, :16]], 2)  # wider than the other


@torch.no_grad()
def test_mask_rcnn_detects_on_fewer_tokens() -> None:
    model = small_mask_rcnn().eval()
    whole = model(PICTURES)
    patch(model, "ward", ratio=0)
    for before, after in zip(whole, model(PICTURES), strict=True):
        assert all(torch.equal(after[key], before[key]) for key in before)
    patch(model, "ward", ratio=0.5)
    found = model(PICTURES)
    assert report(model).input_tokens == 8 * 10 and report(model).tokens_left == 40  # both padded to 64 x 80
    for picture, one in zip(PICTURES, found, strict=True):
        count = len(one["boxes"])
        assert 0 < count <= 4 and one["boxes"].isfinite().all()
        assert one["masks"].shape == (count, 1, *picture.shape[1:]) and one["labels"].shape == (count,)
    assert not all(torch.equal(a["scores"], b["scores"]) for a, b in zip(found, whole, strict=True))


def test_mask_rcnn_trains_on_fewer_tokens() -> None:
    model = small_mask_rcnn().train()
    patch(model, "ward", ratio=0.5)
    targets = []
    for picture in PICTURES:
        mask = torch.zeros(1, *picture.shape[1:], dtype=torch.uint8)
        mask[:, 8:40, 16:56] = 1
        box, label = torch.tensor([[16.0, 8.0, 56.0, 40.0]]), torch.tensor([1])
        targets.append({"boxes": box, "labels": label, "masks": mask})
    losses = model(PICTURES, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    backbone = model.backbone.backbone
    for part in (backbone.patch_embed.proj, backbone.blocks[0].attn.qkv, backbone.blocks[3].mlp.fc2):
        assert part.weight.grad.abs().sum() > 0


ARGUMENTS = {
    "segment_linear_head": ["--size", "64", "--classes", "7"],
    "segment_linear_head --head": ["--size", "64", "--classes", "7", "--head", "mask", "--restore", "delta"],
    "segment_upernet": ["--size", "64", "--classes", "7", "--channels", "8", "--taps", "3", "5", "7", "11"],
    "detect_mask_rcnn": ["--size", "64", "--classes", "40", "--channels", "16"],
    "depth_dpt": ["--size", "64"],
}
FIRST = {"detect_mask_rcnn": "4x: map (2, 16, 16, 24)", "depth_dpt": "depth: (1, 64, 64) unpatched, (1, 64, 64)"}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_examples_run(case, capsys) -> None:
    name = case.split()[0]
    example(name).main([*ARGUMENTS[case], "--method", "tome", "--flops", "0.75"])
    said = capsys.readouterr().out
    assert said.startswith(FIRST.get(name, "logits: (2, 7, 64, 64) unpatched, (2, 7, 64, 64) patched with tome"))
    backbone = float(re.search(r"backbone: ([\d.]+)", said)[1])
    total = float(re.search(r"GMACs an image, ([\d.]+)", said)[1])
    assert abs(backbone - 0.75) < 0.03 and backbone - 0.01 < total < 1
    differences = re.findall(r"difference.* ([\d.]+)$", said, re.MULTILINE)
    assert len(differences) == {"segment_upernet": 5, "detect_mask_rcnn": 4}.get(name, 1)
    assert all(0 < float(value) < 2 for value in differences)


def test_depth_example_reads_saved_models(tmp_path, capsys) -> None:
    example("depth_dpt").main(["--model", str(dense_models.depth(tmp_path)), "--flops", "0.8"])
    assert capsys.readouterr().out.startswith("depth: (1, 32, 32) unpatched, (1, 32, 32) patched with ward\ntokens: 64")


def test_blocks_of_the_page_run(monkeypatch) -> None:
    """As written, one after the other, except that the model is narrow and its weights are random."""
    page = (ROOT / "docs/dense.md").read_text()
    create = timm.create_model
    narrow = {"embed_dim": 48, "num_heads": 3}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: create(name, **narrow, **kw))
    module = ModuleType("dense_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    tokens = []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "dense.md", "exec"), vars(module))
        tokens.append(tuple(tokenreduce.report(module.model).tokens))
    assert [tuple(x.shape) for x in module.maps] == [(2, 48, 14, 14)] * 4
    assert tokens[2][9] < tokens[2][10] == tokens[2][11] == 196
    assert module.tokens.shape[1] < 196 and module.logits.shape == (2, 20, 14, 14)
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target
