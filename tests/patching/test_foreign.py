"""State-space models of others are refused with what is known of them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import tokenreduce
from tokenreduce.errors import InvalidValueError
from tokenreduce.models.plain_mamba import PlainMamba
from tokenreduce.models.plain_mamba_mixer import PlainMambaMixer
from tokenreduce.models.vim_mixer import VimMixer


def made(module: str, name: str, **attributes: object) -> nn.Module:
    """A module of a class of this name, defined in a module of that one."""
    part = type(name, (nn.Module,), {"__module__": module, "__qualname__": name})()
    for key, value in attributes.items():
        setattr(part, key, value)
    return part


FOREIGN = [
    ("VMamba", made("classification.models.vmamba", "VSSM"), "scans the whole grid along rows and columns"),
    ("VMamba", made("detection.model", "SS2D"), "stages halve the grid"),
    ("LocalMamba", made("lib.models.local_vmamba", "VSSM"), "through windows of the whole grid"),
    ("LocalMamba", made("lib.models.local_vim", "VisionMamba"), "through windows of the whole grid"),
    ("MambaVision", made("mambavision.models.mamba_vision", "MambaVision"), "which need all tokens"),
    ("MambaVision", made("transformers_modules.nvidia.modeling_mambavision", "MambaVisionModel"), "not supported"),
    ("FastVim", made("models.fastvim", "VisionMamba"), "averages rows and columns"),
    ("FastVim", made("mamba_ssm.modules.mamba_simple_channel_faster", "Mamba"), "averages rows and columns"),
    ("Famba-V", made("models_mamba", "VisionMamba", fusion_strategy="all"), "without keeping their order"),
    ("Vim", made("models_mamba", "VisionMamba"), r"load its weights into tokenreduce.models.vim.VisionMamba, with"),
    ("VideoMamba", made("videomamba", "VisionMamba"), "load_checkpoint"),
    ("VideoMamba", made("videomamba", "Block"), r'VisionMamba\(class_token="first"\)'),
    ("PlainMamba", made("mmcls.models.plain_mamba_dev.plain_mamba", "PlainMamba"), r"plain_mamba.PlainMamba, with"),
]


@pytest.mark.parametrize(
    ("family", "part", "reason"), FOREIGN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_families_that_are_known(family: str, part: nn.Module, reason: str) -> None:
    for model in (part, nn.Sequential(nn.Linear(1, 1), nn.ModuleDict({"backbone": part}))):
        with pytest.raises(InvalidValueError, match=f"its {type(part).__name__} is of {family}: .*{reason}") as told:
            tokenreduce.patch(model, "tome", ratio=0.5)
        assert str(told.value).startswith(f"{type(model).__name__} holds no backbone that tokenreduce can reduce")


def test_efficientvim_of_timm() -> None:
    model = timm.create_model("efficientvim_m1")
    with pytest.raises(InvalidValueError, match=r"its EfficientVi.* is of EfficientViM: .* without an order"):
        tokenreduce.compatible(model)


class Scan(nn.Module):
    """Somebody's scan."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(2, 2))


def test_unknown_scans_are_told_of_the_protocol() -> None:
    with pytest.raises(InvalidValueError, match=r"its Scan has the rates of a selective scan.*scanned.ScanModel"):
        tokenreduce.patch(nn.Sequential(Scan()), "tome", ratio=0.5)


def test_others_are_told_what_is_known_as_before() -> None:
    for model in (nn.Linear(1, 1), VimMixer(16), PlainMambaMixer(16), nn.Sequential(PlainMamba(32, 8).layers[0])):
        with pytest.raises(InvalidValueError, match="holds no backbone that tokenreduce knows; known: timm"):
            tokenreduce.patch(model, "tome", ratio=0.5)
