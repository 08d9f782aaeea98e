"""PlainMamba: its layout, and its mixer against one that goes step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from snakes import slow_mixer
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.maps.grid_walks import left_of_grid, whole_grid
from tokenreduce.models.plain_mamba import PlainMamba, plain_mamba_l1, plain_mamba_l2, plain_mamba_l3
from tokenreduce.models.plain_mamba_mixer import PlainMambaMixer
from tokenreduce.models.positions import resized_positions

GRID = (3, 5)


def new_mixer(seed: int = 0) -> PlainMambaMixer:
    torch.manual_seed(seed)
    mixer = PlainMambaMixer(6, states=4, side=5).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return mixer


def some_left(batch: int, left: int, n: int) -> tuple[Tensor, Tensor]:
    """Different places `(B, L)` in each image, in raster order, and who stands for the others `(B, N)`."""
    g = torch.Generator().manual_seed(left)
    places = torch.stack([torch.randperm(n, generator=g)[:left].sort().values for _ in range(batch)])
    owners = torch.randint(0, left, (batch, n), generator=g)
    return places, owners.scatter(1, places, torch.arange(left).expand(batch, -1))


@pytest.mark.parametrize(
    ("make", "parameters", "layers", "convs"),
    [(plain_mamba_l1, 7_551_656, 24, 1), (plain_mamba_l2, 26_145_832, 24, 2), (plain_mamba_l3, 50_956_456, 36, 2)],
)
def test_keys_and_parameters_of_the_released_models(make: Any, parameters: int, layers: int, convs: int) -> None:
    with torch.device("meta"):
        model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"pos_embed", "patch_embed.stem.0.weight", "ln1.weight", "ln1.bias", "head.fc.weight", "head.fc.bias"}
    names |= {f"patch_embed.stem.1.{part}" for part in norm} | {f"patch_embed.projection.{p}" for p in norm[:2]}
    for i in range(convs):
        names |= {f"patch_embed.convs.{3 * i}.weight", *(f"patch_embed.convs.{3 * i + 1}.{part}" for part in norm)}
    mixer = ["A_log", "D", "direction_Bs", "x_proj.weight"]
    mixer += [f"{part}.{end}" for part in ("in_proj", "conv2d", "dt_proj", "out_proj") for end in norm[:2]]
    for i in range(layers):
        names |= {f"layers.{i}.norm.{end}" for end in norm[:2]} | {f"layers.{i}.mamba.{part}" for part in mixer}
    if convs == 1:
        names |= {"layers.0.dw.0.weight", *(f"layers.0.dw.1.{part}" for part in norm)}
    assert {*model.state_dict()} == names
    assert model.pos_embed.shape == (1, 196, model.num_features)
    assert model.layers[0].mamba.direction_Bs.shape == (5, 16)
    assert model.layers[0].mamba.conv2d.weight.shape == (2 * model.num_features, 1, 7, 7)


@torch.no_grad()
def test_the_mixer_of_a_whole_grid_is_the_slow_one() -> None:
    mixer, n = new_mixer(), GRID[0] * GRID[1]
    u = torch.randn(2, n, 6, dtype=torch.float64)
    everything = torch.arange(n).expand(2, -1)
    expected = slow_mixer(mixer, u, GRID, everything, everything)
    assert torch.allclose(mixer(u, whole_grid(GRID, 2, u.device)), expected, rtol=0, atol=1e-12)
    # The oddities show: without them the slow mixer gives something else.
    other = new_mixer()
    other.dt_proj.bias.div_(2)
    assert not torch.allclose(slow_mixer(other, u, GRID, everything, everything), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("gap", ["hold", "size", "self", "prev", "bias"])
@pytest.mark.parametrize("conv", ["stand_in", "zeros"])
def test_what_is_left_is_restored_convolved_and_scanned(conv: str, gap: str) -> None:
    mixer, left = new_mixer(1), 7
    places, owners = some_left(3, left, GRID[0] * GRID[1])
    u = torch.randn(3, left, 6, dtype=torch.float64)
    sizes = torch.randint(1, 5, places.shape).float()
    given = mixer(u, left_of_grid(GRID, places, owners, conv, gap, sizes))
    expected = slow_mixer(mixer, u, GRID, places, owners, conv, gap, sizes)
    assert torch.allclose(given, expected, rtol=0, atol=1e-12)
    alone = mixer(u[1:2], left_of_grid(GRID, places[1:2], owners[1:2], conv, gap, sizes[1:2]))
    assert torch.allclose(alone, given[1:2], rtol=0, atol=1e-12)
    others = {"stand_in": "zeros", "zeros": "stand_in"}[conv]
    assert not torch.allclose(mixer(u, left_of_grid(GRID, places, owners, others, gap, sizes)), expected, atol=1e-4)


@torch.no_grad()
def test_a_scan_with_gaps_is_the_whole_scan_whose_missing_tokens_write_nothing() -> None:
    """With the time step, B and C that every token of the raster has, removed or not."""
    mixer, n = new_mixer(2), GRID[0] * GRID[1]
    places, _ = some_left(1, 8, n)
    x, step = torch.randn(1, n, 12, dtype=torch.float64), torch.randn(1, n, 12, dtype=torch.float64)
    write, read = torch.randn(1, n, 4, dtype=torch.float64), torch.randn(1, n, 4, dtype=torch.float64)
    rate = -mixer.A_log.exp()
    gone = torch.ones(n, dtype=torch.bool)
    gone[places[0]] = False
    whole = whole_grid(GRID, 1, x.device)
    hidden = x.masked_fill(gone[None, :, None], 0)
    for number, walk in enumerate(whole.directions):
        full = mixer.scan(hidden, step, write, read, rate, walk)[:, places[0]]
        # All that is left is scanned with longer decays; here those are known.
        order = walk.order[0].flip(0) if walk.reverse else walk.order[0]
        taken, y, since = F.softplus(step[0]), [], 0
        state = torch.zeros_like(rate)
        for t, place in enumerate(order.tolist()):
            since = since + taken[t]
            if gone[place]:
                continue
            state = torch.exp(since[:, None] * rate) * state
            written = write[0, t] + mixer.direction_Bs[walk.moves[0, place]]
            state = state + (taken[t] * x[0, place])[:, None] * written
            y.append((place, state @ read[0, t] + mixer.D * x[0, place]))
            since = 0
        expected = torch.stack([value for _, value in sorted(y, key=lambda pair: pair[0])])
        assert torch.allclose(full[0], expected, rtol=0, atol=1e-10), number


@torch.no_grad()
def test_images_of_any_size() -> None:
    torch.manual_seed(0)
    model = PlainMamba(32, 8, embed_dim=16, depth=2, states=4, num_classes=3, depthwise=(0,)).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    images = torch.randn(1, 3, 30, 44)
    padded = F.pad(images, (0, 4, 0, 2))
    assert model.forward_features(images).shape == (1, 4 * 6, 16)
    assert model.embed(images)[1] == model.embed(padded)[1] == (4, 6)
    positions = resized_positions(model.pos_embed, (4, 4), (4, 6))
    assert torch.allclose(positions.mean((0, 1)), model.pos_embed.mean((0, 1)), atol=0.01)
    model.reset_classifier(5)
    assert model(images).shape == (1, 5) and model.get_classifier().fc.out_features == 5


@torch.no_grad()
def test_the_first_layer_of_l1_ends_with_a_convolution_without_residual() -> None:
    torch.manual_seed(0)
    model = PlainMamba(32, 8, embed_dim=16, depth=1, states=4, depthwise=(0,)).eval()
    layer, walks = model.layers[0], whole_grid((4, 4), 2, torch.device("cpu"))
    x = torch.randn(2, 16, 16)
    before = x + layer.mamba(layer.norm(x), walks)
    image = before.transpose(1, 2).reshape(2, 16, 4, 4)
    expected = F.gelu(layer.dw[1](F.conv2d(image, layer.dw[0].weight, padding=1, groups=16)))
    assert torch.allclose(layer(x, walks), expected.flatten(2).transpose(1, 2), atol=1e-6)
