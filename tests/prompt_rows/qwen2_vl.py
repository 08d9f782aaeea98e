import transformers as hf
from prompting import Row
from torch import nn

from ._qwen import FRAMES, PATCH, config_of, qwen


def build() -> nn.Module:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    vision |= {"patch_size": PATCH, "temporal_patch_size": FRAMES, "spatial_merge_size": 2}
    return hf.Qwen2VLForConditionalGeneration(config_of(hf.Qwen2VLConfig, vision))


def make_row() -> Row:
    return qwen("qwen2_vl", build, within=True)
