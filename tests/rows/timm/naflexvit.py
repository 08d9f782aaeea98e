from typing import Any

import pytest
import torch
from backbones import PATCH, Backbone, Inputs
from timm.models.naflexvit import NaFlexVit
from timms import timm_row
from torch import Tensor, nn


def padded(backbone: Backbone, images: Tensor) -> Inputs:
    """Patches in raster order of images with 5, 6, 7, 8, 5, ... rows of them; the others are padding."""
    rows, columns = backbone.grid
    cut = images.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH)).permute(0, 2, 4, 3, 5, 1)
    heights = torch.tensor([5 + i % 4 for i in range(images.shape[0])])
    valid = torch.arange(rows * columns) < heights[:, None] * columns
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).flatten(0, 1)
    return {"x": cut.flatten(1, 2).flatten(2), "patch_coord": places * valid[..., None], "patch_valid": valid}


def equal_places(model: nn.Module) -> None:
    with torch.no_grad():
        for name, table in model.named_parameters():
            if name == "embeds.pos_embed":
                table[:] = table[:, :1, :1].clone()
            if name.startswith("embeds.pos_embed_"):
                table[:] = table[:, :1].clone()
            if name == "rope.freqs":
                table.zero_()
        if hasattr(model.rope, "bands"):
            model.rope.bands.zero_()
        if hasattr(model.rope, "periods"):
            model.rope.periods.fill_(torch.inf)


def new_naflex(**arguments: Any) -> nn.Module:
    """A `NaFlexVit`; that of an older timm is refused if it rotates."""
    if "rope_type" in arguments:
        pytest.importorskip("timm", "1.0.28")
    return NaFlexVit(**arguments)


def make_rows() -> list[Backbone]:
    def row(name: str, prefix: int = 0, **arguments: Any) -> Backbone:
        fields = {
            key: arguments.pop(key) for key in ("collect", "make_inputs", "traceable", "padded") if key in arguments
        }
        return timm_row(
            name,
            new_naflex,
            {"pos_embed_grid_size": (8, 8)} | arguments,
            reads="all",
            silence=("attn.proj", "mlp.fc2"),
            equal_positions=equal_places,
            lacks=frozenset({"grid"}),
            prefix=prefix,
            class_token=arguments.get("class_token", False),
            rotary="rope_type" in arguments,
            **fields,
        )

    images = {"make_inputs": padded, "collect": None, "traceable": False, "padded": "patch_valid"}
    return [
        row("timm_naflex", init_values=0.5),
        row(
            "timm_naflex_rope",
            3,
            class_token=True,
            reg_tokens=2,
            global_pool="token",
            pos_embed="none",
            rope_type="dinov3",
            rope_rotate_half=True,
            attn_type="eva",
        ),
        row("timm_naflex_padded", **images),
        row(
            "timm_naflex_padded_rope",
            1,
            class_token=True,
            global_pool="avg",
            pos_embed="factorized",
            rope_type="axial",
            **images,
        ),
        row(
            "timm_naflex_padded_mixed",
            prefix=2,
            reg_tokens=2,
            global_pool="avgmax",
            rope_type="mixed",
            use_key_only_attn_mask=True,
            **images,
        ),
    ]
