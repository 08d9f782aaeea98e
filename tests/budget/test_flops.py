from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tokenreduce.budget import operators as mac_counter
from tokenreduce.budget.counting import FlopCount, count_flops

IMAGE = torch.zeros(1, 3, 224, 224)


@pytest.fixture(scope="module")
def deit() -> Any:
    timm = pytest.importorskip("timm")
    return timm.create_model("deit_small_patch16_224").eval()


def deit_small_macs() -> int:
    n, depth, width, patch, classes = 197, 12, 384, 16, 1000
    attention = 4 * n * width**2 + 2 * n**2 * width
    mlp = 8 * n * width**2
    return depth * (attention + mlp) + (n - 1) * width * 3 * patch**2 + width * classes


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("inference", [False, True])
def test_deit_small_is_the_closed_formula(
    deit: Any, fused: bool, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in deit.blocks:
        monkeypatch.setattr(block.attn, "fused_attn", fused)
    with torch.inference_mode(inference):
        count = count_flops(deit, IMAGE)
    assert count == FlopCount(model=deit_small_macs(), reducer=0, restore=0)
    assert count.total == pytest.approx(4.60e9, rel=0.005)


def test_batch_of_two_is_twice_one(deit: Any) -> None:
    assert count_flops(deit, IMAGE.expand(2, -1, -1, -1)).total == 2 * count_flops(deit, IMAGE).total


def test_agrees_with_fvcore(deit: Any) -> None:
    fvcore = pytest.importorskip("fvcore.nn")

    def attention(inputs: list, outputs: list) -> int:
        (b, h, n, d), (_, _, m, _) = (value.type().sizes() for value in inputs[:2])
        return 2 * b * h * n * m * d

    analysis = fvcore.FlopCountAnalysis(deit, IMAGE).unsupported_ops_warnings(False).tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
    # fvcore also counts norms, which papers do not. None as the handle leaves the one it has in place.
    analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)
    assert analysis.by_operator()["scaled_dot_product_attention"] == 12 * 2 * 197**2 * 384
    assert count_flops(deit, IMAGE).total == analysis.total()


X = torch.randn(2, 8, 16)
W = torch.randn(32, 16)
LINEAR = 2 * 8 * 16 * 32
SQUARE = 2 * 8 * 8 * 16
ATTENTION_LAYER = 2 * (4 * 8 * 16 * 16 + 2 * 8 * 8 * 16)
ENCODER_LAYER = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
WORK = {
    "linear": (lambda: functional.linear(X, W), LINEAR),
    "linear out": (lambda: torch.mm(X[0], W.T, out=torch.empty(8, 32)), LINEAR // 2),
    "mkldnn linear": (lambda: functional.linear(X.to_mkldnn(), W.to_mkldnn()).to_dense(), LINEAR),
    "addmm, activation": (lambda: torch._addmm_activation(torch.zeros(32), X[0], W.T), LINEAR // 2),
    "addmm in place": (lambda: torch.zeros(8, 32).addmm_(X[0], W.T), LINEAR // 2),
    "einsum": (lambda: torch.einsum("bnd,bmd->bnm", X, X), SQUARE),
    "baddbmm": (lambda: torch.baddbmm(torch.zeros(2, 8, 8), X, X.mT), SQUARE),
    "baddbmm in place": (lambda: torch.zeros(2, 8, 8).baddbmm_(X, X.mT), SQUARE),
    "addbmm": (lambda: torch.addbmm(torch.zeros(8, 8), X, X.mT), SQUARE),
    "mv": (lambda: X[0] @ W[0], 8 * 16),
    "addmv": (lambda: torch.addmv(torch.zeros(8), X[0], W[0]), 8 * 16),
    "dot": (lambda: W[0] @ W[1], 16),
    "addr": (lambda: torch.addr(torch.zeros(16, 16), W[0], W[1]), 16 * 16),
    "cdist": (lambda: torch.cdist(X[:1], X), SQUARE),
    "cdist by products": (lambda: torch.cdist(torch.zeros(30, 4), torch.zeros(40, 4)), 30 * 40 * 4),
    "conv": (
        lambda: functional.conv2d(torch.zeros(2, 4, 8, 8), torch.zeros(6, 2, 2, 2), stride=2, groups=2),
        2 * 16 * 6 * 2 * 4,
    ),
    "conv without batch": (
        lambda: functional.conv1d(torch.zeros(4, 9), torch.zeros(6, 4, 3), padding="same"),
        9 * 6 * 4 * 3,
    ),
    "transposed conv": (
        lambda: functional.conv_transpose2d(torch.zeros(2, 4, 5, 5), torch.zeros(4, 3, 2, 2)),
        2 * 25 * 4 * 3 * 4,
    ),
    "mkldnn conv": (
        lambda: torch.mkldnn_convolution(
            torch.zeros(1, 4, 6, 6), torch.zeros(5, 4, 3, 3), None, (0, 0), (1, 1), (1, 1), 1
        ),
        16 * 5 * 4 * 9,
    ),
    "attention": (
        lambda: functional.scaled_dot_product_attention(X[:, None], X[:, None], X[:, None, :, :4]),
        SQUARE * 5 // 4,
    ),
    "attention with mask": (
        lambda: functional.scaled_dot_product_attention(
            X[:, None], X[:, None], X[:, None], attn_mask=torch.zeros(8, 8)
        ),
        2 * SQUARE,
    ),
    "multi-head attention": (lambda: ENCODER_LAYER.self_attn(X, X, X), ATTENTION_LAYER),
    "encoder layer": (lambda: ENCODER_LAYER(X), ATTENTION_LAYER + 2 * LINEAR),
    "no products": (
        lambda: (
            functional.normalize(functional.layer_norm(X, (16,)), dim=-1).softmax(-1).topk(3).indices,
            torch.zeros(2, 8, 16).scatter_reduce(1, X.argsort(1), X, "mean").cumsum(1).masked_fill_(X > 0, 0).t_,
            functional.interpolate(functional.gelu(functional.rms_norm(X, (16,))), 5).unsqueeze_(0).std(),
            torch.cat([X, X])[torch.randperm(4)].clone().unique().tolist(),
        ),
        0,
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", WORK)
def test_known_work(name: str, inference: bool) -> None:
    forward, macs = WORK[name]
    with torch.inference_mode(inference):
        assert count_flops(forward, ()) == FlopCount(macs, 0, 0)


def test_layers_count_alike_with_and_without_the_fast_path() -> None:
    fast = count_flops(ENCODER_LAYER, X)
    slow = count_flops(lambda x: ENCODER_LAYER(x, src_mask=torch.zeros(8, 8)), X)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert count_flops(ENCODER_LAYER, X) == fast == slow
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_quantised_linear() -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build has no quantised kernels")
    packed = torch.ops.quantized.linear_prepack_fp16(W, None)
    assert count_flops(lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed), X) == FlopCount(LINEAR, 0, 0)


@torch.library.custom_op("tokenreduce_test::product", mutates_args=())
def product(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("forward", "operator"),
    [
        (torch.fft.fft, "aten._fft_r2c"),
        (product, "tokenreduce_test.product"),
        (torch.linalg.svd, "aten._linalg_svd"),
        (lambda x: x[0].to_sparse() @ x[0].T, "aten.mm"),
        (lambda x: functional.bilinear(x, x, torch.zeros(3, 16, 16)), "aten._trilinear"),
    ],
)
def test_unknown_work_is_listed(forward: Callable[[torch.Tensor], object], operator: str, inference: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            forward(x)
            return functional.linear(x, W), forward(x)

    with torch.inference_mode(inference):
        count = count_flops(Model(), X)
    assert count.uncounted == {operator: 2}
    assert count.total == LINEAR
    assert f"uncounted: {operator} x2" in str(count)


def test_registered_formula_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = torch.utils.flop_counter.flop_registry
    monkeypatch.setitem(registry, torch.ops.tokenreduce_test.product, lambda x, out_val: 2 * 7)
    assert count_flops(product, X) == FlopCount(7, 0, 0)


def test_nested_tensors_are_listed_not_guessed() -> None:
    encoder = nn.TransformerEncoder(ENCODER_LAYER, 2).eval()
    padding = torch.arange(8) >= torch.tensor([[8], [6]])
    with pytest.warns(UserWarning, match="nested"):
        count = count_flops(encoder, {"src": X, "src_key_padding_mask": padding})
    assert count == FlopCount(0, 0, 0, {"aten._transformer_encoder_layer_fwd": 2})


def test_work_goes_to_the_current_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    phase = "model"
    monkeypatch.setattr(mac_counter, "current_phase", lambda: phase)

    def forward(x: torch.Tensor) -> None:
        nonlocal phase
        functional.linear(x, W)
        phase = "reducer"
        x @ x.mT
        phase = "restore"
        x[0] @ x[0, 0]
        phase = "model"
        functional.linear(x, W)

    count = count_flops(forward, X)
    assert count == FlopCount(model=2 * LINEAR, reducer=SQUARE, restore=8 * 16)
    assert count.total == 2 * LINEAR + SQUARE + 8 * 16


def test_tuple_and_dict_inputs() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    expected = FlopCount(ATTENTION_LAYER, 0, 0)
    assert count_flops(attention, (X, X, X)) == expected
    assert count_flops(attention, {"query": X, "key": X, "value": X, "need_weights": False}) == expected


def test_other_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match="input is a list; give a tensor, a tuple"):
        count_flops(nn.Linear(16, 32), [X])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is None; give a torch"):
        count_flops(None, X)  # type: ignore[arg-type]


def global_state() -> list[object]:
    hooks = nn.modules.module
    state = [len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks), torch.is_grad_enabled()]
    return [*state, *_get_current_dispatch_mode_stack()]


def test_an_exception_leaves_nothing_behind() -> None:
    before = global_state()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_flops(nn.Sequential(nn.Linear(16, 4), nn.Linear(16, 4)), X)
    assert global_state() == before
    assert count_flops(nn.Linear(16, 32), X) == FlopCount(LINEAR, 0, 0)


@pytest.mark.parametrize("training", [True, False])
def test_one_forward_without_gradients_in_the_mode_given(training: bool) -> None:
    seen = []

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    model = Model(16, 32).train(training)
    count_flops(model, X)
    assert seen == [(training, False)]
    assert model.training == training and torch.is_grad_enabled()


def test_compiled_model_counts_alike_and_stays_compiled() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    model = torch.compile(nn.Linear(16, 32), backend=backend, fullgraph=True)
    assert count_flops(model, X) == FlopCount(LINEAR, 0, 0)
    for _ in range(2):
        model(X)
        assert count_flops(model, X) == FlopCount(LINEAR, 0, 0)
    assert len(graphs) == 1


def test_reads_as_one_line() -> None:
    count = FlopCount(2_690_000_000, 10_000_000, 0)
    assert str(count) == "2.70 GMACs (model 2.69, reducer 0.01, restore 0.00)"
    assert str(FlopCount(0, 1_500_000, 0, {"aten._fft_r2c": 3})) == (
        "1.50 MMACs (model 0.00, reducer 1.50, restore 0.00), uncounted: aten._fft_r2c x3"
    )
    assert str(FlopCount(2_000, 0, 0)) == "2.00 KMACs (model 2.00, reducer 0.00, restore 0.00)"
