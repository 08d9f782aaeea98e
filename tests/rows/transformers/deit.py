from backbones import PATCH, Backbone
from hugging import SMALL, hf
from transformers import DeiTConfig


def make_rows() -> list[Backbone]:
    config = DeiTConfig(**SMALL, num_labels=7, encoder_stride=PATCH)
    parts = {"silence": ("attention.o_proj", "mlp.fc2"), "prefix": 2}
    held = {
        "last": "deit.layers.3.mlp.fc1",
        "positions": "deit.embeddings.position_embeddings",
    }
    return [
        hf(
            "hf_deit_model",
            "DeiTModel",
            config,
            last="layers.3.mlp.fc1",
            positions="embeddings.position_embeddings",
            tokens_stay_reduced=True,
            **parts,
        ),
        hf("hf_deit", "DeiTForImageClassification", config, **held, **parts),
        hf("hf_deit_distilled", "DeiTForImageClassificationWithTeacher", config, **held, **parts),
        hf("hf_deit_masked", "DeiTForMaskedImageModeling", config, **held, **parts, reads="all"),
    ]
