"""The laws on backbones of all libraries. Plain timm vision transformers have `test_laws.py`, in more detail."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable

import backbone_checks as checks
import pytest
import torch
from backbones import BACKBONES, REFERENCE, Backbone, fresh_model, new_model, shared_model
from torch import nn

import tokenreduce
from tokenreduce import patch, reduced, report, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
EVERY_DAY = ("tome", "evit", "ward")
every_backbone = pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)


def pairs(every_day: Callable[[bool, str], bool], methods: tuple[str, ...] | None = None) -> list:
    """Backbones with the methods that fit; those for which `every_day(reference, method)` is false, where reference
    says that the backbone is the first of its adapter, only in the full suite."""
    rows = []
    for backbone in BACKBONES:
        for method in methods or tokenreduce.methods():
            if method not in backbone.refuses:
                marks = () if every_day(backbone.name in REFERENCE, method) else (pytest.mark.full,)
                rows.append(pytest.param(backbone, method, id=f"{backbone.name}-{method}", marks=marks))
    return rows


def cheap(reference: bool, method: str) -> bool:
    return reference or method in EVERY_DAY


def costly(reference: bool, method: str) -> bool:
    return reference and method == "tome"


def with_pairs(rows: list):
    return pytest.mark.parametrize(("backbone", "method"), rows)


@with_pairs(pairs(cheap))
def test_nothing_to_remove_changes_nothing(backbone: Backbone, method: str) -> None:
    checks.check_exact(backbone, method)


@with_pairs(pairs(cheap))
def test_maps_come_back_whole_in_raster_order(backbone: Backbone, method: str) -> None:
    checks.check_restore(backbone, method)


@with_pairs([row for row in pairs(cheap, ("tome", "pool", *checks.FINDS_DUPLICATES)) if row.values[0].equal_positions])
def test_merging_identical_tokens_changes_nothing(backbone: Backbone, method: str) -> None:
    checks.check_oracle(backbone, method)


@with_pairs([row for row in pairs(costly) if row.values[0].traceable])
def test_compiles_whole_and_once(backbone: Backbone, method: str) -> None:
    checks.check_compile(backbone, method)


@with_pairs([row for row in pairs(costly) if row.values[0].traceable])
def test_exports_with_a_free_batch_size(backbone: Backbone, method: str) -> None:
    checks.check_export(backbone, method)


@every_backbone
def test_compatible_says_what_fits(backbone: Backbone) -> None:
    model = shared_model(backbone.name)
    fitting = tokenreduce.compatible(model)
    assert set(fitting) == set(tokenreduce.methods()) - backbone.refuses
    for method in sorted(backbone.refuses)[:2]:
        with pytest.raises(ValueError, match=f"{method} cannot run on this"):
            patch(model, method, ratio=0.5)
        assert not [m for m in model.modules() if "_tokenreduce" in vars(m)]


@every_backbone
@pytest.mark.parametrize("method", ["tome", "ward"])
def test_reduction_is_real(backbone: Backbone, method: str) -> None:
    """Counts the tokens that reach the last layer's Linear."""
    seen: list[int] = []
    with checks.shared(backbone) as model:
        handle = model.get_submodule(backbone.last).register_forward_hook(
            lambda m, args, out: seen.append(out.shape[1])
        )
        patch(model, method, ratio=0.5)
        outputs = backbone.outputs(model, backbone.inputs())
        handle.remove()
        assert report(model).tokens_left == backbone.count // 2
        protected = backbone.prefix + backbone.suffix
        assert seen == [report(model).tokens[-1] + protected]
        assert report(model).protected == protected
        kept = [out for out in outputs if out.ndim == 3 and out.shape[1] == seen[0]]
        assert bool(kept) == backbone.tokens_stay_reduced


@pytest.mark.parametrize(
    ("backbone", "share"),
    [pytest.param(b, share, id=f"{b.name}-{share}") for b in BACKBONES for share in b.shares],
)
def test_budgets_are_met(backbone: Backbone, share: float) -> None:
    """Of the backbone's own multiply-adds, as its costs say and as the dispatcher counts them."""
    inputs = backbone.inputs(1)
    with checks.shared(backbone) as model, torch.no_grad():
        part = tokenreduce.patching.finding.find_backbone(model)[1]
        whole = tokenreduce.count_flops(lambda: backbone.outputs(model, inputs), ())
        patch(model, "tome", flops=share, layers=checks.reducing_layers(model))
        left = tokenreduce.count_flops(lambda: backbone.outputs(model, inputs), ())
        assert not left.uncounted
        full = checks.reduction_of(model).geometry.costs.macs
        n, depth = backbone.count, len(report(model).tokens)
        closed = full((n,) * depth, (n,) * depth, backbone.prefix + backbone.suffix, "mid")
        saved = (whole.total - left.model - left.reducer) / closed
        assert saved == pytest.approx(1 - share, abs=0.02)
        assert report(model).flops_share == pytest.approx(share, abs=0.02)
        if part is model:
            assert closed == pytest.approx(whole.total, rel=0.01)


@every_backbone
def test_unpatch_restores_classes_hooks_and_keys(backbone: Backbone) -> None:
    model, inputs = fresh_model(backbone), backbone.inputs()
    checks.everything(model, backbone, inputs)  # libraries add hooks of their own in the first call

    def state() -> list:
        return [
            (name, type(m), dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
            for name, m in model.named_modules()
        ]

    before, keys = state(), list(model.state_dict())
    for method in ("tome", "ward"):
        patch(model, method, ratio=0.5)
        assert list(model.state_dict()) == keys
    unpatch(model)
    assert state() == before
    with reduced(model, "tome", ratio=0.5), reduced(model, "ward", ratio=0.3):
        pass
    assert state() == before


@every_backbone
@pytest.mark.parametrize("method", ["tome", "ward"])
def test_copies_and_pickles_behave_alike(backbone: Backbone, method: str) -> None:
    inputs, model = backbone.inputs(), new_model(backbone)
    patch(model, method, ratio=0.5)
    twins = [copy.deepcopy(model)]
    if can_be_pickled(new_model(backbone)):
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twins += [pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    reduced = checks.everything(model, backbone, inputs)
    plain = checks.everything(unpatch(model), backbone, inputs)
    for twin in twins:
        assert checks.same(checks.everything(twin, backbone, inputs), reduced)
        assert checks.same(checks.everything(unpatch(twin), backbone, inputs), plain)


def can_be_pickled(model: nn.Module) -> bool:
    """Backbones of transformers hold hooks that are local functions from the beginning."""
    try:
        pickle.dumps(model)
    except AttributeError:
        return False
    return True


@every_backbone
def test_training_reaches_what_it_reached_before(backbone: Backbone) -> None:
    def with_gradient(model: nn.Module) -> set[str]:
        model.zero_grad()
        outputs = backbone.outputs(model, backbone.inputs())
        sum(out.square().mean() for out in outputs if out.is_floating_point()).backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    model = fresh_model(backbone).train()
    before = with_gradient(model)
    patch(model, "tome", ratio=0.5)
    assert with_gradient(model) == before


@every_backbone
@pytest.mark.parametrize("method", ["tome", "ward"])
def test_forwards_do_not_leak_into_each_other(backbone: Backbone, method: str) -> None:
    x, y = backbone.inputs(), backbone.inputs(3, seed=1)
    with checks.shared(backbone) as model:
        patch(model, method, ratio=0.5)
        expected, other = (checks.everything(model, backbone, inputs) for inputs in (x, y))
        handle = model.get_submodule(backbone.last).register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError):
            backbone.outputs(model, x)
        handle.remove()
        assert checks.same(checks.everything(model, backbone, x), expected)
        assert checks.same(checks.everything(model, backbone, y), other)
        wrong: list[int] = []

        def work(inputs, right) -> None:
            wrong.extend(1 for _ in range(3) if not checks.same(checks.everything(model, backbone, inputs), right))

        threads = [threading.Thread(target=work, args=pair) for pair in ((x, expected), (y, other)) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def fail(module, args):
    raise ArithmeticError


@every_backbone
@pytest.mark.parametrize("method", EVERY_DAY)
def test_an_image_does_not_depend_on_its_batch(backbone: Backbone, method: str) -> None:
    if method in backbone.refuses:
        pytest.skip("refused")
    x = backbone.inputs(4)
    with checks.shared(backbone) as model, torch.no_grad():
        patch(model, method, ratio=0.5)
        together = backbone.outputs(model, x)
        alone = [
            backbone.outputs(model, {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in x.items()})
            for i in range(4)
        ]
    assert checks.close([torch.cat(parts) for parts in zip(*alone, strict=True)], together, 1e-4)


@every_backbone
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(backbone: Backbone, dtype: torch.dtype) -> None:
    """Rounding may turn a choice between two tokens, which shows on tiny images: outputs must be close on the whole."""
    x = backbone.inputs(4)
    model = fresh_model(backbone)
    patch(model, "tome", ratio=0.3)
    with torch.no_grad():
        truth = backbone.outputs(model, x)
        with torch.autocast("cpu", dtype):
            mixed = backbone.outputs(model, x)
        model = model.to(dtype)
        half = backbone.outputs(
            model, {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in x.items()}
        )
    for other in (mixed, half):
        for a, b in zip(other, truth, strict=True):
            assert a.isfinite().all() and a.shape == b.shape
            assert (a.float() - b).abs().median() < 0.1 * b.abs().max()


@every_backbone
def test_protected_tokens_pass_untouched(backbone: Backbone) -> None:
    """With silenced layers, protected tokens leave the last layer as they entered the first."""
    if backbone.prefix + backbone.suffix == 0:
        pytest.skip("nothing is protected")
    model = checks.silenced(fresh_model(backbone), backbone)
    patch(model, "tome", ratio=0.5)
    seen: list[torch.Tensor] = []
    layers = tokenreduce.patching.finding.find_backbone(model)
    layers = layers[2].layers(layers[1])
    layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    layers[-1].mlp_line = remember(layers[-1].mlp_line, seen)
    with torch.no_grad():
        backbone.outputs(model, backbone.inputs())
    first, last = seen
    assert torch.equal(first[:, : backbone.prefix], last[:, : backbone.prefix])
    behind = first.shape[1] - backbone.suffix, last.shape[1] - backbone.suffix
    assert torch.equal(first[:, behind[0] :], last[:, behind[1] :])


def remember(function, seen):
    def wrapped(x):
        seen.append(x)
        return function(x)

    return wrapped
