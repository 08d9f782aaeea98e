from functools import partial
from typing import Any

from backbones import Backbone
from hugging import LAYERSCALE, SMALL, equal_rows, hf
from torch import Tensor, nn
from transformers import EomtConfig

CONFIG: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {
    "num_hidden_layers": 6,
    "num_blocks": 2,
    "num_queries": 5,
    "num_upscale_blocks": 1,
    "mlp_ratio": 2,
    "num_labels": 7,
    **LAYERSCALE,
}


def before_queries(prefix: int, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    states = model(**inputs, output_hidden_states=True).hidden_states[1:5]
    return [state[:, prefix:] for state in states]


def unmasked(config: EomtConfig) -> nn.Module:
    """As after training: the last layers' attention is not masked."""
    from transformers import EomtForUniversalSegmentation

    model = EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()
    return model


def make_rows() -> list[Backbone]:
    def row(name: str, build: Any, prefix: int, last: str, **options: Any) -> Backbone:
        config = EomtConfig(**CONFIG, num_register_tokens=prefix - 1, **options)
        return hf(
            name,
            build,
            config,
            last=last,
            reads="all",
            silence=("layer_scale1", "layer_scale2"),
            equal_positions=partial(equal_rows, "embeddings.position_embeddings.weight", 0),
            prefix=prefix,
            collect=partial(before_queries, prefix),
            shares=(0.9, 0.8),
            traceable=False,  # it asks a buffer whether attention is masked
        )

    return [
        row("hf_eomt", "EomtForUniversalSegmentation", 3, "layers.3.mlp.fc1"),
        row("hf_eomt_unmasked", unmasked, 1, "layers.3.mlp.up_proj", use_swiglu_ffn=True),
    ]
