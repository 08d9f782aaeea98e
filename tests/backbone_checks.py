"""Checks of one backbone with one method; tests run some of them, `benchmarks/compatibility.py` all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from backbones import Backbone, Inputs, fresh_model, shared_model, silenced
from torch import Tensor, nn

import tokenreduce
from tokenreduce import Schedule, patch, report, unpatch
from tokenreduce.reducers.registry import lookup

CLUSTERING = ("atc", "kmeans", "kmedoids", "dpc_knn")  # they find all duplicates at once
FINDS_DUPLICATES = ("ward", "atm", "dsm", "mctf", "pitome", "tofu", *CLUSTERING)


@contextmanager
def shared(backbone: Backbone) -> Iterator[nn.Module]:
    """The row's model, unpatched before and after."""
    model = shared_model(backbone.name)
    try:
        yield model
    finally:
        unpatch(model)


@torch.no_grad()
def everything(model: nn.Module, backbone: Backbone, inputs: Inputs) -> list[Tensor]:
    """The model's outputs, and the maps of its layers where it gives them."""
    maps = backbone.collect(model, inputs) if backbone.collect is not None else []
    return [*backbone.outputs(model, inputs), *maps]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def close(a: list[Tensor], b: list[Tensor], tolerance: float) -> bool:
    """Equal but for `tolerance` of each output's scale."""
    pairs = list(zip(a, b, strict=True))
    return all(
        s.shape == t.shape and torch.allclose(s, t, rtol=0, atol=tolerance * float(t.abs().max().clamp_min(1)))
        for s, t in pairs
    )


def check_exact(backbone: Backbone, method: str) -> None:
    """Nothing to remove changes nothing, and neither does a reduction that was undone."""
    inputs = backbone.inputs()
    with shared(backbone) as model:
        before = everything(model, backbone, inputs)
        for budget in ({"ratio": 0}, {"r": 0}, {"flops": 1}):
            patch(model, method, **budget)
            assert same(everything(model, backbone, inputs), before), budget
        patch(model, method, ratio=0.5)
        reduced = everything(model, backbone, inputs)
        assert all(tensor.isfinite().all() for tensor in reduced if tensor.is_floating_point())
        assert not same(reduced, before)
        assert same(everything(model, backbone, inputs), reduced)
        unpatch(model)
        assert same(everything(model, backbone, inputs), before)


def check_oracle(backbone: Backbone, method: str, layer: int | None = None) -> None:
    """Merging tokens that are identical changes no output."""
    assert backbone.equal_positions is not None
    model = fresh_model(backbone)
    backbone.equal_positions(model)
    pairs = (*(1,) * (len(backbone.grid) - 1), 2)
    times = (*(1,) * (len(backbone.grid) - 2), 2, 2) if method == "pool" else pairs
    inputs, options = backbone.repeated(times), {}
    before = everything(model, backbone, inputs)
    if method in ("tome", "pool"):
        keep: float = backbone.count // (4 if method == "pool" else 2)
        layer = reducing_layers(model)[0] if layer is None else layer
    else:  # half of the duplicates are merged, so that every way of pairing or seeding finds some
        keep = 0.5 if method in CLUSTERING else 0.75
        layers = reducing_layers(model)
        layer = layers[len(layers) // 2]  # tofu drops before and merges from the middle on
        options = {"rounds": 1} if method == "ward" else {}  # the second round has another bipartition
    patch(model, method, schedule=Schedule.keep({layer: keep}), restore=True, prop_attn=True, **options)
    assert close(everything(model, backbone, inputs), before, 2e-5)
    assert report(model).tokens_left < backbone.count
    assert report(model).sizes.max() >= 2


def reducing_layers(model: nn.Module) -> list[int]:
    """The layers that may reduce."""
    _, backbone, adapter = tokenreduce.patching.finding.find_backbone(model)
    geometry = adapter.geometry(backbone)
    return [layer for layer in range(geometry.depth) if layer not in geometry.needs_all]


def check_compile(backbone: Backbone, method: str) -> None:
    """Compiles without graph breaks, and once."""
    torch._dynamo.reset()
    inputs, other = backbone.inputs(), backbone.inputs(seed=1)
    with shared(backbone) as model, torch.no_grad():
        patch(model, method, ratio=0.5)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert close(backbone.outputs(compiled, inputs), backbone.outputs(model, inputs), 1e-5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert close(backbone.outputs(compiled, other), backbone.outputs(model, other), 1e-5)


def check_export(backbone: Backbone, method: str) -> None:
    """Exports with a free batch size."""
    batch = torch.export.Dim("batch", min=2, max=64)
    inputs, other = backbone.inputs(), backbone.inputs(3, seed=1)
    dynamic = {name: {0: batch} if isinstance(value, Tensor) else None for name, value in inputs.items()}
    with shared(backbone) as model, torch.no_grad():
        patch(model, method, ratio=0.5)
        program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic, strict=False)
        assert close(backbone.outputs(program.module(), other), backbone.outputs(model, other), 1e-5)


def check_restore(backbone: Backbone, method: str) -> None:
    """Maps have all tokens, in raster order: with silenced layers each place holds its tokens' mean."""
    inputs = backbone.inputs()
    model = silenced(fresh_model(backbone), backbone)
    read: Callable[[], list[Tensor]] = lambda: everything(model, backbone, inputs)  # noqa: E731
    whole = read()
    patch(model, method, ratio=0.5, restore=True)
    restored = read()
    assert [t.shape for t in restored] == [t.shape for t in whole]
    if backbone.collect is None:
        return
    patch(model, method, ratio=0.5, restore="soft" if "soft" in lookup(method).modes else "copy")
    read()
    with torch.no_grad():
        maps = backbone.collect(model, inputs)
        composed, plain = report(model).map, all(is_plain(m) for _, m in report(model).maps)
        unreduced = backbone.collect(unpatch(copy.deepcopy(model)), inputs)
    if plain and not reduction_of(model).geometry.needs_all:
        expected = composed.restore(composed.apply(unreduced[-1]))
        assert close([maps[-1]], [expected], 1e-4)
    patch(model, method, ratio=0.5, restore="delta")  # nothing has changed since: every place holds its own token again
    exact = backbone.collect(model, inputs)[-1]
    assert close([exact], [unreduced[-1]], 1e-4)
    own, shuffled = (maps[-1] - unreduced[-1]).norm(), torch.randperm(backbone.count)
    assert own < (maps[-1] - unreduced[-1][:, shuffled]).norm()


def is_plain(token_map: tokenreduce.TokenMap) -> bool:
    """Whether composing is exact: no sizes, gains or missing divisions act between steps."""
    return token_map.divide and token_map.gain is None and token_map.size_weight is None


def reduction_of(model: nn.Module) -> tokenreduce.forward.reduction.Reduction:
    return tokenreduce.patching.finding.reduction_of(model)
