from collections.abc import Sequence

import torch
import transformers as hf
from prompting import IMAGE, TEXT, VIDEO, Row
from torch import Tensor, nn

from ._gemma import WINDOW, pairs, runs

LAYERS = ["sliding_attention", "full_attention", "full_attention"]
GRIDS = {"a": (8, 8), "b": (4, 12), "video": (4, 8)}  # of patches, the mean of 2 x 2 is a token


def build() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"head_dim": 16, "intermediate_size": 64, "pooling_kernel_size": 2, "patch_size": 4}
    more = {"head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 100}
    more |= {"num_kv_shared_layers": 1, "layer_types": LAYERS, "sliding_window": WINDOW}
    config = hf.Gemma4Config(
        vision_config=hf.Gemma4VisionConfig(**sizes, position_embedding_size=64),
        text_config=hf.Gemma4TextConfig(**TEXT, **more, use_bidirectional_attention="vision"),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=97,
    )
    return hf.Gemma4ForConditionalGeneration(config)


def encode(names: Sequence[str], generator: torch.Generator) -> dict[str, Tensor]:
    frames = [GRIDS[name] for name in names for _ in range(2 if name == "video" else 1)]
    pixels, places = zip(*(patches_of(*frame, generator) for frame in frames), strict=True)
    if names[0] == "video":
        counts = torch.full((len(names),), 2)
        given = {"pixel_values_videos": torch.stack(pixels), "video_position_ids": torch.stack(places)}
        return given | {"num_frames_per_video": counts}
    return {"pixel_values": torch.stack(pixels), "image_position_ids": torch.stack(places)}


def patches_of(height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels of 64 patches and where they are; -1: nowhere, as all images have equally many."""
    n = height * width
    pixels, places = torch.zeros(64, 3 * 4**2), torch.full((64, 2), -1)
    pixels[:n] = torch.rand(n, 3 * 4**2, generator=generator)
    places[:n] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)
    return pixels, places


def masks(places: Tensor, blocks: Tensor) -> dict[str, Tensor]:
    """Only layers with windows let tokens of an image see each other."""
    return {
        "full_attention": pairs(places, blocks, both_ways=False),
        "sliding_attention": pairs(places, blocks, WINDOW),
    }


def types(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def make_row() -> Row:
    units = {"a": (16,), "b": (12,), "video": (8, 8)}
    return Row("gemma4", build, units, encode, {}, types=types, blocks=runs, masks=masks)
