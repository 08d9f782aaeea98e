"""The vision-language model that ships with the library: transformers' LLaVA classes, tiny, trained on `scenes`."""

from __future__ import annotations

from typing import Any

from tokenreduce.lab.data import scenes
from tokenreduce.lab.shipped.scene_words import BOS, EOS, IMAGE, PAD, SIDE, WORDS
from tokenreduce.lab.shipped.weights import ASSETS, with_weights

FILE = ASSETS / "scene_vlm.safetensors"
WIDTH, HEADS = 96, 3
TOWER_DEPTH, DECODER_DEPTH = 8, 6


def build_scene_vlm() -> Any:
    """`LlavaForConditionalGeneration` with random weights: CLIP's vision tower for 80 x 80 grey images (100 patches and
    the class token, 8 layers), a projector, a Llama decoder (6 layers)."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": HEADS}
    vision = CLIPVisionConfig(
        **sizes,
        num_hidden_layers=TOWER_DEPTH,
        intermediate_size=4 * WIDTH,
        image_size=scenes.SIZE,
        patch_size=scenes.SIZE // SIDE,
        num_channels=1,
        hidden_act="gelu",
        projection_dim=WIDTH,
    )
    ids: dict[str, Any] = {
        f"{name}_token_id": WORDS.index(word) for name, word in (("pad", PAD), ("bos", BOS), ("eos", EOS))
    }
    text = LlamaConfig(
        **sizes,
        **ids,
        num_hidden_layers=DECODER_DEPTH,
        intermediate_size=192,
        vocab_size=len(WORDS),
        max_position_embeddings=256,
        head_dim=WIDTH // HEADS,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORDS.index(IMAGE),
        image_seq_length=SIDE**2,
        vision_feature_layer=-1,
        **ids,
    )
    return LlavaForConditionalGeneration(config).eval()


def scene_vlm(pretrained: bool = True) -> Any:
    """The shipped model in eval mode; `SceneProcessor` makes its inputs."""
    model = build_scene_vlm()
    return with_weights(model, FILE) if pretrained else model
