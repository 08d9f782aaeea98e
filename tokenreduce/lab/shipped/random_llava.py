"""A LLaVA of medium size with random weights, for timing without a download: answers mean nothing, times do."""

from __future__ import annotations

from typing import Any

import torch

NAME = "random-llava"
WIDTH, DEPTH, HEADS = 512, 8, 8  # of the language model
SIDE, PATCH, TOWER_WIDTH, TOWER_DEPTH = 24, 14, 256, 4  # 576 tokens an image, as LLaVA 1.5
WORDS = 8000


def random_llava(width: int = WIDTH, depth: int = DEPTH, side: int = SIDE, words: int = WORDS) -> Any:
    """`LlavaForConditionalGeneration` with the same random weights each time: CLIP's tower for images of 336 x 336 (576
    tokens), a projector, a Llama decoder.

    Args:
        width, depth: of the decoder.
        side: patches along a side of an image.
        words: that it knows.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        num_hidden_layers=TOWER_DEPTH,
        num_attention_heads=TOWER_WIDTH // 64,
        intermediate_size=4 * TOWER_WIDTH,
        image_size=side * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=HEADS,
        intermediate_size=11 * width // 4,
        vocab_size=words,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words - 1, image_seq_length=side**2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).eval()
