from functools import partial

import torch
from backbones import Backbone
from hugging import equal_rows
from timm.models.beit import Beit
from timms import timm_row
from torch import nn


def equal_places(model: nn.Module) -> None:
    if model.pos_embed is not None:
        equal_rows("pos_embed", 1, model)
    with torch.no_grad():
        for name, table in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                table[:-3] = table[0].clone()


def make_rows() -> list[Backbone]:
    row = partial(timm_row, model=Beit, silence=("attn.proj", "mlp.fc2"), biased=True, equal_positions=equal_places)
    own = {"use_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.5}
    return [
        row("timm_beit", arguments=own, reads="tokens"),
        row("timm_beit_shared", arguments=own | {"use_shared_rel_pos_bias": True, "qkv_bias": False}, reads="tokens"),
        row("timm_beit_only_shared", arguments={"use_shared_rel_pos_bias": True, "global_pool": "token"}),
        row(
            "timm_beit_tokens",
            arguments=own | {"global_pool": "", "num_classes": 0, "swiglu_mlp": True, "scale_mlp": True},
            last="blocks.3.mlp.fc1_g",
            tokens_stay_reduced=True,
        ),
    ]
