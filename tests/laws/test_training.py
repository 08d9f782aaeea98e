"""Law 2 goes on: what trains a model or changes its modules works on a patched one as on any."""

from __future__ import annotations

import pytest
import torch
from backbones import Backbone, fresh_model
from choosing import MAIN, on_one_row, pairs
from torch import nn

from tokenreduce import patch, report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pairs(everywhere=("tome",))
def test_training_reaches_what_it_reached_before(backbone: Backbone, method: str) -> None:
    def with_gradient(model: nn.Module) -> set[str]:
        model.zero_grad()
        outputs = backbone.outputs(model, backbone.inputs())
        sum(out.square().mean() for out in outputs if out.is_floating_point()).backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    model = fresh_model(backbone).train()
    before = with_gradient(model)
    patch(model, method, ratio=0.5)
    assert with_gradient(model) == before


@on_one_row()
def test_training_steps_reach_every_parameter_and_lower_the_loss(backbone: Backbone, method: str) -> None:
    def loss_of(model: nn.Module) -> torch.Tensor:
        return sum(out.sub(1).square().mean() for out in backbone.outputs(model, inputs))

    inputs, model = backbone.inputs(), fresh_model(backbone).train()
    loss_of(model).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    patch(model, method, ratio=0.4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == reached
    assert losses[-1] < losses[0]


def test_gradients_match_finite_differences() -> None:
    twin = patch(fresh_model(MAIN).double(), "pool", r=[8, 4])
    x = MAIN.images(1).double()
    direction = torch.randn(x.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    variable = x.clone().requires_grad_()
    twin(variable).sum().backward()
    step = 1e-3
    numeric = (twin(x + step * direction).sum() - twin(x - step * direction).sum()) / (2 * step)
    assert torch.allclose((variable.grad * direction).sum(), numeric, rtol=1e-3)


class LowRank(nn.Module):
    """A LoRA layer around a Linear, as adapter libraries make them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def test_low_rank_adapters_before_and_after_patching() -> None:
    x, torch_state = MAIN.images(), torch.random.get_rng_state()
    results = []
    for patch_first in (True, False):
        torch.random.set_rng_state(torch_state)
        model = fresh_model(MAIN)
        if patch_first:
            patch(model, "tome", r=9)
        for block in model.blocks:
            block.attn.qkv, block.mlp.fc1 = LowRank(block.attn.qkv), LowRank(block.mlp.fc1)
        if not patch_first:
            patch(model, "tome", r=9)
        results.append(model(x))
    assert torch.equal(*results)


def test_distributed_data_parallel(tmp_path) -> None:
    model, x = patch(fresh_model(MAIN), "tome", flops=0.7), MAIN.images()
    expected = model(x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        out = parallel(x)
        out.sum().backward()
        assert torch.equal(out, expected) and all(p.grad is not None for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_user_hooks_on_blocks_are_honoured() -> None:
    model, x = patch(fresh_model(MAIN), "tome", ratio=0.5), MAIN.images()
    plain = model(x)
    for layer in (0, 2):
        model.blocks[layer].register_forward_hook(lambda m, a, out: out + torch.linspace(-1, 1, out.shape[-1]))
    hooked = model(x)
    final, _ = model.forward_intermediates(x)
    assert not torch.allclose(hooked, plain, atol=1e-3)
    assert torch.allclose(model.forward_head(final), hooked, atol=1e-4)


def test_quantised_linears() -> None:
    model, x = fresh_model(MAIN), MAIN.images()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    full = quantised(x)
    patch(quantised, "tome", r=0)
    assert torch.equal(quantised(x), full)
    patch(quantised, "tome", flops=0.8)
    assert quantised(x).shape == full.shape and report(quantised).tokens_left < 64
