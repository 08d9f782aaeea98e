"""DToP: who is easy, who stays as context, who stands for whom; and a segmenter with auxiliary heads."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor
from waves import waves

import tokenreduce
from tokenreduce import InvalidValueError, patch, report
from tokenreduce.models.segmenter import LinearSegmenter
from tokenreduce.reducers.methods.dtop import Dtop
from tokenreduce.reducers.tokens import Tokens

CLASSES = 5


def shown(n: int, places: int = 4, seed: int = 0, batch: int = 2) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, n, 1, CLASSES, generator=generator)
    logits = logits + torch.randn(batch, n, places, CLASSES, generator=generator)
    features = torch.randn(batch, n, 8, generator=generator)
    return Tokens(features, sources={"auxiliary_logits": lambda: logits}, layer=5, depth=12)


def easy_by_hand(logits: Tensor) -> list[tuple[float, int]]:
    """Confidence and class of the tokens of one image, `(N, P, K)`."""
    out = []
    for token in logits:
        chances = [row.softmax(0) for row in token]
        out.append((min(float(c.max()) for c in chances), int(torch.stack(chances).mean(0).argmax())))
    return out


def leaving_by_hand(found: list[tuple[float, int]], threshold: float, context: int) -> list[int]:
    """The tokens that may leave, most confident first."""
    easy = [i for i, (confidence, _) in enumerate(found) if confidence > threshold]
    easy.sort(key=lambda i: (-found[i][0], i))
    seen, leave = dict.fromkeys(range(CLASSES), 0), []
    for i in easy:
        seen[found[i][1]] += 1
        if seen[found[i][1]] > context:
            leave.append(i)
    return leave


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("context", [0, 2, 5])
def test_the_count_is_that_of_the_image_with_most_left(threshold, context) -> None:
    tokens = shown(60)
    left = [60 - len(leaving_by_hand(easy_by_hand(image), threshold, context)) for image in tokens.auxiliary_logits]
    assert Dtop(threshold=threshold, context=context).decide(tokens) == max(1, *left)


@pytest.mark.parametrize("keep", [3, 20, 45, 59])
def test_the_most_confident_leave_and_context_last(keep) -> None:
    tokens = shown(60, seed=1)
    token_map = Dtop(context=3).plan(tokens, keep)
    for image, logits in enumerate(tokens.auxiliary_logits):
        found = easy_by_hand(logits)
        free = leaving_by_hand(found, 0.0, 3)
        bound = sorted((i for i in range(60) if i not in free), key=lambda i: (-found[i][0], i))
        kept = sorted(set(range(60)) - set((free + bound)[: 60 - keep]))
        assert token_map.rep[image].tolist() == kept
        unit = torch.nn.functional.normalize(tokens.features[image], dim=-1)
        for i in range(60):
            same = [j for j in kept if found[j][1] == found[i][1]] or kept
            best = i if i in kept else max(same, key=lambda j: float(unit[i] @ unit[j]))
            assert kept[int(token_map.dest[image, i])] == best


def test_a_threshold_of_one_keeps_all() -> None:
    assert Dtop(threshold=1.0).decide(shown(30, seed=2)) == 30


def test_a_token_stays_where_all_are_easy() -> None:
    assert Dtop(threshold=0.0, context=0).decide(shown(30, seed=2)) == 1


def test_the_budget_pays_for_the_heads() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=12, num_classes=0)
    model = LinearSegmenter(backbone, 150, auxiliary=(5, 7)).eval()
    x = torch.randn(1, 3, 96, 96)
    whole = tokenreduce.count_flops(model, x).total
    head = whole - tokenreduce.count_flops(backbone, x).total
    patch(model, "dtop", flops=0.75)
    left = tokenreduce.count_flops(model, x).total
    assert abs((left - head) / (whole - head) - 0.75) < 0.02


@pytest.fixture
def segmenter() -> LinearSegmenter:
    torch.manual_seed(0)
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=6, num_classes=0)
    model = LinearSegmenter(backbone, CLASSES, detail=2, auxiliary=(2, 3)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_the_head_of_the_layer_is_asked(segmenter) -> None:
    x = torch.randn(2, 3, 64, 64)
    [tapped] = segmenter.backbone.forward_intermediates(x, indices=[2], norm=True, intermediates_only=True)
    expected = segmenter.predict(tapped, segmenter.auxiliary_heads["2"])
    asked = []
    own = segmenter.auxiliary_logits

    def watched(layer: int, tokens: Tensor) -> Tensor:
        asked.append((layer, own(layer, tokens)))
        return asked[-1][1]

    segmenter.auxiliary_logits = watched
    patch(segmenter, "dtop", ratio=0.5)
    segmenter(x)
    assert [layer for layer, _ in asked] == [2, 3]
    places = asked[0][1].view(2, 4, 4, 2, 2, CLASSES).permute(0, 5, 1, 3, 2, 4).reshape(2, CLASSES, 8, 8)
    assert torch.allclose(places, expected, atol=1e-4)
    assert report(segmenter).tokens[1] == 16 > report(segmenter).tokens[2] > report(segmenter).tokens[3] == 8


@torch.no_grad()
def test_copies_budgets_and_maps(segmenter) -> None:
    x = torch.randn(2, 3, 64, 64)
    whole = segmenter(x)
    for budget in ({"ratio": 0}, {"flops": 1}, {"threshold": 1.0}):
        patch(segmenter, "dtop", **budget)
        assert torch.equal(segmenter(x), whole)
    patch(segmenter, "dtop", flops=0.85)
    reduced = segmenter(x)
    assert reduced.shape == whole.shape and not torch.equal(reduced, whole)
    assert abs(report(segmenter).flops_share - 0.85) < 0.02
    assert torch.equal(copy.deepcopy(segmenter)(x), reduced)
    assert torch.equal(pickle.loads(pickle.dumps(segmenter))(x), reduced)
    patch(segmenter, "dtop", r=2)
    assert report(segmenter).tokens == (16, 16, 14, 12, 12, 12)
    tokenreduce.unpatch(segmenter)
    assert torch.equal(segmenter(x), whole)


def test_without_heads_it_is_refused(segmenter) -> None:
    assert "dtop" in tokenreduce.compatible(segmenter)
    assert "auxiliary heads" in tokenreduce.compatible(segmenter.backbone).refused["dtop"]
    with pytest.raises(InvalidValueError, match="auxiliary heads"):
        patch(segmenter.backbone, "dtop", ratio=0.5)
    with pytest.raises(InvalidValueError, match=r"after layers \[2, 3\]"):
        patch(segmenter, "dtop", flops=0.9, layers=[1])
    with pytest.raises(InvalidValueError, match="auxiliary heads"):
        patch(LinearSegmenter(segmenter.backbone, CLASSES), "dtop", ratio=0.5)


@pytest.mark.parametrize("inherit", [True, False])
def test_sizes_go_to_the_token_that_stands_or_are_lost(inherit) -> None:
    tokens = shown(60, seed=3)
    token_map = Dtop(inherit=inherit).plan(tokens, 20)
    expected = [row.bincount(minlength=20).tolist() for row in token_map.dest] if inherit else [[1] * 20] * 2
    assert token_map.sizes().tolist() == expected and (token_map.weight.sum(1) == 20).all()


def test_what_the_authors_code_gave() -> None:
    """PruneHead of zbwxp/Dynamic-Token-Pruning@2baefff, 40 tokens of 3 classes, threshold 0.4: who stays."""
    logits = 2 * waves(1, 40, 1, 3, start=3)
    token_map = tokenreduce.plan(torch.ones(1, 40, 4), "dtop", auxiliary_logits=logits, threshold=0.4)
    stay = [2, 4, 7, 9, 12, 15, 19, 20, 22, 23, 25, 27, 28, 30, 33, 34, 35, 38, 39]
    assert token_map.rep[0].tolist() == stay
