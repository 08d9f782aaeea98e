import transformers as hf
from prompting import Row
from torch import nn

from ._qwen import PLAIN, config_of, qwen
from .qwen3_vl import VISION

LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
}


def build() -> nn.Module:
    text = LINEAR | {"head_dim": 8, "partial_rotary_factor": 1.0}
    return hf.Qwen3_5ForConditionalGeneration(config_of(hf.Qwen3_5Config, VISION, **text))


def make_row() -> Row:
    return qwen("qwen3_5", build, PLAIN | {"video": (8, 8)})
