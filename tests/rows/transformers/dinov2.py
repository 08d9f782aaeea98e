from backbones import Backbone
from hugging import LAYERSCALE, SMALL, hf
from transformers import DepthAnythingConfig, Dinov2Config

PARTS = {"silence": ("layer_scale1", "layer_scale2"), "positions": "embeddings.position_embeddings"}


def make_rows() -> list[Backbone]:
    config = Dinov2Config(**SMALL, **LAYERSCALE, num_labels=7)
    stages = Dinov2Config(**SMALL, **LAYERSCALE, out_features=["stage2", "stage4"], reshape_hidden_states=True)
    tokens = Dinov2Config(**SMALL, **LAYERSCALE, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    depth = DepthAnythingConfig(
        backbone_config=tokens,
        reassemble_hidden_size=32,
        patch_size=4,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type="metric",  # ends in a sigmoid; the other type's ReLU makes a random model's depth zero
    )
    return [
        hf("hf_dinov2_model", "Dinov2Model", config, last="encoder.layer.3.mlp.fc1", tokens_stay_reduced=True, **PARTS),
        hf(
            "hf_dinov2",
            "Dinov2ForImageClassification",
            config,
            last="dinov2.encoder.layer.3.mlp.fc1",
            **PARTS | {"positions": "dinov2.embeddings.position_embeddings"},
            reads="tokens",
        ),
        hf(
            "hf_dinov2_backbone",
            "Dinov2Backbone",
            stages,
            last="encoder.layer.3.mlp.fc1",
            **PARTS,
        ),
        hf(
            "hf_depth_anything",
            "DepthAnythingForDepthEstimation",
            depth,
            last="backbone.encoder.layer.3.mlp.fc1",
            **PARTS | {"positions": "backbone.embeddings.position_embeddings"},
            collect=None,
            reads="all",
        ),
    ]
