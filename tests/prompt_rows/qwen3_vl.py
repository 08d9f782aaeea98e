import transformers as hf
from prompting import Row
from torch import nn

from ._qwen import FRAMES, PATCH, PLAIN, config_of, qwen

VISION = {"depth": 3, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
VISION |= {"patch_size": PATCH, "temporal_patch_size": FRAMES, "spatial_merge_size": 2, "num_position_embeddings": 64}


def build() -> nn.Module:
    vision = VISION | {"deepstack_visual_indexes": [0, 1]}
    return hf.Qwen3VLForConditionalGeneration(config_of(hf.Qwen3VLConfig, vision, head_dim=8))


def make_row() -> Row:
    return qwen("qwen3_vl", build, PLAIN | {"video": (8, 8)})  # a run of placeholders for each frame
