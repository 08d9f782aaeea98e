"""transformers LLaVA-NeXT."""

from __future__ import annotations

from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from ._crops import CropsAdapter


class TransformersLlavaNext(CropsAdapter):
    name = "transformers_llava_next"
    models = (LlavaNextModel,)


ADAPTER = TransformersLlavaNext()
