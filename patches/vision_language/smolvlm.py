"""transformers SmolVLM."""

from __future__ import annotations

from transformers.models.smolvlm.modeling_smolvlm import SmolVLMModel

from ._idefics import IdeficsAdapter


class TransformersSmolVLM(IdeficsAdapter):
    name = "transformers_smolvlm"
    models = (SmolVLMModel,)


ADAPTER = TransformersSmolVLM()
