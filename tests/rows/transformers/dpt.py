from backbones import PATCH, Backbone, Inputs
from hugging import SMALL, hf
from torch import Tensor, nn
from transformers import BitConfig, DPTConfig

NECK = {"fusion_hidden_size": 8, "num_labels": 7}


def four_times_as_wide(backbone: Backbone, images: Tensor) -> Inputs:
    """The hybrid's convolutions make one token of 16 x 16 pixels."""
    return {"pixel_values": images.repeat_interleave(4, 2).repeat_interleave(4, 3)}


def far_away(config: DPTConfig) -> nn.Module:
    """A depth model whose last ReLU is open, as that of a random model is not."""
    from transformers import DPTForDepthEstimation

    model = DPTForDepthEstimation(config)
    nn.init.ones_(model.head.head[4].bias)
    return model


def make_rows() -> list[Backbone]:
    config = DPTConfig(**SMALL, **NECK, neck_hidden_sizes=[8, 8, 8, 8], backbone_out_indices=[0, 1, 2, 3])
    convolutions = BitConfig(
        embedding_size=8,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        num_groups=4,
        global_padding="same",
        layer_type="bottleneck",
        out_features=["stage1", "stage2", "stage3"],
        embedding_dynamic_padding=True,
    )
    hybrid = DPTConfig(
        **SMALL | {"image_size": 32 * PATCH, "patch_size": 4 * PATCH},
        **NECK,
        neck_hidden_sizes=[16, 32, 8, 8],
        backbone_out_indices=[0, 1, 2, 3],
        is_hybrid=True,
        backbone_config=convolutions,
        backbone_featmap_shape=[1, 64, 8, 8],
    )
    return [
        hf(
            "hf_dpt_model",
            "DPTModel",
            config,
            last="encoder.layer.3.intermediate.dense",
            silence=("output.dense",),
            unmasked=True,
            positions="embeddings.position_embeddings",
            tokens_stay_reduced=True,
        ),
        hf(
            "hf_dpt_segmentation",
            "DPTForSemanticSegmentation",
            config,
            last="dpt.encoder.layer.3.intermediate.dense",
            silence=("output.dense",),
            unmasked=True,
            positions="dpt.embeddings.position_embeddings",
            reads="all",
        ),
        hf(
            "hf_dpt",
            far_away,
            config,
            last="dpt.encoder.layer.3.intermediate.dense",
            silence=("output.dense",),
            unmasked=True,
            positions="dpt.embeddings.position_embeddings",
            reads="all",
        ),
        hf(
            "hf_dpt_hybrid",
            far_away,
            hybrid,
            last="dpt.encoder.layer.3.intermediate.dense",
            silence=("output.dense",),
            unmasked=True,
            equal_positions=None,
            make_inputs=four_times_as_wide,
            shares=(0.9, 0.82),  # the convolutions are part of the work
            reads="all",
        ),
    ]
