"""transformers `VitPoseBackbone`, inside `VitPoseForPoseEstimation`: no class token; an MLP may have experts."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.models.vitpose_backbone.modeling_vitpose_backbone import (
    VitPoseBackbone,
    VitPoseBackboneLayer,
    VitPoseBackboneSelfAttention,
    eager_attention_forward,
)

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run

from ._unmasked import BiasedSelfAttention, UnmaskedAdapter, UnmaskedLayer


class BiasedVitPoseSelfAttention(BiasedSelfAttention, VitPoseBackboneSelfAttention):
    eager = staticmethod(eager_attention_forward)


class ReducedVitPoseLayer(UnmaskedLayer, VitPoseBackboneLayer):
    """The expert of an MLP is chosen by image, not by token: `dataset_index`."""

    def valid(self, reduction: Reduction, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        return super().valid(reduction, x)

    def attention_line(self, run: Run, x: Tensor, dataset_index: Tensor | None = None, **kwargs: Any) -> Tensor:
        return super().attention_line(run, x, **kwargs)

    def second_line(self, x: Tensor, dataset_index: Tensor | None = None, **kwargs: Any) -> Tensor:
        if self.num_experts == 1:
            return self.mlp_line(x)
        if dataset_index is None:
            raise InvalidValueError(f"dataset_index is None; a model with {self.num_experts} experts needs it")
        return self.mlp(self.layernorm_after(x), indices=dataset_index) + x

    def mlp_line(self, x: Tensor) -> Tensor:
        return self.mlp(self.layernorm_after(x)) + x


class TransformersVitPose(UnmaskedAdapter):
    name = "transformers_vitpose_backbone"
    models = (VitPoseBackbone,)
    class_tokens = 0
    reduced: ClassVar = {VitPoseBackboneLayer: ReducedVitPoseLayer}
    attentions: ClassVar = {VitPoseBackboneSelfAttention: BiasedVitPoseSelfAttention}


ADAPTER = TransformersVitPose()
