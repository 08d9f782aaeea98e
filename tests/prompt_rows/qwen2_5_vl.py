import transformers as hf
from prompting import Row
from torch import nn

from ._qwen import FRAMES, PATCH, config_of, qwen


def build() -> nn.Module:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    vision |= {"patch_size": PATCH, "temporal_patch_size": FRAMES, "spatial_merge_size": 2}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return hf.Qwen2_5_VLForConditionalGeneration(config_of(hf.Qwen2_5_VLConfig, vision))


def make_row() -> Row:
    return qwen("qwen2_5_vl", build, within=True)
