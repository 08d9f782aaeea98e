"""transformers Idefics 3."""

from __future__ import annotations

from transformers.models.idefics3.modeling_idefics3 import Idefics3Model

from ._idefics import IdeficsAdapter


class TransformersIdefics3(IdeficsAdapter):
    name = "transformers_idefics3"
    models = (Idefics3Model,)


ADAPTER = TransformersIdefics3()
