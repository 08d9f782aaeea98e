"""Law 10: dropping is masking. A model whose tokens are dropped gives what the unpatched one gives with those tokens
hidden from attention; their positions are all different, so that each token kept must find its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import backbone_checks as checks
import pytest
import torch
from backbones import BACKBONES, Backbone, Inputs, tensors
from masking import Bias, watched
from tokenreduce.patches.shared.layered import LayeredAdapter
from tokenreduce.patches.shared.windows import as_tokens, first
from tokenreduce.patches.transformers import lw_detr
from torch import Tensor, nn
from torch.nn import functional as F

import tokenreduce
from tokenreduce import Reducer, Schedule, TokenMap, patch, report, unpatch
from tokenreduce.maps.token_map import keep_tokens
from tokenreduce.ops.rows import with_protected
from tokenreduce.patching.reporting import Report
from tokenreduce.reducers import registry

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOLERANCE = 1e-5  # of each tensor's scale
BATCH = 2
LEFT = (0.65, 0.4)  # of the image tokens, after the first and the second reduction


@dataclass(frozen=True)
class Dropping(Reducer):
    """Keeps tokens that depend on the image and the layer only, in raster order or in any."""

    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "none"
    year: ClassVar[int] = 2026

    raster: bool = False

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        batch, n = tokens.features.shape[:2]
        g = torch.Generator().manual_seed(tokens.layer)
        kept = torch.stack([torch.randperm(n, generator=g)[:keep] for _ in range(batch)])
        stands = torch.randint(keep, (batch, n), generator=g)
        return keep_tokens(kept.sort(1).values if self.raster else kept, stands)


@dataclass(frozen=True)
class DroppingBefore(Dropping):
    name: ClassVar[str] = "dropping_before"
    placement: ClassVar[str] = "pre"


@dataclass(frozen=True)
class DroppingWithin(Dropping):
    name: ClassVar[str] = "dropping_within"
    placement: ClassVar[str] = "mid"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods of this file are registered for its tests only."""
    tokenreduce.methods()
    for method in (DroppingBefore, DroppingWithin):
        monkeypatch.setitem(registry._registry, method.name, method)


class Watch:
    """A row's model, its layers and what they put out."""

    def __init__(self, backbone: Backbone, model: nn.Module) -> None:
        self.backbone, self.model = backbone, model
        _, self.part, self.adapter = tokenreduce.patching.finding.find_backbone(model)
        assert isinstance(self.adapter, LayeredAdapter)
        self.layers = list(self.adapter.layers(self.part))
        self.geometry = self.adapter.geometry(self.part)

    def run(self, inputs: Inputs, bias: Bias | None = None) -> Seen:
        """All that can be compared, with keys hidden by `bias`."""
        after: dict[int, Tensor] = {}

        def see(layer: int, output: Any) -> None:
            after[layer] = self.in_raster_order(first(output), next(tensors(inputs)).shape[0])

        with watched(self.layers, see, bias), torch.no_grad():
            outputs = self.backbone.outputs(self.model, inputs)
        if self.backbone.collect is None:
            return Seen(after, outputs, [])
        with watched(self.layers, lambda layer, output: None, bias), torch.no_grad():
            return Seen(after, outputs, self.backbone.collect(self.model, inputs))

    def in_raster_order(self, x: Tensor, batch: int) -> Tensor:
        if x.ndim == 4:
            return as_tokens(x, channels_first="vitdet" in self.adapter.name)
        return x if x.shape[0] == batch else lw_detr.as_tokens(x, self.geometry.grid, self.windows_a_side)

    def hiding(self, kept: Tensor) -> Tensor:
        """Logits `(B, keys)` that leave the tokens `kept` only, in the order in which attention has its keys."""
        batch, tokens = kept.shape[0], self.geometry.protected + self.backbone.count
        bias = torch.full((batch, tokens), -torch.inf).scatter(1, kept, 0.0)
        if self.adapter.name != "transformers_lw_detr":
            return bias
        windows = lw_detr.as_windows(bias[..., None], self.geometry.grid, self.windows_a_side)
        return windows.reshape(batch, tokens)

    @property
    def windows_a_side(self) -> int:
        return math.isqrt(self.part.config.num_windows)

    def chain(self) -> list[int]:
        """The longest run of layers between which no token has to come back."""
        runs: list[list[int]] = [[]]
        for layer in range(self.geometry.depth):
            if layer in self.geometry.needs_all:
                runs.append([])
            else:
                runs[-1].append(layer)
        return max(runs, key=len)


class Seen(NamedTuple):
    """What each layer put out as tokens `(B, prefix + N + suffix, C)`, the outputs of the model, and the maps of its
    layers where it can collect them."""

    after: dict[int, Tensor]
    outputs: list[Tensor]
    maps: list[Tensor]


def representatives(layer: int, found: Report) -> Tensor:
    """`(B, M)`: the image tokens of the input that layer `layer` leaves, in its order."""
    rep = found.map_after(layer).rep
    assert rep is not None
    return rep


def real_tokens(inputs: Inputs, backbone: Backbone, batch: int) -> Tensor:
    """`(B, prefix + N + suffix)`: which tokens are no padding."""
    image = inputs.get("patch_valid", inputs.get("pixel_attention_mask", torch.ones(batch, backbone.count))).bool()
    return F.pad(image, (backbone.prefix, backbone.suffix), value=True)


def rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape and expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def compare_outputs(actual: list[Tensor], expected: list[Tensor], last: Tensor, backbone: Backbone) -> None:
    """Of a model that leaves its tokens reduced. Maps of all tokens among its outputs are those that layers collect."""
    protected = with_protected(last, backbone.prefix, backbone.prefix + backbone.count, backbone.suffix)
    for a, b in zip(actual, expected, strict=True):
        if a.shape != b.shape:
            b = rows(b, protected if a.shape[1] == protected.shape[1] else last)
        elif a.ndim == 4 or a.shape[1] == backbone.count:
            continue
        assert_close(a, b)


@pytest.mark.parametrize("raster", [False, True], ids=["any_order", "raster_order"])
@pytest.mark.parametrize("method", ["dropping_before", "dropping_within"])
@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)
def test_dropping_is_masking(backbone: Backbone, method: str, raster: bool) -> None:
    """In each layer from the first that drops to the next that needs all tokens, in outputs and in collected maps."""
    inputs = backbone.inputs(BATCH)
    with checks.shared(backbone) as model:
        watch = Watch(backbone, model)
        chain = watch.chain()
        left = [int(backbone.count * share) for share in LEFT]
        reducing = dict(zip(sorted({chain[0], chain[len(chain) // 2]}), left, strict=False))
        patch(model, method, schedule=Schedule.keep(reducing), prop_attn=False, raster=raster)
        reduced, found = watch.run(inputs), report(model)
        ends = checks.reduction_of(model).restoring.ends
        image = {layer: representatives(layer, found) for layer in chain}
        assert {layer: image[layer].shape[1] for layer in reducing} == reducing
        unpatch(model)
        end = backbone.prefix + backbone.count
        kept = {layer: with_protected(image[layer], backbone.prefix, end, backbone.suffix) for layer in chain}
        sees = {layer: layer if method == "dropping_before" else layer - 1 for layer in chain}
        masked = watch.run(inputs, {layer: watch.hiding(kept[at]) for layer, at in sees.items() if at in kept})
    real = real_tokens(inputs, backbone, BATCH)
    for layer, index in kept.items():
        tokens, counted = reduced.after[layer], real.gather(1, index)
        tokens = rows(tokens, index) if tokens.shape[1] == real.shape[1] else tokens
        assert_close(tokens[counted], rows(masked.after[layer], index)[counted])
        if layer >= (first_map := watch.geometry.depth - len(masked.maps)):  # the last so many layers are collected
            maps = (seen.maps[layer - first_map] for seen in (reduced, masked))
            assert_close(*(rows(one, image[layer]) for one in maps))
    if not ends:
        compare_outputs(reduced.outputs, masked.outputs, image[chain[-1]], backbone)
