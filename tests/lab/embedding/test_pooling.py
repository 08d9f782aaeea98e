"""Which tokens the pools take, of models that have others beside those of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.inputs import fashion_input
from tokenreduce.lab.embedding.pooling import pooled, try_out
from tokenreduce.lab.pretrained import Pretrained
from tokenreduce.lab.quality.heads import whole_forward
from tokenreduce.lab.shipped.fashion_vim import fashion_vim
from tokenreduce.lab.shipped.fashion_vit import fashion_vit


def yolos() -> Pretrained:
    import transformers

    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[32, 32],
        patch_size=8, num_detection_tokens=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return Pretrained(transformers.YolosForObjectDetection(config).eval())


def test_pools() -> None:
    model: Any = fashion_vit()
    assert try_out(model, fashion_input, "class") == ((1, 28, 28), 64)
    assert try_out(model, fashion_input, "mean") == ((1, 28, 28), 64)
    with pytest.raises(InvalidValueError, match="does not give features of a picture"):
        try_out(model, lambda picture: torch.zeros(3, 5, 5), "features")


@pytest.mark.parametrize("make", [yolos, fashion_vim])
def test_pools_take_the_tokens_that_they_name(make: Callable[[], Any]) -> None:
    """YOLOS has detection tokens behind the image tokens, and Vim a class token in their middle."""
    model, images = make(), torch.randn(2, *((1, 28, 28) if make is fashion_vim else (3, 32, 32)))
    with torch.inference_mode():
        tokens = whole_forward(model, images)[2]
        place = 98 if make is fashion_vim else 0
        image = [n for n in range(197) if n != 98] if make is fashion_vim else range(1, 17)
        assert torch.equal(pooled(model, images, "class"), tokens[:, place])
        torch.testing.assert_close(pooled(model, images, "mean"), tokens[:, list(image)].mean(1))
        if make is fashion_vim:
            torch.testing.assert_close(pooled(model, images, "class"), pooled(model, images, "features"))


def test_registers_are_no_class_token() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, class_token=False, reg_tokens=2, global_pool="avg")
    with pytest.raises(InvalidValueError, match="has no class token; use --pool features or mean"):
        try_out(model.eval(), lambda picture: torch.zeros(3, 32, 32), "class")
