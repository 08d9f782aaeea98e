"""Attention with sizes takes Triton's operator: the same models, and no launch more than without sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from timm.layers import Attention
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce import patch
from tokenreduce.ops import sized_attention
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.sized_attention import HALF, by_triton, size_bias_of, size_mask, using, why_not_triton
from tokenreduce.ops.triton import launching

OPERATOR = "tokenreduce_triton::attend"
FREE = (
    "aten::view",
    "aten::unbind",
    "aten::permute",
    "aten::transpose",
    "aten::t",
    "aten::_unsafe_view",
    "prim::device",
)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["timm_vit", "timm_naflex", "hf_siglip2_padded", "torchvision_vit"])
def test_models_give_the_same(name: str) -> None:
    from backbone_checks import close
    from backbones import BY_NAME, fresh_model

    backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
    patch(model, "tome", ratio=0.5)
    with torch.no_grad():
        with using("mask"):
            expected = backbone.outputs(model, backbone.inputs())
        with using("triton"), mock.patch.object(sized_attention, "by_triton", wraps=by_triton) as calls:
            assert close(backbone.outputs(model, backbone.inputs()), expected, 1e-5)
    assert calls.call_count > 1


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without contents on a GPU that is not there."""
    monkeypatch.setattr(launching, "why_not", lambda: "")
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.no_grad():
        yield


class Launches(TorchDispatchMode):
    """Names of all operators but those that only look at tensors otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name not in FREE:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def attention(n: int, dtype: torch.dtype) -> tuple[Attention, Tensor, Tensor]:
    """timm's, an input, and what its tokens of several sizes add to logits."""
    x = torch.empty(2, n, 64, dtype=dtype)
    return Attention(64, num_heads=4, qkv_bias=True, dtype=dtype).eval(), x, size_bias(torch.empty(2, n - 1), 1, 0)


@pytest.mark.parametrize("dtype", HALF)
def test_launches_are_two_projections_and_the_operator(dtype: torch.dtype, fake_cuda: None) -> None:
    module, x, bias = attention(20, dtype)
    with using("triton"), Launches() as seen:
        out = module(x, attn_mask=size_mask(bias, x))
    assert out.shape == x.shape and out.is_cuda and out.dtype == dtype
    assert seen.names == ["aten::addmm", OPERATOR, "aten::addmm"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_compiled_graphs_differ_in_the_operator_only(choice: str, dtype: torch.dtype, fake_cuda: None) -> None:
    module, x, bias = attention(20, dtype)

    def graph(masked: bool) -> list[Any]:
        graphs = []

        def note(graph: Any, _: Any) -> Any:
            graphs.append(graph)
            return graph

        def forward(x: Tensor, bias: Tensor) -> Tensor:
            return module(x, attn_mask=size_mask(bias, x) if masked else None)

        torch.compile(forward, fullgraph=True, backend=note)(x, bias)
        return [node.target for node in graphs[0].graph.nodes if node.op.startswith("call")]

    with using(choice):
        found = graph(masked=True)
    operator = torch.ops.tokenreduce_triton.attend.default
    assert found.count(operator) == 1
    plain = [operator if target is F.scaled_dot_product_attention else target for target in graph(masked=False)]
    assert found == plain


def test_a_batch_of_any_size_compiles_once(fake_cuda: None) -> None:
    module, _, _ = attention(20, torch.half)
    compiled: list[Any] = []

    def note(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph

    def forward(x: Tensor, bias: Tensor) -> Tensor:
        return module(x, attn_mask=size_mask(bias, x))

    whole = torch.compile(forward, fullgraph=True, backend=note, dynamic=True)
    for batch in (2, 3, 5):
        x, bias = torch.empty(batch, 20, 64, dtype=torch.half), torch.empty(batch, 1, 1, 20)
        assert whole(x, bias).shape == x.shape
    assert len(compiled) == 1


def test_only_the_output_is_written(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the compiler reads it from the kernel: it copies what a kernel may write."""
    import triton
    from torch._functorch.aot_autograd import aot_module_simplified
    from triton.backends.compiler import GPUTarget

    driver = mock.Mock(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver, raising=False)
    module, x, bias = attention(20, torch.half)
    graphs: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        return aot_module_simplified(graph, inputs, fw_compiler=lambda traced, _: graphs.append(traced) or traced)

    torch.compile(lambda x, b: module(x, attn_mask=size_mask(b, x)), fullgraph=True, backend=note)(x, bias)
    (call,) = [node for node in graphs[0].graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    assert call.kwargs["tensors_to_clone"] == ["out"]


Q = torch.zeros(2, 3, 5, 16, dtype=torch.half)
LOGS = torch.zeros(2, 1, 1, 5)
LEAF = Q.clone().requires_grad_()
WIDE = torch.zeros(2, 3, 5, 136, dtype=torch.half)
UNFIT = [
    ("of one type", (Q, Q, Q.float(), LOGS, 0.0)),
    ("of one type", (Q.double(), Q.double(), Q.double(), LOGS, 0.0)),
    ("no backward", (LEAF, Q, Q, LOGS, 0.0)),
    ("no backward", (Q, Q, Q, LOGS.clone().requires_grad_(), 0.0)),
    ("no dropout", (Q, Q, Q, LOGS, 0.1)),
    ("not in fp32", (Q, Q, Q, LOGS.double(), 0.0)),
    ("one row for each image", (Q, Q, Q, torch.zeros(4, 1, 1, 5), 0.0)),
    ("not those of one attention", (Q, Q[:, :1], Q[:, :1], LOGS, 0.0)),
    ("not those of one attention", (Q, Q, Q[..., :8], LOGS, 0.0)),
    ("heads have 136 channels", (WIDE, WIDE, WIDE, LOGS, 0.0)),
    ("in a row", (Q.mT.contiguous().mT, Q, Q, LOGS, 0.0)),
    ("nothing to do", (Q[:0], Q[:0], Q[:0], LOGS[:0], 0.0)),
]


@pytest.mark.interpreted
def test_what_the_operator_does_not_take() -> None:
    assert why_not_triton(Q, Q, Q, LOGS, 0.0) == ""
    with torch.no_grad():
        assert why_not_triton(LEAF, Q, Q, LOGS, 0.0) == ""
    for words, arguments in UNFIT:
        assert words in why_not_triton(*arguments), words


def test_where_it_is_forced_and_cannot_run_an_error_says_why() -> None:
    with using("triton"):
        mask = size_mask(LOGS, Q)
        with pytest.raises(ValueError, match=r'forced to "triton" but cannot be: .*do not run on cpu'):
            F.scaled_dot_product_attention(Q, Q, Q, mask)
        with pytest.raises(ValueError, match=r"forced.*causal"):
            F.scaled_dot_product_attention(Q, Q, Q, mask, is_causal=True)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(Tensor, "is_cuda", True)
        assert why_not_triton(Q, Q, Q, LOGS, 0.0) == launching.why_not()


@pytest.mark.interpreted
def test_sizes_are_taken_from_the_logarithms_and_the_mask_only_where_it_must_be() -> None:
    bias = size_bias_of(torch.tensor([0.0, 1.7, 3.3, 0.1, 5.9]).expand(2, 1, 1, 5), torch.half)
    assert bias.dtype == torch.half and bias.shape == (2, 1, 1, 5) and bias.device.type == "cpu"
    q, k, v = torch.randn(3, 2, 3, 5, 16, generator=torch.Generator().manual_seed(0)).half()
    with using("triton"):
        found = F.scaled_dot_product_attention(q, k, v, bias)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), bias.logs.double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1.5e-3)
    plain = bias + 0
    assert type(plain) is Tensor and torch.equal(plain, bias.logs.half())


@pytest.mark.interpreted
def test_autocast_decides_the_type_as_for_pytorchs_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 16, generator=torch.Generator().manual_seed(0))
    bias = size_bias_of(LOGS + 0.3, torch.float32)
    with using("triton"):
        expected = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
        with torch.autocast("cpu", torch.bfloat16):
            for key in (k, k.bfloat16()):
                found = F.scaled_dot_product_attention(q, key, v, bias)
                assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
