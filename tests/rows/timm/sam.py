import torch
from backbones import Backbone, Inputs
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timms import timm_row
from torch import Tensor, nn


def no_positions(model: nn.Module) -> None:
    """Neither position embeddings nor relative positions or rotary embedding tell tokens apart."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "pos_embed" or name.endswith(("rel_pos_h", "rel_pos_w")):
                parameter.zero_()
        for name, buffer in model.named_buffers():
            if name in ("rope_global.pos_embed", "rope_window.pos_embed"):
                buffer.copy_(buffer[:1].clone())


def maps(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    found = model.forward_intermediates(inputs["x"], intermediates_only=True)
    return [one.flatten(2).transpose(1, 2) for one in found]


def sam(name: str, *, reducing: tuple[int, ...] = (1, 3), **arguments) -> Backbone:
    fields = {key: arguments.pop(key) for key in ("shares", "equal_positions", "one_size") if key in arguments}
    arguments = {"global_attn_indexes": reducing, "window_size": 4, "neck_chans": 16, "use_rel_pos": True} | arguments
    return timm_row(
        name,
        VisionTransformerSAM,
        arguments,
        reads="all",
        silence=("attn.proj", "mlp.fc2"),
        collect=maps,
        prefix=0,
        in_a_row={1, 2} <= {*reducing},
        biased=arguments["use_rel_pos"],
        rotary=arguments.get("use_rope", False),
        map_attention=f"blocks.{reducing[-1]}.attn",
        **{"equal_positions": no_positions} | fields,
    )


def make_rows() -> list[Backbone]:
    return [
        sam("timm_sam", shares=(0.95, 0.85), mlp_ratio=8),
        sam("timm_sam_in_a_row", reducing=(1, 2, 3), init_values=0.5, head_hidden_size=24),
        sam(
            "timm_sam_rope",
            use_rel_pos=False,
            use_rope=True,
            qk_norm=True,
            one_size=True,
            shares=(0.95, 0.85),
            mlp_ratio=8,
        ),
        sam(
            "timm_sam_global",
            reducing=(0, 1, 2, 3),
            use_rel_pos=False,
            neck_chans=0,
            num_classes=0,
            global_pool="",
        ),
        sam("timm_sam_padded", window_size=3, equal_positions=None, shares=(0.95, 0.85), mlp_ratio=8),
    ]
