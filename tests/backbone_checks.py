"""Checks of one backbone with one method; tests run some of them, `benchmarks/compatibility.py` all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from backbones import Backbone, Inputs, fresh_model, shared_model, silenced
from choosing import finds_duplicates
from torch import Tensor, nn

import tokenreduce
from tokenreduce import Schedule, patch, report, unpatch
from tokenreduce.reducers.registry import lookup


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
    """The model's outputs, those of other calls that it has, and the maps of its layers where it gives them."""
    more = [read(model, inputs) for read in (backbone.also, backbone.collect) if read is not None]
    return [*backbone.outputs(model, inputs), *(tensor for tensors in more for tensor in tensors)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def close(a: list[Tensor], b: list[Tensor], tolerance: float) -> bool:
    """Equal but for `tolerance` of each output's scale."""
    pairs = list(zip(a, b, strict=True))
    return all(
        s.shape == t.shape and torch.allclose(s, t, rtol=0, atol=tolerance * float(t.abs().max().clamp_min(1)))
        for s, t in pairs
    )


@cache
def plain(backbone: Backbone) -> list[Tensor]:
    """What the unpatched model puts out for its inputs."""
    return everything(shared_model(backbone.name), backbone, backbone.inputs())


@cache
def silent_model(backbone: Backbone) -> nn.Module:
    """A silenced copy of the row's model, shared by the tests of a process: leave it unpatched."""
    return silenced(fresh_model(backbone), backbone)


@cache
def plain_maps(backbone: Backbone) -> tuple[list[torch.Size], Tensor | None]:
    """The shapes of all that the silenced model puts out unpatched, and its last map."""
    model, inputs = silent_model(backbone), backbone.inputs()
    with torch.no_grad():
        last = None if backbone.collect is None else backbone.collect(model, inputs)[-1]
    return [tensor.shape for tensor in everything(model, backbone, inputs)], last


def check_exact(backbone: Backbone, method: str) -> None:
    """Nothing to remove changes nothing, and neither does a reduction that was undone."""
    inputs = backbone.inputs()
    before = plain(backbone)
    with shared(backbone) as model:
        patch(model, method, ratio=0)
        assert same(everything(model, backbone, inputs), before)
        for budget in ({"r": 0}, {"flops": 1}):
            patch(model, method, **budget)
            with torch.no_grad():
                outputs = backbone.outputs(model, inputs)
            assert same(outputs, before[: len(outputs)]), budget
        patch(model, method, ratio=0.5)
        reduced = everything(model, backbone, inputs)
        assert all(tensor.isfinite().all() for tensor in reduced if tensor.is_floating_point())
        assert not same(reduced, before)
        unpatch(model)
        assert same(everything(model, backbone, inputs), before)


def has_oracle(backbone: Backbone, method: str) -> bool:
    """Whether `check_oracle` says something about this pair."""
    return backbone.merges_exactly and (by_place(method) or finds_duplicates(method))


def by_place(method: str) -> bool:
    """Whether the method merges by the grid alone."""
    return tokenreduce.describe(method)["needs"] == ["grid"]


def check_oracle(backbone: Backbone, method: str, nth: int = 0) -> None:
    """Merging tokens that are identical changes no output; it happens in the `nth` layer that can reduce."""
    assert backbone.equal_positions is not None
    model, facts = fresh_model(backbone), tokenreduce.describe(method)
    backbone.equal_positions(model)
    layers, n = reducing_layers(model), backbone.count
    merging, sides, square = facts["kind"] == "merging", len(backbone.grid), by_place(method)
    times = (
        *(1,) * (sides - 2),
        2 if square else 1,
        2,
    )  # the four tokens of a square are identical, or the two of a pair
    if method == "tome":
        layer, keep = layers[nth], n // 2
    elif square:
        layer, keep = layers[nth], n * 3 // 4 if merging else n // 4
    else:  # half of the duplicates are merged, so that every way of pairing or seeding finds some
        layer, keep = layers[len(layers) // 2], n * 3 // 4 if merging else n // 2  # tofu drops before the middle
    exact = {
        "rounds": 1,  # a second one has another bipartition
        "alone": 0,  # or there are fewer cells than kinds of tokens
    }
    options = {name: value for name, value in exact.items() if name in facts["options"]}
    inputs = backbone.repeated(times)
    before = everything(model, backbone, inputs)
    patch(model, method, schedule=Schedule.keep({layer: keep}), restore=True, prop_attn=True, **options)
    assert close(everything(model, backbone, inputs), before, 2e-5)
    assert report(model).tokens_left == keep
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


def check_export(backbone: Backbone, method: str, strict: bool = False) -> None:
    """Exports with a free batch size."""
    batch = torch.export.Dim("batch", min=2, max=64)
    inputs, other = backbone.inputs(), backbone.inputs(3, seed=1)
    dynamic = {name: {0: batch} if isinstance(value, Tensor) else None for name, value in inputs.items()}
    with shared(backbone) as model, torch.no_grad():
        patch(model, method, ratio=0.5)
        program = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic, strict=strict)
        assert close(backbone.outputs(program.module(), other), backbone.outputs(model, other), 1e-5)


def check_restore(backbone: Backbone, method: str) -> None:
    """Maps have all tokens, in raster order: with silenced layers each place holds its tokens' mean."""
    inputs, model = backbone.inputs(), silent_model(backbone)
    shapes, unreduced = plain_maps(backbone)
    try:
        patch(model, method, ratio=0.5, restore=True)
        assert [tensor.shape for tensor in everything(model, backbone, inputs)] == shapes
        if backbone.collect is None or unreduced is None:
            return
        with torch.no_grad():
            patch(model, method, ratio=0.5, restore="soft" if "soft" in lookup(method).modes else "copy")
            restored = backbone.collect(model, inputs)[-1]
            shown, whole = report(model), reduction_of(model).geometry.needs_all
            if all(is_plain(token_map) for _, token_map in shown.maps) and not whole:
                expected = shown.map.restore(shown.map.apply(unreduced))
                assert close([restored], [expected], 1e-4)
            # Nothing has changed since it was reduced, so with its difference every place holds its own token again.
            patch(model, method, ratio=0.5, restore="delta")
            assert close([backbone.collect(model, inputs)[-1]], [unreduced], 1e-4)
    finally:
        unpatch(model)
    shuffled = torch.randperm(backbone.count, generator=torch.Generator().manual_seed(0))
    assert (restored - unreduced).norm() < (restored - unreduced[:, shuffled]).norm()


def is_plain(token_map: tokenreduce.TokenMap) -> bool:
    """Whether composing is exact: no sizes, gains or missing divisions act between steps."""
    return token_map.divide and token_map.gain is None and token_map.size_weight is None


def reduction_of(model: nn.Module) -> tokenreduce.forward.reduction.Reduction:
    return tokenreduce.patching.finding.reduction_of(model)
