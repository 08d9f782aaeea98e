"""Checkpoints in the released layouts, which the tests write themselves."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tokenreduce import patch
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.models.checkpoints import load_checkpoint
from tokenreduce.models.plain_mamba import PlainMamba
from tokenreduce.models.positions import resized_positions
from tokenreduce.models.vim import VisionMamba, vim_base, vim_small, vim_tiny

Weights = dict[str, torch.Tensor]


def small_vim(seed: int = 0, **options: Any) -> VisionMamba:
    torch.manual_seed(seed)
    return VisionMamba(**{"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_classes": 5, **options})


def small_plain(seed: int = 0, **options: Any) -> PlainMamba:
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_classes": 5, "depthwise": (0,)}
    return PlainMamba(**{**sizes, **options})


def vim_file(path: Path, **options: Any) -> Path:
    """What the training script of Vim saves: two sets of weights and its arguments."""
    found = {
        "model": small_vim(1, **options).state_dict(),
        "model_ema": small_vim(2, **options).state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "epoch": 299,
        "scaler": {"scale": 65536.0},
        "args": Namespace(model="vim_tiny", lr=1e-3, output_dir="out"),
    }
    torch.save(found, path)
    return path


def plain_file(path: Path, **options: Any) -> Path:
    """What mmcv saves of an image classifier: a head beside the backbone, and a second set of all parameters."""
    model = small_plain(1, **options)
    state = {name if name.startswith("head.") else f"backbone.{name}": v for name, v in model.state_dict().items()}
    state |= {f"ema_{name.replace('.', '_')}": torch.zeros_like(value) for name, value in state.items()}
    torch.save({"meta": {"epoch": 300, "CLASSES": ["cat", "dog"]}, "state_dict": state, "optimizer": {}}, path)
    return path


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("make", "parameters"), [(vim_tiny, 7_148_008), (vim_small, 25_796_584), (vim_base, 97_598_440)]
)
def test_keys_and_parameters_of_the_released_vims(make: Any, parameters: int) -> None:
    with torch.device("meta"):
        model = make()
    names = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm_f.weight"}
    names |= {"head.weight", "head.bias"}
    parts = ["norm.weight", "mixer.in_proj.weight", "mixer.out_proj.weight", "mixer.A_log", "mixer.A_b_log"]
    for end in ("", "_b"):
        parts += [f"mixer.conv1d{end}.weight", f"mixer.conv1d{end}.bias", f"mixer.x_proj{end}.weight"]
        parts += [f"mixer.dt_proj{end}.weight", f"mixer.dt_proj{end}.bias", f"mixer.D{end}"]
    names |= {f"layers.{i}.{part}" for i in range(24) for part in parts}
    assert {*model.state_dict()} == names and len(names) == 415
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.pos_embed.shape == (1, 197, model.num_features)


def test_vim_and_its_moving_average(tmp_path: Path) -> None:
    path = vim_file(tmp_path / "vim.pth")
    model = small_vim()
    assert load_checkpoint(model, path) is model and same_weights(model, small_vim(1))
    assert same_weights(load_checkpoint(small_vim(), path, ema=True), small_vim(2))


def test_plain_mamba_without_its_second_set(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "l1.pth")
    assert same_weights(load_checkpoint(small_plain(), str(path)), small_plain(1))
    with pytest.raises(InvalidValueError, match=r"keys meta, state_dict, optimizer; needed: .* leave ema=True out"):
        load_checkpoint(small_plain(), path, ema=True)


def test_plain_dictionaries_and_safetensors(tmp_path: Path) -> None:
    state = small_vim(1).state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "vim.safetensors")
    for name in ("plain.pth", "wrapped.pth", "vim.safetensors"):
        assert same_weights(load_checkpoint(small_vim(), tmp_path / name), small_vim(1)), name
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pth")
    loaded = load_checkpoint(small_vim(), tmp_path / "half.pth")
    assert loaded.pos_embed.dtype == torch.float32
    assert torch.equal(loaded.pos_embed, small_vim(1).pos_embed.half().float())


class Unknown:
    """What a file may not hold."""


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"model": small_vim().state_dict(), "extra": Unknown()}, tmp_path / "vim.pth")
    with pytest.raises(InvalidValueError, match=r"argparse.Namespace.*it could run code.*safetensors"):
        load_checkpoint(small_vim(), tmp_path / "vim.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(InvalidValueError, match=r"page.pth"):
        load_checkpoint(small_vim(), tmp_path / "page.pth")
    path = vim_file(tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidValueError, match=r"cut.pth is no file of torch.save: .*download it again"):
        load_checkpoint(small_vim(), path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InvalidValueError, match=r"holds a list; it must hold a dictionary"):
        load_checkpoint(small_vim(), tmp_path / "list.pth")
    torch.save({"model": {"head.weight": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(InvalidValueError, match=r"are not all tensors: head.weight"):
        load_checkpoint(small_vim(), tmp_path / "numbers.pth")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(small_vim(), tmp_path / "none.pth")
    with pytest.raises(InvalidTypeError, match=r"model is Linear; load_checkpoint is for .*VisionMamba and"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "list.pth")  # type: ignore[type-var]


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = small_vim()
    path = vim_file(tmp_path / "vim.pth")
    with pytest.raises(InvalidValueError, match=r"on the meta device.*to_empty"):
        load_checkpoint(model, path)
    assert same_weights(load_checkpoint(model.to_empty(device="cpu"), path), small_vim(1))


def test_a_patched_model_takes_weights(tmp_path: Path) -> None:
    model = patch(small_vim(), "tome", ratio=0.5)
    assert same_weights(load_checkpoint(model, vim_file(tmp_path / "vim.pth")), small_vim(1))


def refused(model: Any, path: Path, match: str, **options: Any) -> None:
    """It is said why, and the model stays as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidValueError, match=match):
        load_checkpoint(model, path, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_checkpoints_of_other_models_are_refused_in_words(tmp_path: Path) -> None:
    vim, plain = vim_file(tmp_path / "vim.pth"), plain_file(tmp_path / "plain.pth")
    refused(small_vim(), plain, "holds weights of PlainMamba, and the model is a VisionMamba")
    refused(small_plain(), vim, "holds weights of VisionMamba, and the model is a PlainMamba")
    refused(small_vim(depth=3), vim, "17 of 58 weights are missing, .*it has 2 layers and the model has 3")
    refused(small_vim(depth=1), vim, "17 are not of this model, .*it has 2 layers and the model has 1")
    wider = r"cls_token \(1, 1, 16\) instead of \(1, 1, 24\).* and \d+ more; make the model of the size"
    refused(small_vim(embed_dim=24), vim, wider)
    refused(small_vim(num_classes=7), vim, r"head.weight \(5, 16\) instead of \(7, 16\).*reset_classifier")
    refused(small_vim(num_classes=0), vim, "2 are not of this model, head.weight, head.bias; .*reset_classifier")
    torch.save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(1)}}, tmp_path / "vit.pth")
    refused(small_vim(), tmp_path / "vit.pth", "41 of 41 weights are missing, .*blocks.0.attn.qkv.weight")
    state = {name: value for name, value in small_vim().state_dict().items() if name != "layers.1.mixer.D_b"}
    torch.save(state, tmp_path / "less.pth")
    refused(small_vim(), tmp_path / "less.pth", "does not fit .*: 1 of 41 weights are missing, layers.1.mixer.D_b$")


@pytest.mark.parametrize("class_token", ["middle", "first"])
def test_positions_of_another_grid(tmp_path: Path, class_token: str) -> None:
    """An image of another size, and a stride of half a patch: the class token's row is never mixed with others."""
    path = vim_file(tmp_path / "vim.pth", class_token=class_token)
    old = small_vim(1, class_token=class_token)
    row = 8 if class_token == "middle" else 0
    others = torch.cat([old.pos_embed[:, :row], old.pos_embed[:, row + 1 :]], 1)
    for options, side in (({"img_size": 48}, 6), ({"stride": 4}, 7)):
        refused(small_vim(class_token=class_token, **options), path, "give resize_positions=True")
        model = load_checkpoint(small_vim(class_token=class_token, **options), path, resize_positions=True)
        place = side * side // 2 if class_token == "middle" else 0
        assert torch.equal(model.pos_embed[:, place], old.pos_embed[:, row])
        rest = torch.cat([model.pos_embed[:, :place], model.pos_embed[:, place + 1 :]], 1)
        image = others.transpose(1, 2).reshape(1, 16, 4, 4)
        image = nn.functional.interpolate(image, (side, side), mode="bicubic")
        assert torch.allclose(rest, image.flatten(2).transpose(1, 2), atol=1e-6)
        assert torch.equal(model.layers[1].norm.weight, old.layers[1].norm.weight)
    unchanged = load_checkpoint(small_vim(class_token=class_token), path, resize_positions=True)
    assert same_weights(unchanged, old)


def test_positions_of_plain_mamba_and_of_what_is_no_grid(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "plain.pth")
    refused(small_plain(img_size=48), path, "give resize_positions=True")
    model = load_checkpoint(small_plain(img_size=48), path, resize_positions=True)
    assert torch.equal(model.pos_embed, resized_positions(small_plain(1).pos_embed, (4, 4), (6, 6)))
    state = small_vim().state_dict() | {"pos_embed": torch.zeros(1, 12, 16)}
    torch.save(state, tmp_path / "odd.pth")
    refused(small_vim(), tmp_path / "odd.pth", r"\(1, 12, 16\), which is no square grid and a", resize_positions=True)
