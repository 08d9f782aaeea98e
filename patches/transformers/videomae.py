"""transformers `VideoMAEModel`: all tubelets of a video in one attention, no class token."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.models.videomae.modeling_videomae import (
    VideoMAELayer,
    VideoMAEModel,
    VideoMAESelfAttention,
    eager_attention_forward,
)

from ._unmasked import BiasedSelfAttention, UnmaskedAdapter, UnmaskedLayer


class BiasedVideoMAESelfAttention(BiasedSelfAttention, VideoMAESelfAttention):
    eager = staticmethod(eager_attention_forward)


class ReducedVideoMAELayer(UnmaskedLayer, VideoMAELayer):
    """`VideoMAELayer` of the encoder, reduced; the decoder's stay as they are."""


class TransformersVideoMAE(UnmaskedAdapter):
    """The classifier averages tokens or reads the first, the decoder needs all visible ones in order: tokens are
    restored for both."""

    name = "transformers_videomae"
    models = (VideoMAEModel,)
    class_tokens = 0
    videos = True
    reduced: ClassVar = {VideoMAELayer: ReducedVideoMAELayer}
    attentions: ClassVar = {VideoMAESelfAttention: BiasedVideoMAESelfAttention}

    def grid(self, model: Any) -> tuple[int, ...]:
        return (model.config.num_frames // model.config.tubelet_size, *super().grid(model))

    def prop_attn(self, model: Any) -> bool:
        return False  # such weights were measured to lose accuracy with the bias (ToMe, table on MAE models)


ADAPTER = TransformersVideoMAE()
