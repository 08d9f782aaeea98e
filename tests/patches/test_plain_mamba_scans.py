"""PlainMamba with fewer tokens: each mixer is the slow one of what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tokenreduce.patches.scan.plain_mamba
import torch
from snakes import slow_mixer
from torch import Tensor, nn

import tokenreduce
from tokenreduce import Schedule, count_flops, patch, report, unpatch
from tokenreduce.errors import InvalidValueError
from tokenreduce.models.plain_mamba import PlainMamba
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.reducers import registry

METHODS = tokenreduce.methods("encoder")


@dataclass(frozen=True)
class TomeBefore(registry.lookup("tome")):  # type: ignore[misc]
    """ToMe in front of a layer."""

    name: ClassVar[str] = "tome_before"
    placement: ClassVar[str] = "pre"


def new_model(**options: Any) -> PlainMamba:
    torch.manual_seed(0)
    sizes = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 4, "states": 4, "num_classes": 3}
    return PlainMamba(**{**sizes, "stem_convs": 0, **options}).double().eval()


def images(batch: int = 3, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=g, dtype=torch.float64)


def watched(model: PlainMamba) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """What enters and leaves each mixer, filled by the next forwards."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    for layer in model.layers:
        layer.mamba.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out)))
    return seen


def places_after(maps: list[tuple[int, Any]], layer: int, batch: int, n: int) -> tuple[Tensor, Tensor]:
    """Where the tokens of a layer stand, and who stands for each place, from the maps before it."""
    places = owners = torch.arange(n).expand(batch, -1)
    for made_in, token_map in maps:
        if made_in < layer:
            places = places.gather(1, token_map.rep)
            stands = token_map.dest.scatter(1, token_map.rep, torch.arange(token_map.count).expand(batch, -1))
            owners = stands.gather(1, owners)
    return places, owners


@torch.no_grad()
@pytest.mark.parametrize("gap", ["hold", "self", "prev", "bias"])
@pytest.mark.parametrize("conv", ["auto", "zeros"])
@pytest.mark.parametrize("method", ["tome", "hsa", "mtr"])
def test_mixers_of_fewer_tokens_are_slow_ones(method: str, conv: str, gap: str) -> None:
    model, x = new_model(), images(height=20, width=28)
    patch(model, method, schedule=Schedule.keep({0: 30, 2: 17}), scan_conv=conv, scan_gap=gap)
    seen = watched(model)
    model(x)
    maps = report(model).maps
    assert [layer for layer, _ in maps] == [0, 2]
    lengths = []
    for layer, (mixer, u, out) in enumerate(seen):
        places, owners = places_after(maps, layer, 3, 35)
        lengths.append(u.shape[1])
        words = {"auto": "stand_in"}.get(conv, conv), gap
        assert torch.allclose(out, slow_mixer(mixer, u, (5, 7), places, owners, *words), rtol=0, atol=1e-10)
        assert (places.diff(dim=1) > 0).all()
    assert lengths == [35, 30, 30, 17]
    assert not torch.equal(maps[0][1].rep[0], maps[0][1].rep[1])  # images keep different tokens


@torch.no_grad()
@pytest.mark.parametrize("method", [m for m in METHODS if m in tokenreduce.compatible(new_model())])
def test_order_batch_and_restoring(method: str) -> None:
    model, x = new_model(), images(3)
    plain = model(x)
    patch(model, method, ratio=0)
    assert torch.equal(model(x), plain)
    patch(model, method, ratio=0.4)
    together = model(x)
    for _, token_map in report(model).maps:
        assert (token_map.representatives().diff(dim=1) >= 0).all()
    alone = model(x[1:2])
    assert torch.allclose(alone, together[1:2], atol=1e-9)
    assert together.shape == plain.shape and not torch.allclose(together, plain)
    assert model.forward_features(x).shape == (3, 36, 16)  # restored, as the head reads the mean of all
    unpatch(model)
    assert torch.equal(model(x), plain)


@torch.no_grad()
def test_the_mean_of_restored_tokens_weighs_by_size() -> None:
    model, x = new_model(), images(2)
    patch(model, "tome", ratio=0.5)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    sizes = report(model).sizes
    patch(model, "tome", ratio=0.5, restore=False)
    reduced = model.forward_features(x)
    assert reduced.shape == (2, 18, 16) and sizes.max() > 1
    assert torch.allclose((reduced * sizes[..., None]).sum(1) / 36, pooled, atol=1e-6)


@torch.no_grad()
def test_costs_are_what_is_counted() -> None:
    model = new_model(depthwise=(0,), stem_convs=1)
    costs = find_backbone(model)[2].geometry(model).costs
    n = (36,) * 4
    assert costs.macs(n, n, 0, "mid") == count_flops(model, images(1)).total
    patch(model, "random", r=[6, 6, 6, 6], restore=False)
    left = reduction_of(model).counts(36)
    expected = costs.macs((36, *left[:-1]), left, 0, "mid")
    assert count_flops(model, images(1)).model == expected < costs.macs(n, n, 0, "mid")


@torch.no_grad()
def test_the_first_layer_of_l1_convolves_the_filled_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reduction before it leaves fewer tokens; its convolution sees what stands for the others."""
    model, x = new_model(depthwise=(0,)), images(2)
    monkeypatch.setitem(registry._registry, "tome_before", TomeBefore)
    patch(model, "tome_before", schedule=Schedule.keep({0: 20}), restore=False)
    seen: list[Tensor] = []
    model.layers[0].dw.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    entered: list[Tensor] = []
    model.layers[1].mamba.register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    model(x)
    assert seen[0].shape == (2, 16, 6, 6) and entered[0].shape == (2, 20, 16)
    _, token_map = report(model).maps[0]
    full = seen[0].flatten(2).transpose(1, 2)
    dest = token_map.dest_or_argmax()
    for image in range(2):
        for token in range(36):
            stand_in = token_map.representatives()[image, dest[image, token]]
            assert torch.equal(full[image, token], full[image, stand_in])


def test_what_means_nothing_on_a_grid_is_refused() -> None:
    model = new_model()
    with pytest.raises(InvalidValueError, match=r"scan_conv is 'compact'.*on the grid.*or give 'stand_in'"):
        patch(model, "tome", ratio=0.5, scan_conv="compact")
    with pytest.raises(InvalidValueError, match=r"scan_gap is 'frozen'.*has none of its own.*or give 'size'"):
        patch(model, "tome", ratio=0.5, scan_gap="frozen")
    model.layers[0].mamba.__class__ = type("Other", (type(model.layers[0].mamba),), {})
    with pytest.raises(InvalidValueError, match="mixers are of class Other"):
        patch(model, "tome", ratio=0.5)


@torch.no_grad()
def test_time_steps_have_the_bias_twice() -> None:
    model, x, seen = new_model(), images(1), []
    mtr = registry.lookup("mtr")
    patch(model, "mtr", schedule=Schedule.keep({1: 20}))
    original = mtr.plan

    def plan(self: Any, tokens: Any, keep: int, state: Any = None) -> Any:
        seen.append(tokens.time_step)
        return original(self, tokens, keep, state)

    layer, raw = model.layers[1].mamba, []
    layer.dt_proj.register_forward_hook(lambda m, args, out: raw.append(out))
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(mtr, "plan", plan)
        model(x)
    assert torch.allclose(seen[0].double(), nn.functional.softplus(raw[0] + layer.dt_proj.bias), atol=1e-6)


@torch.no_grad()
def test_the_limit_slices_rows_off() -> None:
    model, x = new_model(), images(2, 20, 28)
    adapter = find_backbone(model)[2]
    with adapter.sliced(model, (35, 20, 20, 9), "mid") as sliced:
        seen = watched(model)
        sliced(x)
    assert [u.shape[1] for _, u, _ in seen] == [35, 35, 20, 20]
    places = torch.arange(20).expand(2, -1)
    owners = torch.arange(35).clamp(max=19).expand(2, -1)
    mixer, u, out = seen[2]
    assert torch.allclose(out, slow_mixer(mixer, u, (5, 7), places, owners), rtol=0, atol=1e-10)
    assert type(model.layers[0]).__name__ == "PlainMambaLayer"
