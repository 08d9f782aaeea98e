"""State-space models of other libraries and repositories: what is known of them, and why they cannot be patched."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

LOAD = (
    "it runs on CUDA only, and what its layers hand on is not what is restated here; load its weights into {}, with "
    "tokenreduce.models.checkpoints.load_checkpoint"
)
OWN = (
    "a model of scans in raster order can follow the protocol of tokenreduce.models.scanned.ScanModel; weights of Vim, "
    "VideoMamba and PlainMamba load with tokenreduce.models.checkpoints.load_checkpoint"
)


@dataclass(frozen=True)
class Foreign:
    """A family of models that are not patched.

    Args:
        name: of the family.
        pattern: found in the module and class of a part, `module.Class`, whatever the case.
        reason: why not, and what to do.
        attribute: that a part must have, too.
    """

    name: str
    pattern: str
    reason: str
    attribute: str = ""

    def fits(self, module: nn.Module) -> bool:
        """Whether `module` is a part of such a model."""
        cls = type(module)
        named = re.search(self.pattern, f"{cls.__module__}.{cls.__qualname__}", re.IGNORECASE)
        return named is not None and (not self.attribute or hasattr(module, self.attribute))


# The first that fits says it: names of later ones are parts of those of earlier ones.
KNOWN = (
    Foreign(
        "EfficientViM",
        r"efficientvim",
        "its states mix all tokens at once, without an order, and each of its stages convolves the whole grid, so that "
        "no layer can do with fewer tokens",
    ),
    Foreign(
        "MambaVision",
        r"mamba_?vision",
        "its stages halve the grid by convolutions, which need all tokens; only the stage of 14 x 14 could do with "
        "fewer, which is not supported",
    ),
    Foreign(
        "LocalMamba",
        r"local_?(vim|vmamba|mamba|vssm)",
        "its scans walk through windows of the whole grid, so that no layer can do with fewer tokens",
    ),
    Foreign(
        "VMamba",
        r"vmamba|\.(VSSM|VSSBlock|SS2D)$",
        "its stages halve the grid, and each of its blocks convolves and scans the whole grid along rows and columns, "
        "so that no layer can do with fewer tokens",
    ),
    Foreign(
        "FastVim",
        r"fast_?vim|faster_mamba|mamba_simple\w*_faster",
        "it averages rows and columns of the whole grid before its scans, so that no layer can do with fewer tokens",
    ),
    Foreign(
        "Famba-V",
        r"famba|models_mamba\.VisionMamba$",
        "it merges tokens itself, in training and without keeping their order; train a plain Vim, and load its weights "
        "into tokenreduce.models.vim.VisionMamba",
        attribute="fusion_strategy",
    ),
    Foreign(
        "VideoMamba",
        r"video_?mamba",
        LOAD.format('tokenreduce.models.vim.VisionMamba(class_token="first"), which takes images'),
    ),
    Foreign("Vim", r"\.VisionMamba$", LOAD.format("tokenreduce.models.vim.VisionMamba")),
    Foreign("PlainMamba", r"plain_?mamba", LOAD.format("tokenreduce.models.plain_mamba.PlainMamba")),
)


def foreign(model: nn.Module) -> str:
    """What is known of a state-space model of another library, and why it cannot be patched; empty if nothing is."""
    parts = [part for part in model.modules() if not type(part).__module__.startswith(("torch.", "tokenreduce."))]
    for family in KNOWN:
        part = next((part for part in parts if family.fits(part)), None)
        if part is not None:
            return f"its {type(part).__name__} is of {family.name}: {family.reason}"
    scanning = next((part for part in parts if has_rates(part)), None)
    if scanning is not None:
        return f"its {type(scanning).__name__} has the rates of a selective scan, but is of no known class; {OWN}"
    return ""


def has_rates(module: nn.Module) -> bool:
    """Whether a module has the logs of a scan's rates, under the name that Mamba gave them."""
    return any(name in ("A_log", "A_logs") for name, _ in module.named_parameters(recurse=False))
