"""The laws, over families and methods. `make test` runs all methods on two families and four methods on all families;
what takes long (compilers) runs for all methods on one family."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
from families import BY_NAME, EVERY_DAY, FAMILIES, METHODS, REFERENCE, Family, model_of
from torch import nn

import tokenreduce
from tokenreduce import Schedule, patch, reduced, report, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EXPORTED = [m for m in METHODS if tokenreduce.describe(m)["exportable"]]


def pairs() -> list:
    rows = []
    for family in FAMILIES:
        for method in METHODS:
            if method not in family.refuses:
                every_day = family.name in REFERENCE or method in EVERY_DAY
                marks = () if every_day else (pytest.mark.full,)
                rows.append(pytest.param(family, method, id=f"{family.name}-{method}", marks=marks))
    return rows


def reference_pairs(methods: list[str]) -> list:
    return [pytest.param(BY_NAME[name], method, id=f"{name}-{method}") for name in REFERENCE for method in methods]


def compiled_pairs(strict: bool = False) -> list:
    """Every exportable method on one family, few of them on both; strict export and inductor for these few only."""
    rows = []
    for name in REFERENCE:
        for method in EXPORTED:
            every_day = method in EVERY_DAY or (name == "qk_norm" and not strict)
            marks = () if every_day else (pytest.mark.full,)
            rows.append(pytest.param(BY_NAME[name], method, id=f"{name}-{method}", marks=marks))
    return rows


every_pair = pytest.mark.parametrize(("family", "method"), pairs())
CLUSTERING = ("atc", "kmeans", "kmedoids", "dpc_knn")  # they find all duplicates at once
reference_families = pytest.mark.parametrize("family", [BY_NAME[name] for name in REFERENCE], ids=lambda f: f.name)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
reference = pytest.mark.parametrize(("family", "method"), reference_pairs(METHODS))


@pytest.fixture
def model(family: Family):
    """The family's shared model, unpatched before and after."""
    shared = model_of(family.name)
    yield shared
    unpatch(shared)


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    features = model.forward_features(x)
    final, maps = model.forward_intermediates(x, norm=True)
    return [model(x), features, model.forward_head(features), final, *maps, *model.get_intermediate_layers(x, 2)]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


# Law 1: nothing to remove, nothing changed.
@every_pair
@pytest.mark.parametrize("budget", [{"ratio": 0}, {"r": 0}, {"flops": 1}], ids=str)
def test_nothing_to_remove_changes_nothing(model, family, method, budget) -> None:
    x = family.images()
    before = outputs(model, x)
    patch(model, method, **budget)
    assert equal(outputs(model, x), before)


@every_family
def test_reduction_is_real_and_changes_outputs(model, family) -> None:
    """A law-1 test could pass on a patch that does nothing: this one counts the tokens at the last block's Linear."""
    x, seen = family.images(), []
    before = model(x)
    handle = model.blocks[-1].mlp.fc1.register_forward_hook(lambda m, a, out: seen.append(out.shape[1]))
    with reduced(model, "tome", ratio=0.5):
        after = model(x)
        expected = report(model).tokens[-1] + model.num_prefix_tokens
    handle.remove()
    assert seen == [expected]
    assert not torch.equal(before, after)


# Law 2: unpatch restores everything; whatever works unpatched works patched.
@every_family
def test_unpatch_restores_classes_hooks_and_keys(model, family) -> None:
    def state() -> list:
        return [
            (name, type(m), dict(m._forward_hooks), dict(m._forward_pre_hooks), sorted(vars(m)))
            for name, m in model.named_modules()
        ]

    x = family.images()
    before, keys, reference_outputs = state(), list(model.state_dict()), outputs(model, x)
    for method in ("tome", "pool"):
        patch(model, method, flops=0.8)
        assert list(model.state_dict()) == keys
    unpatch(model)
    assert state() == before
    assert equal(outputs(model, x), reference_outputs)


@reference
def test_copies_and_pickles_behave_alike(model, family, method, tmp_path) -> None:
    x = family.images()
    patch(model, method, flops=0.7)
    before = outputs(model, x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    for twin in twins:
        assert equal(outputs(twin, x), before)
        unpatch(twin)
        assert not torch.equal(twin(x), model(x))
    assert equal(outputs(model, x), before)


@reference
def test_training_step_reaches_every_parameter(family, method) -> None:
    model = copy.deepcopy(model_of(family.name)).train()
    with_gradient = {n for n, p in model.named_parameters()}
    patch(model, method, flops=0.7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(family.images()), torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == with_gradient
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", [BY_NAME["qk_norm"]], ids=lambda f: f.name)
def test_gradients_match_finite_differences(model, family) -> None:
    twin = copy.deepcopy(model).double()
    patch(twin, "pool", r=[8, 4])
    x = family.images(1).double()
    direction = torch.randn(x.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    variable = x.clone().requires_grad_()
    twin(variable).sum().backward()
    step = 1e-3
    numeric = (twin(x + step * direction).sum() - twin(x - step * direction).sum()) / (2 * step)
    assert torch.allclose((variable.grad * direction).sum(), numeric, rtol=1e-3)


@pytest.mark.parametrize(("family", "method"), compiled_pairs())
def test_compiles_whole_and_once(model, family, method) -> None:
    torch._dynamo.reset()
    patch(model, method, flops=0.6)
    x = family.images()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
        with torch._dynamo.config.patch(error_on_recompile=True):
            other = family.images(seed=1)
            assert torch.allclose(compiled(other), model(other), atol=1e-5)


@pytest.mark.parametrize(("family", "method"), compiled_pairs())
def test_exports_with_a_free_batch_size(model, family, method) -> None:
    export_with_free_batch(model, family, method, strict=False)


@pytest.mark.parametrize(("family", "method"), compiled_pairs(strict=True))
def test_exports_strictly(model, family, method) -> None:
    export_with_free_batch(model, family, method, strict=True)


def export_with_free_batch(model, family, method, strict) -> None:
    patch(model, method, flops=0.6)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (family.images(),), dynamic_shapes=({0: batch},), strict=strict)
        x = family.images(3, seed=1)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


def test_feature_extraction_compiles_whole() -> None:
    torch._dynamo.reset()
    model, x = copy.deepcopy(model_of("qk_norm")), BY_NAME["qk_norm"].images()
    patch(model, "tome", flops=0.6)

    def maps(images: torch.Tensor) -> list[torch.Tensor]:
        return model.forward_intermediates(images, intermediates_only=True)

    with torch.no_grad():
        compiled, expected = torch.compile(maps, fullgraph=True, backend="aot_eager"), maps(x)
        for _ in range(2):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(compiled(x), expected, strict=True))


def test_a_size_first_seen_while_compiling_has_its_counts() -> None:
    torch._dynamo.reset()
    model, x = copy.deepcopy(model_of("dynamic_size")), torch.randn(1, 3, 24, 40)
    patch(model, "tome", flops=0.6)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        first = compiled(x)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert torch.equal(compiled(x), first)
        assert torch.allclose(first, model(x), atol=1e-5)
    assert report(model).flops_share == pytest.approx(0.6, abs=0.02)


@pytest.mark.full
@pytest.mark.parametrize("method", [m if m in EVERY_DAY else pytest.param(m, marks=pytest.mark.full) for m in EXPORTED])
def test_inductor(method) -> None:
    torch._dynamo.reset()
    model, x = copy.deepcopy(model_of("qk_norm")), BY_NAME["qk_norm"].images()
    patch(model, method, flops=0.6)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-4)


def test_traces_with_torchscript() -> None:
    model, x = copy.deepcopy(model_of("qk_norm")), BY_NAME["qk_norm"].images()
    patch(model, "tome", flops=0.6)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x, check_trace=False)
        other = BY_NAME["qk_norm"].images(seed=1)
        assert torch.allclose(traced(other), model(other), atol=1e-5)


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
    x, torch_state = BY_NAME["qk_norm"].images(), torch.random.get_rng_state()
    results = []
    for patch_first in (True, False):
        torch.random.set_rng_state(torch_state)
        model = copy.deepcopy(model_of("qk_norm"))
        if patch_first:
            patch(model, "tome", r=9)
        for block in model.blocks:
            block.attn.qkv, block.mlp.fc1 = LowRank(block.attn.qkv), LowRank(block.mlp.fc1)
        if not patch_first:
            patch(model, "tome", r=9)
        results.append(model(x))
    assert torch.equal(*results)


def test_distributed_data_parallel(tmp_path) -> None:
    model, x = copy.deepcopy(model_of("qk_norm")), BY_NAME["qk_norm"].images()
    patch(model, "tome", flops=0.7)
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
    model, x = copy.deepcopy(model_of("qk_norm")), BY_NAME["qk_norm"].images()
    patch(model, "tome", ratio=0.5)
    plain = model(x)
    for layer in (0, 2):
        model.blocks[layer].register_forward_hook(lambda m, a, out: out + torch.linspace(-1, 1, out.shape[-1]))
    hooked = model(x)
    final, _ = model.forward_intermediates(x)
    assert not torch.allclose(hooked, plain, atol=1e-3)
    assert torch.allclose(model.forward_head(final), hooked, atol=1e-4)


def test_quantised_linears() -> None:
    model, x = copy.deepcopy(model_of("qk_norm")), BY_NAME["qk_norm"].images()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    full = quantised(x)
    patch(quantised, "tome", r=0)
    assert torch.equal(quantised(x), full)
    patch(quantised, "tome", flops=0.8)
    assert quantised(x).shape == full.shape and report(quantised).tokens_left < 64


# Law 3: no leaks between forwards.
@reference
def test_forwards_do_not_leak_into_each_other(model, family, method) -> None:
    x, y = family.images(), family.images(3, seed=1)
    patch(model, method, flops=0.6)
    expected, other = outputs(model, x), outputs(model, y)
    with torch.no_grad():
        model.forward_intermediates(y, indices=[1], stop_early=True)
    assert equal(outputs(model, x), expected)
    handle = model.blocks[2].register_forward_pre_hook(fail)
    for call in (model, model.forward_intermediates):
        with pytest.raises(ArithmeticError):
            call(x)
    handle.remove()
    assert equal(outputs(model, x), expected)
    assert equal(outputs(model, y), other)


def fail(module, args):
    raise ArithmeticError


@reference
def test_threads_do_not_disturb_each_other(model, family, method) -> None:
    patch(model, method, flops=0.6)
    inputs = [family.images(1 + seed % 3, seed=seed) for seed in range(6)]
    expected = [outputs(model, x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(3):
            if not equal(outputs(model, inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_reduced_models_stepped_block_by_block() -> None:
    x = BY_NAME["qk_norm"].images()
    models = [patch(copy.deepcopy(model_of("qk_norm")), method, ratio=0.5) for method in ("tome", "evit")]
    expected = [m.forward_intermediates(x, intermediates_only=True)[-1] for m in models]
    states = [m.norm_pre(m._pos_embed(m.patch_embed(x))) for m in models]
    for pair in zip(*(m.blocks for m in models), strict=True):
        states = [block(state) for block, state in zip(pair, states, strict=True)]
    for state, maps in zip(states, expected, strict=True):
        assert torch.equal(state[:, 1:].transpose(1, 2).reshape(maps.shape), maps)


def test_a_slice_of_the_blocks_runs_in_order_or_not_at_all() -> None:
    model, x = copy.deepcopy(model_of("qk_norm")), torch.randn(2, 65, 32)
    patch(model, "tome", ratio=0.5)
    first = model.blocks[:2](x)
    with pytest.raises(ValueError, match="outside a forward pass"):
        model.blocks[2:](first)


def test_two_reduced_models_interleaved() -> None:
    x, y = BY_NAME["qk_norm"].images(), BY_NAME["vit_tiny_patch16_224"].images()
    first, second = copy.deepcopy(model_of("qk_norm")), copy.deepcopy(model_of("vit_tiny_patch16_224"))
    patch(first, "tome", ratio=0.5)
    patch(second, "evit", ratio=0.5)
    expected = second(y)
    seen = []
    first.blocks[1].register_forward_pre_hook(lambda m, a: seen.append(second(y)))
    plain = patch(copy.deepcopy(model_of("qk_norm")), "tome", ratio=0.5)(x)
    assert torch.equal(first(x), plain)
    assert torch.equal(seen[0], expected)


# Law 4: protected tokens are never touched.
@every_pair
def test_protected_tokens_stay_in_front(model, family, method) -> None:
    """With attention and MLP silenced, the prefix tokens must come out exactly as they went in."""
    twin, prefix = copy.deepcopy(model), model.num_prefix_tokens
    with torch.no_grad():
        for block in twin.blocks:
            for part in (block.attn.proj, block.mlp.fc2):
                part.weight.zero_()
                part.bias.zero_()
            for norm in (block.norm1, block.norm2) if family.name == "post_norm" else ():
                norm.bias.zero_()
    x = family.images()
    with torch.no_grad():
        before = twin.forward_features(x)[:, :prefix]
        patch(twin, method, ratio=0.5)
        assert torch.equal(twin.forward_features(x)[:, :prefix], before)


# Law 5: deterministic, independent of the other images of the batch.
@every_pair
def test_an_image_does_not_depend_on_its_batch(model, family, method) -> None:
    x = family.images(4)
    patch(model, method, ratio=0.5)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(model(x), together)
        assert torch.allclose(model(x.flip(0)).flip(0), together, atol=1e-5)
        alone = torch.cat([model(image[None]) for image in x])
    assert torch.allclose(alone, together, atol=1e-4 * float(together.abs().max()))


# Law 6: dtypes.
@reference
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(model, family, method, dtype) -> None:
    """Rounding may turn a choice between two tokens, which shows on tiny images: the typical image must be close."""
    x = family.images(6)
    twin = copy.deepcopy(model)
    patch(twin, method, flops=0.7)
    with torch.no_grad():
        truth = twin(x)
        with torch.autocast("cpu", dtype):
            mixed = twin(x)
        half = twin.to(dtype)(x.to(dtype))
    assert half.dtype == dtype and half.isfinite().all()
    scale = float(truth.abs().max())
    assert mixed.isfinite().all()
    for other in (mixed, half):
        assert (other.float() - truth).abs().amax(1).median() < 0.1 * scale


# Law 9: merging what is identical changes nothing.
def repeat_neighbours(model: nn.Module, family: Family, times_y: int, times_x: int) -> tuple[nn.Module, torch.Tensor]:
    """A copy whose positions are all equal, and images whose neighbouring patches are identical."""
    twin = copy.deepcopy(model)
    prefix = 0 if twin.no_embed_class else twin.num_prefix_tokens
    with torch.no_grad():
        if twin.pos_embed is not None:
            twin.pos_embed[:, prefix:] = twin.pos_embed[:, prefix : prefix + 1]
    patch_y, patch_x = twin.patch_embed.patch_size
    rows, columns = family.size[0] // patch_y, family.size[1] // patch_x
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 3, rows // times_y, columns // times_x, patch_y, patch_x, generator=generator)
    cells = cells.repeat_interleave(times_y, 2).repeat_interleave(times_x, 3)
    return twin, cells.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, *family.size)


@every_family
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("method", "times_y", "times_x"), [("tome", 1, 2), ("pool", 2, 2)])
def test_merging_identical_tokens_changes_nothing(model, family, method, times_y, times_x, layer) -> None:
    twin, x = repeat_neighbours(model, family, times_y, times_x)
    rows, columns = (s // p for s, p in zip(family.size, twin.patch_embed.patch_size, strict=True))
    if rows % times_y or columns % times_x:
        pytest.skip(f"a {rows} x {columns} grid has no {times_y} x {times_x} repetition")
    with torch.no_grad():
        before = twin(x)
        maps = twin.forward_intermediates(x, intermediates_only=True, norm=True)
        patch(twin, method, schedule=Schedule.keep({layer: rows * columns // (times_y * times_x)}))
        scale = float(before.abs().max().clamp_min(1))
        assert torch.allclose(twin(x), before, atol=1e-5 * scale)
        assert report(twin).tokens[-1] == rows * columns // (times_y * times_x)
        restored = twin.forward_intermediates(x, intermediates_only=True, norm=True)
    for a, b in zip(restored, maps, strict=True):
        assert torch.allclose(a, b, atol=2e-5 * float(b.abs().max().clamp_min(1)))


@reference_families
@pytest.mark.parametrize(
    "method", ["ward", "atm", "dsm", "mctf", "pitome", "tofu", "atc", "kmeans", "kmedoids", "dpc_knn"]
)
def test_methods_that_look_for_duplicates_merge_them_first(model, family, method) -> None:
    """Half of the duplicates are merged, so that every way of pairing or seeding finds some."""
    twin, x = repeat_neighbours(model, family, 1, 2)
    with torch.no_grad():
        before = twin(x)
        options = {"rounds": 1} if method == "ward" else {}  # the second round has another bipartition
        middle = len(twin.blocks) // 2  # tofu drops before and merges from there on
        patch(twin, method, schedule=Schedule.keep({middle: 0.5 if method in CLUSTERING else 0.75}), **options)
        assert torch.allclose(twin(x), before, atol=1e-5 * float(before.abs().max().clamp_min(1)))
        sizes = report(twin).sizes
    assert sizes.max() >= 2 and report(twin).tokens[-1] < report(twin).input_tokens


# Outputs that are maps come back whole, in raster order.
@every_pair
def test_maps_have_all_tokens_in_raster_order(model, family, method) -> None:
    x = family.images()
    shapes = [m.shape for m in model.forward_intermediates(x, intermediates_only=True)]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for block in twin.blocks:
            block.mlp.fc2.weight.zero_()
            block.attn.proj.weight.zero_()
        facts = tokenreduce.reducers.registry.lookup(method)
        patch(twin, method, ratio=0.5, restore="soft" if "soft" in facts.modes else "copy")
        maps = twin.forward_intermediates(x, intermediates_only=True)
        assert [m.shape for m in maps] == shapes
        unreduced = unpatch(copy.deepcopy(twin)).forward_intermediates(x, intermediates_only=True)
        twin(x)
        composed = report(twin).map
    # Blocks add the same to every token, so each position must hold the mean of the tokens merged with it.
    # Not so where sizes, gains or missing divisions act between steps.
    plain = all(m.divide and m.gain is None and m.size_weight is None for _, m in report(twin).maps)
    if plain:
        expected = composed.restore(composed.apply(unreduced[-1].flatten(2).transpose(1, 2)))
        assert torch.allclose(maps[-1].flatten(2).transpose(1, 2), expected, atol=1e-4)
    own = (maps[-1] - unreduced[-1]).flatten(1).norm() / unreduced[-1].flatten(1).norm()
    patch(twin, method, ratio=0.5, restore="delta")  # nothing has changed since: every place holds its own token again
    exact = twin.forward_intermediates(x, intermediates_only=True)[-1]
    assert torch.allclose(exact, unreduced[-1], atol=1e-4 * float(unreduced[-1].abs().max()))
    shuffled = unreduced[-1].flatten(2)[..., torch.randperm(unreduced[-1][0, 0].numel())].view_as(unreduced[-1])
    assert own < (maps[-1] - shuffled).flatten(1).norm() / unreduced[-1].flatten(1).norm()


@pytest.mark.parametrize("restore", [True, False])
def test_restore_can_be_forced(restore) -> None:
    family, model = BY_NAME["vit_tiny_patch16_224"], copy.deepcopy(model_of("vit_tiny_patch16_224"))
    patch(model, "tome", ratio=0.5, restore=restore)
    assert model.forward_features(family.images()).shape[1] == (17 if restore else 9)
    if not restore:
        with pytest.raises(ValueError, match="this call returns feature maps"):
            model.forward_intermediates(family.images())
        assert model.forward_features(family.images()).shape[1] == 9


def test_double_precision_and_meta_tensors() -> None:
    model, x = copy.deepcopy(model_of("qk_norm")).double(), BY_NAME["qk_norm"].images().double()
    patch(model, "tome", ratio=0.5)
    single = patch(copy.deepcopy(model_of("qk_norm")), "tome", ratio=0.5)
    assert torch.allclose(model(x), single(x.float()).double(), atol=1e-5)
    assert model.to("meta")(x.to("meta")).shape == (2, 7)


def test_features_only_wrapper() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, features_only=True).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    patch(model, "tome", flops=0.7)
    after = model(x)
    assert [t.shape for t in after] == [t.shape for t in before]
    assert not torch.equal(after[-1], before[-1])
    assert all(torch.equal(a, b) for a, b in zip(unpatch(model)(x), before, strict=True))
