"""`VisionMamba` and its mixer: the sizes of the released models, and slow restatements of what they compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from slow_scans import restored_mixer, slow_mixer
from torch import Tensor, nn
from torch.nn import functional as F

from tokenreduce.maps.walks import CONVOLUTIONS, GAPS, Walk, walks
from tokenreduce.models import vim
from tokenreduce.models.vim import RmsNorm, VimBlock, VisionMamba
from tokenreduce.models.vim_mixer import VimMixer

WIDTH, LENGTH = 16, 11


def mixer(halved: bool = True, dtype: torch.dtype = torch.float64, **sizes: Any) -> VimMixer:
    """One with all parameters perturbed."""
    torch.manual_seed(0)
    made = VimMixer(WIDTH, states=4, halved=halved, **sizes).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def tokens(batch: int = 2, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("name", "total"), [("tiny", 7_148_008), ("small", 25_796_584), ("base", 97_598_440)])
def test_vim_has_the_parameters_of_the_released_weights(name: str, total: int) -> None:
    with torch.device("meta"):
        state = getattr(vim, f"vim_{name}")().state_dict()
    assert len(state) == 415 and sum(tensor.numel() for tensor in state.values()) == total
    width = {"tiny": 192, "small": 384, "base": 768}[name]
    assert state["pos_embed"].shape == (1, 197, width) and state["layers.23.mixer.A_b_log"].shape == (2 * width, 16)
    assert state["layers.0.mixer.conv1d_b.weight"].shape == (2 * width, 1, 4)
    assert "layers.0.mixer.dt_proj_b.bias" in state and "norm_f.bias" not in state


@pytest.mark.parametrize(("name", "width", "depth"), [("tiny", 192, 24), ("small", 384, 24), ("middle", 576, 32)])
def test_videomamba_has_its_class_token_first(name: str, width: int, depth: int) -> None:
    with torch.device("meta"):
        model = getattr(vim, f"videomamba_{name}")()
    assert (model.num_features, len(model.layers), model.class_place) == (width, depth, 0)
    assert not any(layer.mixer.halved for layer in model.layers)


@pytest.mark.parametrize("halved", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, LENGTH])
def test_mixer_is_the_slow_one(halved: bool, length: int) -> None:
    made, u = mixer(halved), tokens(length=length)
    torch.testing.assert_close(made(u), slow_mixer(made, u), rtol=0, atol=1e-12)


def test_backwards_is_forwards_with_parameters_swapped() -> None:
    made, other, u = mixer(), mixer(), tokens()
    state = made.state_dict()
    swapped = {}
    for name in state:
        if name.startswith(("in_proj", "out_proj")):
            swapped[name] = state[name]
        elif name in ("A_log", "A_b_log"):
            swapped[name] = state["A_b_log" if name == "A_log" else "A_log"]
        else:
            first, dot, rest = name.partition(".")
            swapped[name] = state[(first.removesuffix("_b") if first.endswith("_b") else f"{first}_b") + dot + rest]
    other.load_state_dict(swapped)
    torch.testing.assert_close(other(u.flip(1)), made(u).flip(1), rtol=0, atol=1e-12)
    assert not torch.allclose(other(u), made(u), atol=1e-3)


def test_forward_direction_is_that_of_transformers() -> None:
    """With the same weights, from `in_proj` to `out_proj`; their one mixer runs forwards only."""
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    config = mamba.MambaConfig(hidden_size=WIDTH, state_size=4, conv_kernel=4, expand=2, time_step_rank=1)
    made, theirs = mixer(dtype=torch.float32), mamba.MambaMixer(config, layer_idx=0)
    state = made.state_dict()
    theirs.load_state_dict({name: state[name] for name in theirs.state_dict()})
    u = tokens(dtype=torch.float32)
    x, z = made.in_proj(u).chunk(2, -1)
    slow = getattr(theirs, "slow_forward", theirs)
    torch.testing.assert_close(made.out_proj(made.scan(x, z, Walk(), "")), slow(u), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_what_is_left_is_mixed_as_if_restored(conv: str, gap: str) -> None:
    """Rows `[class token | tokens that are left]`, other ones and another place of the class token in each image."""
    made, u = mixer(), tokens(batch=3, length=6)
    g = torch.Generator().manual_seed(3)
    kept = torch.stack([torch.randperm(12, generator=g)[:5].sort().values for _ in range(3)])
    rank = torch.cat([torch.full((3, 1), 6), kept + (kept >= 6)], 1)
    owners = torch.randint(6, (3, 13), generator=g).scatter(1, rank, torch.arange(6).expand(3, -1))
    assert len({int((row < 6).sum()) for row in kept}) > 1, "class tokens of several ranks"
    sizes = torch.randint(1, 5, (3, 6), generator=g).float()
    both = walks(rank, owners, made.taps, conv, gap, in_order=False, sizes=sizes)
    if gap == "frozen":
        frozen = torch.rand(2, 3, 6, made.inner, generator=g, dtype=torch.float64)
        both = replace(both[0], frozen=frozen[0]), replace(both[1], frozen=frozen[1])
    expected = restored_mixer(made, u, rank, owners, both, conv)
    torch.testing.assert_close(made(u, both), expected, rtol=0, atol=1e-12)
    assert (made(u) - expected).abs().max() > 1e-2, "walks that stand for something"


@pytest.mark.parametrize("place", ["middle", "first"])
def test_model_is_its_parts(place: str) -> None:
    torch.manual_seed(0)
    model = VisionMamba(16, 4, embed_dim=WIDTH, depth=2, states=4, num_classes=5, class_token=place).eval()
    images = torch.randn(2, 3, 16, 16)
    x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    at = 8 if place == "middle" else 0
    x = torch.cat([x[:, :at], model.cls_token.expand(2, -1, -1), x[:, at:]], 1) + model.pos_embed
    for layer in model.layers:
        x = x + slow_mixer(layer.mixer, layer.norm(x))
    x = F.rms_norm(x, (WIDTH,), model.norm_f.weight, 1e-5)
    torch.testing.assert_close(model.forward_features(images), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images), model.head(x[:, at]), rtol=0, atol=1e-5)
    assert torch.equal(model.forward_head(x, pre_logits=True), x[:, at])


def test_strides_sizes_and_heads() -> None:
    model = VisionMamba(16, 4, stride=2, embed_dim=WIDTH, depth=1, states=2, num_classes=0).eval()
    images = torch.randn(1, 3, 16, 16)
    assert model.grid == (7, 7) and model.forward_features(images).shape == (1, 50, WIDTH)
    assert model(images).shape == (1, WIDTH) and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(3)
    assert model(images).shape == (1, 3) and model.num_classes == 3
    with pytest.raises(ValueError, match="unknown class_token 'last'; valid: first, middle"):
        VisionMamba(class_token="last")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norm_has_wide_statistics(dtype: torch.dtype) -> None:
    norm, x = RmsNorm(WIDTH).to(dtype), (tokens() * 30).to(dtype)
    nn.init.normal_(norm.weight)
    exact = F.rms_norm(x.double(), (WIDTH,), norm.weight.double(), 1e-5)
    torch.testing.assert_close(norm(x).double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-9)
    assert norm(x).dtype == dtype


def test_stream_stays_wide_in_half_precision() -> None:
    model = VisionMamba(16, 4, embed_dim=WIDTH, depth=2, states=2).eval().to(torch.bfloat16)
    seen: list[torch.dtype] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    assert model(torch.randn(1, 3, 16, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert seen == [torch.float32] * 2


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block, x = VimBlock(WIDTH, 2, 4, 2, True, drop_path=0.25), torch.randn(4000, 1, WIDTH)
    y = torch.ones(4000, 3, 2)
    dropped = block.train().dropped(y)
    values = dropped.flatten(1)
    assert ((values == 0).all(1) | (values == 1 / 0.75).all(1)).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.04)
    assert block.eval().dropped(y) is y and torch.equal(block(x), block(x))
    model = VisionMamba(16, 4, embed_dim=WIDTH, depth=4, states=2, drop_path=0.3)
    assert [layer.drop_path for layer in model.layers] == pytest.approx([0, 0, 0.1, 0.2])
