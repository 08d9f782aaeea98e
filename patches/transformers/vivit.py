"""transformers `VivitModel`: all tubelets of a video in one attention, with a class token."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.models.vivit.modeling_vivit import VivitForVideoClassification, VivitLayer, VivitModel

from ._layers import HuggingFaceAdapter, pair
from ._prenorm import PrenormLayer


class ReducedVivitLayer(PrenormLayer, VivitLayer):
    """`VivitLayer`, reduced."""


class TransformersVivit(HuggingFaceAdapter):
    name = "transformers_vivit"
    models = (VivitModel,)
    videos = True
    reduced: ClassVar = {VivitLayer: ReducedVivitLayer}
    reads_class_token = (VivitForVideoClassification,)

    def grid(self, model: Any) -> tuple[int, ...]:
        config = model.config
        video = (config.num_frames, *pair(config.image_size))
        return tuple(side // step for side, step in zip(video, config.tubelet_size, strict=True))


ADAPTER = TransformersVivit()
