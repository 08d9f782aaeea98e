"""Layers that work on maps: restated attention is the library's, tokens at any places see their relative positions,
windows get all tokens."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, Backbone, fresh_model
from choosing import every_backbone
from tokenreduce.patches.shared.windows import relative_logits

import tokenreduce
from tokenreduce import InvalidValueError, Schedule, TokenMap, compatible, patch, report, unpatch
from tokenreduce.forward.run import Run

of_maps = every_backbone(lambda row: bool(row.map_attention))


def reduced_attention(backbone: Backbone):
    model = patch(fresh_model(backbone), "tome", ratio=0.5)
    reduction = tokenreduce.patching.finding.reduction_of(model)
    return model.get_submodule(backbone.map_attention), Run(reduction, 64, (8, 8))


def library_forward(attention, x: torch.Tensor) -> torch.Tensor:
    out = attention(x.unflatten(1, (8, 8)))
    return (out[0] if isinstance(out, tuple) else out).flatten(1, 2)


@of_maps
@pytest.mark.parametrize("size", [8, 6])  # of another size than configured, where the library can
def test_restated_attention_is_the_librarys(backbone, size) -> None:
    if backbone.one_size:
        size = 8
    attention, run = reduced_attention(backbone)
    run.grid, run.entered = (size, 8), size * 8
    run.restart()
    x = torch.randn(3, size * 8, 32)
    with torch.no_grad():
        out = attention(x.unflatten(1, run.grid))
        expected = (out[0] if isinstance(out, tuple) else out).flatten(1, 2)
        torch.testing.assert_close(attention.restated(run, x), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(attention(x, run=run), expected)


def test_eager_and_training_of_sam() -> None:
    attention, run = reduced_attention(BY_NAME["timm_sam"])
    x = torch.randn(3, 64, 32)
    for module, fused in ((attention, False), (attention.train(), True)):
        module.fused_attn = fused
        torch.testing.assert_close(attention.restated(run, x), library_forward(module, x), rtol=1e-5, atol=1e-6)


@of_maps
def test_tokens_at_any_places_see_their_relative_positions(backbone) -> None:
    """Dropping tokens gives what masking them gives."""
    attention, run = reduced_attention(backbone)
    x = torch.randn(2, 64, 32)
    kept = torch.stack([torch.randperm(64)[:20] for _ in range(2)])
    rest = torch.stack([torch.tensor(sorted(set(range(64)) - set(row.tolist()))) for row in kept])
    dest = torch.zeros(2, 64, dtype=torch.long).scatter(1, kept, torch.arange(20).expand(2, -1))
    weight = torch.ones(2, 64).scatter(1, rest, 0.0)
    token_map = TokenMap(20, dest=dest, weight=weight, rep=kept, drops=True)
    with torch.no_grad():
        run.sizes = weight.clamp_min(1e-30)
        expected = attention.restated(run, x).gather(1, kept[..., None].expand(-1, -1, 32))
        run.restart()
        run.places.follow(token_map, None)
        run.maps.append(token_map)
        found = attention(token_map.apply(x, None, 0, 0), run=run)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_relative_logits_are_those_of_the_definition() -> None:
    queries, rows, columns = torch.randn(2, 3, 5, 4), torch.randn(6, 6, 4), torch.randn(7, 7, 4)
    origin = torch.stack([torch.randperm(42)[:5] for _ in range(2)])
    found = relative_logits(queries, (rows, columns), origin)
    for b in range(2):
        for i in range(5):
            for j in range(5):
                (y, x), (v, u) = (divmod(int(origin[b, t]), 7) for t in (i, j))
                expected = queries[b, :, i] @ (rows[y, v] + columns[x, u])
                torch.testing.assert_close(found[b, :, i, j], expected)


@every_backbone(lambda row: not row.in_a_row)
def test_windows_get_all_tokens_and_reports_say_so(backbone) -> None:
    model = fresh_model(backbone)
    patch(model, "tome", ratio=0.5)
    backbone.outputs(model, backbone.inputs())
    assert report(model).tokens == (64, 32, 64, 32)
    assert report(model).tokens_left == 32
    assert [layer for layer, _ in report(model).maps] == [1, 3]
    assert " -" not in str(report(model))
    assert report(model).sizes.shape == report(model).sizes_after(1).shape == (2, 32)
    with pytest.raises(InvalidValueError, match=r"layer 2 needs all tokens .* layers that can: 1, 3"):
        patch(model, "tome", schedule=Schedule.keep({2: 0.5}))
    with pytest.raises(InvalidValueError, match="takes all tokens"):
        patch(model, "tome", ratio=0.5, restore=False)


def test_tokens_stay_reduced_between_layers_that_reduce() -> None:
    backbone, model = BY_NAME["timm_sam_in_a_row"], fresh_model(BY_NAME["timm_sam_in_a_row"])
    patch(model, "tome", ratio=0.5)
    seen: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    model(**backbone.inputs())
    assert seen == [(2, 8, 8, 32), (2, 54, 32), (2, 43, 32), (2, 32, 32)]
    del seen[:]
    backbone.collect(model, backbone.inputs())
    assert set(seen) == {(2, 8, 8, 32)}


def test_what_hooks_change_on_a_map_goes_on() -> None:
    for name in ("timm_sam", "timm_sam_in_a_row"):
        backbone, model = BY_NAME[name], fresh_model(BY_NAME[name])
        patch(model, "tome", ratio=0.5)
        with torch.no_grad():
            plain = backbone.collect(model, backbone.inputs())
            handle = model.blocks[1].register_forward_hook(lambda module, args, out: out + 0)
            copied = backbone.collect(model, backbone.inputs())
            handle.remove()
            model.blocks[1].register_forward_hook(lambda module, args, out: out + 1)
            changed = backbone.collect(model, backbone.inputs())
        for a, b in zip(plain, copied, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert torch.allclose(changed[1], plain[1] + 1, atol=1e-6)
        assert (changed[2] - plain[2]).abs().max() > 0.1


def test_methods_that_reduce_once_do_so_before_each_window() -> None:
    model = fresh_model(BY_NAME["timm_sam_in_a_row"])
    patch(model, "expedit", ratio=0.5)
    assert report(model).tokens == (64, 32, 32, 32)
    with pytest.raises(InvalidValueError, match="one layer only"):
        patch(model, "expedit", r=8)
    with pytest.raises(InvalidValueError, match="followed by one that needs all tokens"):
        patch(fresh_model(BY_NAME["timm_sam"]), "expedit", ratio=0.5)


def test_adaptive_methods_decide_in_layers_that_can_reduce() -> None:
    backbone, model = BY_NAME["timm_sam"], fresh_model(BY_NAME["timm_sam"])
    patch(model, "atm")
    model(**backbone.inputs())
    assert report(model).tokens[::2] == (64, 64)
    convolved = fresh_model(BY_NAME["hf_vitdet_convolved"])
    with pytest.raises(InvalidValueError, match=r"decides in layers \[0, 1\], which need all tokens here; .* \[2, 3\]"):
        patch(convolved, "algm")
    unpatch(convolved)


def test_models_without_a_layer_that_can_reduce_are_refused() -> None:
    model = fresh_model(BY_NAME["timm_sam"])
    for block in model.blocks:
        block.window_size = 4
    assert not compatible(model)
    with pytest.raises(ValueError, match="windows or convolutions, which need all tokens"):
        patch(model, "tome", ratio=0.5)


@pytest.mark.parametrize(
    ("name", "change"), [("timm_sam", "blocks.1.attn"), ("hf_vitdet", "encoder.layer.1.attention")]
)
def test_unknown_attention_is_refused(name, change) -> None:
    model = fresh_model(BY_NAME[name])
    attention = model.get_submodule(change)
    attention.__class__ = type("Other", (type(attention),), {})
    with pytest.raises(ValueError, match="its attention is Other"):
        patch(model, "tome", ratio=0.5)


def test_attentions_cannot_be_asked_of_vitdet() -> None:
    backbone, model = BY_NAME["hf_vitdet"], fresh_model(BY_NAME["hf_vitdet"])
    patch(model, "tome", ratio=0)
    assert len(model(**backbone.inputs(), output_attentions=True).attentions) == 4
    patch(model, "tome", ratio=0.5)
    with pytest.raises(ValueError, match="output_attentions=True does not fit"):
        model(**backbone.inputs(), output_attentions=True)
