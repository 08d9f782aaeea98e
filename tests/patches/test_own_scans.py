"""The protocol for a model of scans that is its user's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows.scan.scanned import ToyMixer, ToyModel
from tokenreduce.patches.scan.scanned import OwnScans
from torch import Tensor, nn

import tokenreduce
from tokenreduce import Schedule, count_flops, patch, report
from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.walks import Walk
from tokenreduce.models.scanned import ScanBlock
from tokenreduce.patching.finding import find_backbone, reduction_of


def new_model(class_token: str = "") -> ToyModel:
    torch.manual_seed(0)
    return ToyModel(class_token, width=16).double().eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_scan(mixer: ToyMixer, rows: Tensor, ranks: list[int], owners: list[int]) -> Tensor:
    """The toy mixer of one image, token by token, over rows at these places of the whole sequence."""
    y = torch.zeros_like(rows)
    for sign in (1, -1):
        state = torch.zeros_like(mixer.rates)
        for rank in sorted(ranks)[::sign]:
            row = ranks.index(rank)
            x = torch.zeros_like(rows[row])
            for tap in range(mixer.taps):
                place = rank - sign * (mixer.taps - 1 - tap)
                if 0 <= place < len(owners):
                    x = x + mixer.filter[:, tap] * rows[owners[place]]
            x = nn.functional.silu(x)
            step = nn.functional.softplus(mixer.step(rows[row]))
            write, read = mixer.written(rows[row]).chunk(2)
            state = torch.exp(-step[:, None] * mixer.rates.exp()) * state + (step * x)[:, None] * write
            y[row] += state @ read
    return mixer.out_proj(y)


@torch.no_grad()
@pytest.mark.parametrize("class_token", ["", "first", "middle"])
def test_the_toy_mixer_of_what_is_left_is_a_slow_one(class_token: str) -> None:
    model, x = new_model(class_token), images()
    patch(model, "tome", schedule=Schedule.keep({0: 23}), scan_gap="hold")
    seen: list[tuple[Tensor, Tensor]] = []
    model.layers[2].mixer.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    model(x)
    (u, out), token_map = seen[0], report(model).map
    first, place = int(class_token != ""), 32 if class_token == "middle" else 0
    for image in range(2):
        rep = token_map.rep[image].sort().values.tolist()
        order = token_map.rep[image].argsort().argsort()
        stands = [int(order[i]) + first for i in token_map.dest[image]]
        ranks = [place] * first + [r + first * (r >= place) for r in rep]
        owners = [*stands[:place], *[0] * first, *stands[place:]]
        assert torch.allclose(out[image], slow_scan(model.layers[2].mixer, u[image], ranks, owners), atol=1e-10)


@torch.no_grad()
def test_costs_are_what_is_counted() -> None:
    model = new_model("middle")
    costs = find_backbone(model)[2].geometry(model).costs
    assert costs.macs((64,) * 4, (64,) * 4, 1, "mid") == count_flops(model, images(1)).total
    patch(model, "random", r=10, restore=False)
    left = reduction_of(model).counts(64)
    assert count_flops(model, images(1)).model == costs.macs((64, *left[:-1]), left, 1, "mid")


class Short(nn.Module):
    """The least that a mixer can be: no convolution, nothing to show."""

    taps = 1

    def forward(self, u: Tensor, walks: tuple[Walk, Walk] | None = None) -> Tensor:
        return u * 0.5


def with_mixer(mixer: nn.Module, **attributes: Any) -> ToyModel:
    model = new_model()
    model.layers[1] = ScanBlock(nn.LayerNorm(16).double(), mixer)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def test_what_a_mixer_does_not_show_is_refused_to_methods_that_read_it() -> None:
    refused = tokenreduce.compatible(with_mixer(Short())).refused
    assert refused["hsa"] == "it needs scan_output, but a mixer has no out_proj"
    assert refused["mtr"] == "it needs time_step, but a mixer has no step_projections()"
    assert "tome" not in refused and {"hsa", "mtr"}.isdisjoint(tokenreduce.compatible(new_model()).refused)


def test_what_does_not_follow_the_protocol_is_refused_in_words() -> None:
    for model, words in (
        (with_mixer(nn.Linear(16, 16)), "mixer 1 does not say how many taps"),
        (with_mixer(Short(), class_token="last"), "its class_token is 'last'; valid: '', 'first', 'middle'"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            patch(model, "tome", ratio=0.5)
    deaf = nn.Linear(16, 16)
    deaf.taps = 1  # type: ignore[assignment]
    with pytest.raises(InvalidValueError, match="mixer 1 takes no walks; give its forward a second parameter"):
        patch(with_mixer(deaf), "tome", ratio=0.5)
    model = new_model()
    model.layers[0] = nn.Sequential(model.layers[0])  # type: ignore[assignment]
    with pytest.raises(InvalidValueError, match=r"blocks are of class Sequential \(known: ScanBlock\)"):
        patch(model, "tome", ratio=0.5)
    del model.grid
    model.layers[0] = model.layers[0][0]
    with pytest.raises(InvalidValueError, match="it has no grid"):
        patch(model, "tome", ratio=0.5)


@torch.no_grad()
def test_frozen_gaps_need_time_steps() -> None:
    model, x = new_model(), images()
    patch(model, "tome", ratio=0.5, scan_gap="frozen")
    frozen = model(x)
    patch(model, "tome", ratio=0.5)
    assert not torch.allclose(frozen, model(x))
    with pytest.raises(InvalidValueError, match=r"scan_gap.*step_projections"):
        patch(with_mixer(Short()), "tome", ratio=0.5, scan_gap="frozen")


@pytest.mark.parametrize(
    ("class_token", "held", "reads"),
    [("first", [], "protected"), ("first", [nn.Identity()], "tokens"), ("", [], "tokens")],
)
def test_what_holds_a_model_reads_its_tokens(class_token: str, held: list[nn.Module], reads: str) -> None:
    assert OwnScans().reads(SimpleNamespace(class_token=class_token), held) == reads
