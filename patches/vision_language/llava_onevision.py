"""transformers LLaVA-OneVision: crops that are many are made smaller, and frames of videos too."""

from __future__ import annotations

from typing import ClassVar

from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from ._crops import CropsAdapter


class TransformersLlavaOnevision(CropsAdapter):
    name = "transformers_llava_onevision"
    models = (LlavaOnevisionModel,)
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}


ADAPTER = TransformersLlavaOnevision()
