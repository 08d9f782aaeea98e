"""Models inside other modules: wrappers, and models with several towers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import tokenreduce
from tokenreduce import patch, report, unpatch

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
IMAGES: dict[str, Any] = {"image_size": 32, "patch_size": 4}
TEXT: dict[str, Any] = {"vocab_size": 50, "max_position_embeddings": 16}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SMALL, **IMAGES, num_labels=5)).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def expected_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return patch(copy.deepcopy(model), "tome", ratio=0.5)(x).logits


def test_a_compiled_model_is_patched_inside(model, x) -> None:
    torch._dynamo.reset()
    expected, plain = expected_of(model, x), model(x).logits
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x).logits, plain, atol=1e-5)
        patch(compiled, "tome", ratio=0.5)
        assert torch.allclose(compiled(x).logits, expected, atol=1e-5)
        assert not tokenreduce.patching.finding.reduction_of(compiled).restoring.ends  # the wrapper reads no tokens
        unpatch(compiled)
        assert torch.allclose(compiled(x).logits, plain, atol=1e-5)


def test_distributed_data_parallel(model, x, tmp_path) -> None:
    expected = expected_of(model, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        patch(parallel, "tome", ratio=0.5)
        out = parallel(x).logits
        out.sum().backward()
        assert torch.equal(out, expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("patch_first", [True, False])
def test_low_rank_adapters(model, x, patch_first) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    whole = get_peft_model(copy.deepcopy(model), config).eval()
    state = whole.state_dict()
    reduced = copy.deepcopy(model)
    if patch_first:
        patch(reduced, "tome", ratio=0.5)
    adapted = get_peft_model(reduced, config).eval()
    adapted.load_state_dict(state)
    if not patch_first:
        patch(adapted, "tome", ratio=0.5)
        assert not tokenreduce.patching.finding.reduction_of(adapted).restoring.ends
    with torch.no_grad():
        out = adapted(x).logits
        assert report(adapted).tokens_left == 32 and not torch.equal(out, whole(x).logits)
        assert torch.equal(unpatch(adapted)(x).logits, whole(x).logits)


def test_quantised_linears(model, x) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        full = quantised(x).logits
        patch(quantised, "tome", ratio=0)
        assert torch.equal(quantised(x).logits, full)
        patch(quantised, "tome", flops=0.7)
        assert quantised(x).logits.isfinite().all() and report(quantised).tokens_left < 64


@pytest.mark.parametrize(
    "build",
    [
        lambda: CLIPModel(
            CLIPConfig(
                vision_config=CLIPVisionConfig(**SMALL, **IMAGES).to_dict(),
                text_config=CLIPTextConfig(**SMALL, **TEXT).to_dict(),
            )
        ),
        lambda: SiglipModel(
            SiglipConfig(
                vision_config=SiglipVisionConfig(**SMALL, **IMAGES).to_dict(),
                text_config=SiglipTextConfig(**SMALL, **TEXT).to_dict(),
            )
        ),
    ],
    ids=["clip", "siglip"],
)
def test_of_two_towers_the_vision_tower_is_patched(build, x) -> None:
    model = build().eval()
    words = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text, image = model.get_text_features(words), model.get_image_features(x)
        patch(model, "tome", ratio=0.5)
        assert torch.equal(pooled(model.get_text_features(words)), pooled(text))
        assert not torch.equal(pooled(model.get_image_features(x)), pooled(image))
        assert model(input_ids=words, pixel_values=x).logits_per_image.isfinite().all()
    touched = [name for name, module in model.named_modules() if "_tokenreduce" in vars(module)]
    assert touched and all(name.startswith("vision_model") for name in touched)


def pooled(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def test_a_text_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no backbone that tokenreduce knows"):
        patch(CLIPTextModel(CLIPTextConfig(**SMALL, **TEXT)), "tome", ratio=0.5)


def test_several_candidates_are_listed() -> None:
    towers = nn.ModuleDict({name: ViTModel(ViTConfig(**SMALL, **IMAGES)) for name in ("left", "right")})
    with pytest.raises(ValueError, match=r"several backbones: left \(ViTModel\), right \(ViTModel\); patch the one"):
        patch(towers, "tome", ratio=0.5)
    patch(towers["left"], "tome", ratio=0.5)
    assert not [m for m in towers["right"].modules() if "_tokenreduce" in vars(m)]


def test_masks_that_do_not_hide_padding_are_refused(model, x) -> None:
    backbone = model.vit
    patch(backbone, "tome", ratio=0.5)
    causal = torch.ones(65, 65, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1)
    for wrong in (causal, torch.full((2, 1, 65, 65), 0.5)):
        with pytest.raises(ValueError, match="only masks that hide padding"):
            backbone(x, attention_mask=wrong)
    with pytest.raises(ValueError, match="output_attentions=True does not fit a reduced model"):
        backbone(x, output_attentions=True)
    with pytest.raises(ValueError, match="this call returns feature maps"):
        patch(backbone, "tome", ratio=0.5, restore=False)(x, output_hidden_states=True)


def test_masked_tokens_are_never_read(model, x) -> None:
    """Whatever the hidden tokens hold, the others come out alike, before and after reduction."""
    backbone, mask = model.vit, torch.ones(2, 65)
    mask[:, 40:] = 0
    other = x.clone()
    other[:, :, 20:] += 1  # token rows 5 to 7 of the grid of 8 x 8, all hidden
    with torch.no_grad():
        before = [backbone(images, attention_mask=mask).last_hidden_state[:, 0] for images in (x, other)]
        assert torch.allclose(*before, atol=1e-6)
        patch(backbone, "random", ratio=0.5)
        after = [backbone(images, attention_mask=mask).last_hidden_state[:, 0] for images in (x, other)]
    assert torch.allclose(*after, atol=1e-6)


def test_attention_implementations_without_a_bias_are_refused(model) -> None:
    model.vit.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"its attention implementation is 'flash_attention_2'; call model.set_att"):
        patch(model, "tome", ratio=0.5)


def test_gradient_checkpointing_is_refused(model) -> None:
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"gradient checkpointing is on; call model.gradient_checkpointing_disable"):
        patch(model, "tome", ratio=0.5)
