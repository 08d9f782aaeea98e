"""Sizes as channels of queries and keys: as exact as the mask, in every family's own attention, and no mask is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backbone_checks import close
from backbones import BY_NAME, fresh_model
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce import patch
from tokenreduce.forward import state
from tokenreduce.ops import sized_attention
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.sized_attention import SizeBias, size_bias_of, size_mask, using

ATTENTION = "aten::_scaled_dot_product"


class Masks(TorchDispatchMode):
    """Notes of each attention that runs whether it has a mask, and of how many channels it is."""

    def __init__(self) -> None:
        super().__init__()
        self.masked: list[bool] = []
        self.widths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.startswith(ATTENTION) and "backward" not in func._schema.name:
            self.masked.append((kwargs or {}).get("attn_mask") is not None)
            self.widths.append(args[0].shape[-1])
        return func(*args, **(kwargs or {}))


def heads(width: int, n: int = 130, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Queries, keys and values, and sizes of all but the first token: from 1 to 1000, as many small as large."""
    g = torch.Generator().manual_seed(seed)
    vectors = (torch.randn(2, 3, n, width, generator=g).to(dtype) for _ in range(3))
    return *vectors, (torch.rand(2, n - 1, generator=g) * torch.tensor(1000.0).log()).exp().round()


def truth(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    logits = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits + F.pad(sizes.double().log(), (1, 0))[:, None, None]).softmax(-1) @ v.double()


def attend(choice: str, q: Tensor, k: Tensor, v: Tensor, sizes: Tensor, **kwargs: Any) -> Tensor:
    with using(choice):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=size_mask(size_bias(sizes, 1, 0), q), **kwargs)


@pytest.mark.parametrize("width", [32, 64, 72, 80])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_error_is_not_larger_than_with_the_mask(dtype: torch.dtype, width: int) -> None:
    """Root mean square against fp64. Half precision: at most 0.8 of the mask's, which rounds log sizes. fp32 and fp64:
    at most 1.1 of it and 2^-24, because a scale that is no power of two rounds the sum once more."""
    for seed in range(5):
        tensors = heads(width, seed=seed, dtype=dtype)
        exact = truth(*tensors)
        with Masks() as seen:
            found = attend("channels", *tensors)
        assert seen.masked == [False] and found.dtype == dtype
        error, masks = ((out.double() - exact).square().mean().sqrt() for out in (found, attend("mask", *tensors)))
        assert error <= (0.8 * masks if dtype.itemsize == 2 else 1.1 * masks + 2**-24)


@pytest.mark.parametrize("scale", [None, 1.0, 0.01, 3.0])
def test_any_scale(scale: float | None) -> None:
    tensors = heads(24, n=20)
    found, expected = (attend(choice, *tensors, scale=scale) for choice in ("channels", "mask"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_tokens_of_size_0_get_nothing_and_no_nan(dtype: torch.dtype, tolerance: float) -> None:
    q, k, v, sizes = heads(64, dtype=dtype)
    sizes[:, 50:] = 0
    found = attend("channels", q, k, v, sizes)
    torch.testing.assert_close(found.double(), truth(q, k, v, sizes), rtol=0, atol=tolerance)
    v[:, :, 51:] = 1e4
    assert torch.equal(attend("channels", q, k, v, sizes), found)


def test_grouped_heads_and_values_of_another_width() -> None:
    q, k, v, sizes = heads(16, n=20)
    k, v = k[:, :1], v[:, :1, :, :12]
    found, expected = (attend(choice, q, k, v, sizes, enable_gqa=True) for choice in ("channels", "mask"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients() -> None:
    q, k, v, sizes = heads(24, n=20)
    grads = []
    for choice in ("channels", "mask"):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        attend(choice, *leaves, sizes).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


# One of each way in which a family hands the mask to attention: timm, rotary embedding and grouped heads, maps, NaFlex,
# transformers, padding, where the library takes no mask, `nn.MultiheadAttention`, OpenCLIP's own.
FAMILIES = (
    "timm_vit",
    "timm_rope_grouped",
    "timm_sam_global",
    "timm_naflex",
    "hf_vit",
    "hf_siglip2_padded",
    "hf_dinov3",
    "hf_dpt_model",
    "torchvision_vit",
    "open_clip_custom",
)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_models_give_the_same_and_no_attention_has_a_mask(name: str) -> None:
    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    patch(model, "tome", ratio=0.5)
    seen = {}
    outputs = {}
    for choice in ("mask", "channels"):
        with using(choice), Masks() as seen[choice]:
            outputs[choice] = backbone.outputs(model, backbone.inputs())
    assert close(outputs["channels"], outputs["mask"], 1e-5)
    assert any(seen["mask"].masked) and not any(seen["channels"].masked)
    assert len(seen["channels"].masked) == len(seen["mask"].masked)
    with Masks() as automatic:  # on the CPU
        assert close(backbone.outputs(model, backbone.inputs()), outputs["mask"], 0)
    assert automatic.masked == seen["mask"].masked


def test_training_has_the_same_gradients() -> None:
    backbone, grads = BY_NAME["hf_vit"], []
    for choice in ("channels", "mask"):
        model = fresh_model(backbone)
        patch(model, "tome", ratio=0.5)
        with using(choice):
            backbone.outputs(model, backbone.inputs())[0].square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_autocast_rounds_no_log_size() -> None:
    """The residual stream and its mask are in fp32, attention is not."""
    tensors = heads(64)
    exact = truth(*(t.bfloat16() for t in tensors[:3]), tensors[3])
    with torch.autocast("cpu", torch.bfloat16), Masks() as seen:
        found, masked = (attend(choice, *tensors) for choice in ("channels", "mask"))
    assert found.dtype == masked.dtype == torch.bfloat16 and seen.widths == [72, 64]
    error, masks = ((out.double() - exact).square().mean().sqrt() for out in (found, masked))
    assert error <= 0.8 * masks


@torch.no_grad()
@pytest.mark.parametrize("choice", ["auto", "channels"])
def test_models_compile_whole_and_once(choice: str) -> None:
    torch._dynamo.reset()
    backbone, model = BY_NAME["timm_vit"], fresh_model(BY_NAME["timm_vit"])
    patch(model, "tome", ratio=0.5)
    graphs = []

    def note(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=note)
    with using(choice):
        for seed in range(2):
            inputs = backbone.inputs(seed=seed)
            assert close(backbone.outputs(compiled, inputs), backbone.outputs(model, inputs), 1e-5)
    (graph,) = graphs
    calls = [node for node in graph.graph.nodes if node.target is F.scaled_dot_product_attention]
    masks = [node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None) for node in calls]
    assert any(mask is not None for mask in masks) == (choice == "auto")


def test_what_libraries_do_to_a_mask_keeps_it() -> None:
    q, k, v, sizes = heads(24, n=20)
    expected = attend("mask", q, k, v, sizes)
    with using("channels"):
        mask = size_mask(size_bias(sizes, 1, 0), q)
        for same in (mask.to(q.dtype), mask.expand(-1, 3, 20, -1), mask[:, :, :, :20], mask.to(q.device)):
            with Masks() as seen:
                found = F.scaled_dot_product_attention(q, k, v, same)
            assert seen.masked == [False]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        fewer = F.scaled_dot_product_attention(q, k[:, :, :9], v[:, :, :9], mask[..., :9])
        torch.testing.assert_close(fewer, attend("mask", q, k[:, :, :9], v[:, :, :9], sizes[:, :8]))
        half = mask.to(torch.bfloat16)
        assert half.dtype == torch.bfloat16 and half.logs.dtype == torch.float32
        for plain in (mask + 1, mask.bool(), mask.to(torch.bool), torch.cat([mask, mask]), 2 * mask, mask.exp()):
            assert type(plain) is Tensor
        assert mask.shape == (2, 1, 1, 20) and q.new_zeros(2, 3, 20, 20).add(mask).shape == (2, 3, 20, 20)


Q, K, V, SIZES = heads(24, n=20)
MASK = size_bias(SIZES, 1, 0)
UNFIT = [
    ("over the 256 of flash attention", lambda m: F.scaled_dot_product_attention(*heads(255, n=20)[:3], m)),
    ("not one number a key", lambda m: F.scaled_dot_product_attention(Q, K, V, m[:1, 0, 0])),
    ("same for all heads", lambda m: F.scaled_dot_product_attention(Q, K, V, m[:, [0, 0, 0]])),
    ("scale", lambda m: F.scaled_dot_product_attention(Q, K, V, m, scale=2.0**-20)),
    ("scale", lambda m: F.scaled_dot_product_attention(Q, K, V, m, scale=-1.0)),
]


@pytest.mark.parametrize(("words", "call"), UNFIT)
def test_where_channels_do_not_fit_the_mask_is_taken(words: str, call: Callable[[Tensor], Tensor]) -> None:
    with Masks() as seen:
        assert torch.equal(call(size_bias_of(MASK, MASK.dtype)), call(MASK))
    assert seen.masked == [True, True]
    with using("channels"), pytest.raises(ValueError, match=rf"forced to \"channels\".*{words}"):
        call(size_bias_of(MASK, MASK.dtype))


def test_causal_attention_is_left_to_pytorch() -> None:
    """Which refuses a mask beside it; torch 2.10 takes both."""
    said: list[str] = []
    for mask in (MASK, size_bias_of(MASK, MASK.dtype)):
        try:
            found = F.scaled_dot_product_attention(Q, K, V, mask, is_causal=True)
        except RuntimeError as error:
            said.append(str(error))
        else:
            both = MASK + torch.full((Q.shape[2], Q.shape[2]), float("-inf")).triu(1)
            torch.testing.assert_close(found, F.scaled_dot_product_attention(Q, K, V, both))
    assert not said or (len(said) == 2 and said[0] == said[1] and "is_causal" in said[0])


def test_choices() -> None:
    assert type(size_mask(MASK, Q)) is Tensor and "on cpu" in sized_attention.why_not(Q)
    with using("channels"):
        assert type(size_mask(MASK, Q)) is SizeBias and sized_attention.why_not(Q) == ""
        with using("mask"):
            assert type(size_mask(MASK, Q)) is Tensor
        with pytest.raises(ValueError, match=r"forced to \"channels\" but cannot be: a tensor subclass"):
            size_mask(MASK, MASK.as_subclass(SizeBias))
    with pytest.raises(ValueError, match="did you mean 'channels'"), using("channel"):
        pass
    assert sized_attention.status().startswith(sized_attention.CHOICES["auto"])


@contextmanager
def on_cuda(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> Iterator[Any]:
    """What the choice looks at of a tensor on a GPU."""
    x = SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cpu"))
    monkeypatch.setattr(sized_attention, "Tensor", SimpleNamespace)
    yield x


def test_automatic_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, words in ((torch.float16, ""), (torch.bfloat16, ""), (torch.float32, "half precision")):
        with on_cuda(monkeypatch, dtype) as x:
            assert words in sized_attention.why_not(x) and bool(words) == bool(sized_attention.why_not(x))
    with on_cuda(monkeypatch, torch.float32) as x, torch.autocast("cpu", torch.bfloat16):
        assert sized_attention.why_not(x) == ""
    with on_cuda(monkeypatch, torch.float16) as x:
        with Masks():
            assert "counted" in sized_attention.why_not(x)
        with using("mask"):
            assert "forced" in sized_attention.why_not(x)


@torch.no_grad()
@pytest.mark.parametrize(("method", "budget"), [("tome", {"r": 0}), ("topk", {"ratio": 0.5, "inherit": False})])
def test_sizes_of_1_cost_nothing(method: str, budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, model = BY_NAME["timm_vit"], fresh_model(BY_NAME["timm_vit"])
    patch(model, method, **budget)

    def never(*args: Any) -> None:
        raise AssertionError("there are no sizes")

    monkeypatch.setattr(state, "size_mask", never)
    with using("channels"), Masks() as seen:
        backbone.outputs(model, backbone.inputs())
    assert seen.masked and not any(seen.masked) and set(seen.widths) == {16}
