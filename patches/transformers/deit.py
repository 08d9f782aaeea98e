"""transformers `DeiTModel`: a class and a distillation token."""

from __future__ import annotations

from typing import ClassVar

from transformers.models.deit.modeling_deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTLayer,
    DeiTModel,
)

from ._layers import HuggingFaceAdapter
from ._prenorm import PrenormLayer


class ReducedDeiTLayer(PrenormLayer, DeiTLayer):
    """`DeiTLayer`, reduced."""


class TransformersDeiT(HuggingFaceAdapter):
    """The decoder of `DeiTForMaskedImageModeling` reads a map, for which tokens are restored."""

    name = "transformers_deit"
    models = (DeiTModel,)
    reduced: ClassVar = {DeiTLayer: ReducedDeiTLayer}
    reads_class_token = (DeiTForImageClassification, DeiTForImageClassificationWithTeacher)
    class_tokens = 2


ADAPTER = TransformersDeiT()
