"""`evit` against a slow reference written straight from the specification."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from hypothesis import given
from hypothesis import strategies as st
from waves import waves

import tokenreduce

FORMS = ((True, True), (True, False), (False, False))  # normalise, inherit


@given(st.integers(2, 14), st.integers(0, 10**6), st.booleans(), st.sampled_from(FORMS), st.booleans(), st.booleans())
def test_matches_the_specification(n, seed, fuse, form, ties, sized) -> None:
    normalise, inherit = form
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n, 3, generator=g)
    attention = torch.randint(1, 4, (1, n), generator=g) / 10.0 if ties else torch.rand(1, n, generator=g) + 0.01
    sizes = torch.randint(1, 4, (1, n), generator=g).float() if sized else None
    keep = int(torch.randint(1, n, (1,), generator=g)) if n > 2 else 1
    token_map = tokenreduce.plan(
        x,
        "evit",
        keep=keep,
        class_attention=attention,
        sizes=sizes,
        fuse=fuse,
        normalise=normalise,
        inherit=inherit,
    )
    y, new_sizes = tokenreduce.apply(token_map, x, sizes)
    fused = fuse and keep >= 2
    order = sorted(range(n), key=lambda i: (-float(attention[0, i]), i))
    kept = sorted(order[: keep - fused])
    dropped = [i for i in range(n) if i not in kept]
    expected = [x[0, i] for i in kept]
    s = sizes if sizes is not None else torch.ones(1, n)
    mass = [float(s[0, i]) for i in kept]
    if fused:
        total = sum(attention[0, i] for i in dropped)
        raw = sum(attention[0, i] * x[0, i] for i in dropped)
        expected.append(raw / total if normalise else raw)
        best = max(dropped, key=lambda i: (float(attention[0, i]), -i))
        mass.append(sum(float(s[0, i]) for i in (dropped if inherit else [best])))
    elif inherit:
        for i in dropped:
            mass[int(token_map.dest[0, i])] += float(s[0, i])
    assert torch.allclose(y[0], torch.stack(expected), atol=1e-5)
    assert torch.allclose(new_sizes[0], torch.tensor(mass))
    assert [int(token_map.dest[0, i]) for i in kept] == list(range(len(kept)))


def test_dropped_tokens_are_restored_by_the_most_similar_kept_one() -> None:
    x = torch.eye(3).repeat(2, 1)[None]
    attention = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.1, 0.1]])
    token_map = tokenreduce.plan(x, "evit", keep=3, class_attention=attention, fuse=False)
    assert torch.equal(tokenreduce.restore(token_map, tokenreduce.apply(token_map, x)[0]), x)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_small_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"]
)
def test_class_attention_is_that_of_the_full_softmax(name, monkeypatch) -> None:
    """The one-row score equals the class rows of the whole attention map, sizes in it, averaged over heads."""
    from tokenreduce.reducers.methods.evit import EViT

    model, x, seen = fresh_model(BY_NAME[name]), BY_NAME[name].images(), []
    plan = EViT.plan

    def spy(self, tokens, keep, state=None):
        seen.append((tokens.layer, tokens.class_attention, tokens.sizes))
        return plan(self, tokens, keep, state)

    monkeypatch.setattr(EViT, "plan", spy)
    rows = {}
    for layer, block in enumerate(model.blocks):
        block.attn.qkv.register_forward_hook(lambda m, a, out, layer=layer: rows.__setitem__(layer, out))
    tokenreduce.patch(model, "evit", r=[0, 3, 3])
    model(x)
    assert [layer for layer, *_ in seen] == [1, 2]
    for layer, score, sizes in seen:
        attn = model.blocks[layer].attn
        q, k, _ = rows[layer].unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * attn.scale
        prefix = model.num_prefix_tokens
        if sizes is not None:
            logits[..., prefix:] += sizes.log()[:, None, None]
        classes = 2 if "distilled" in name else 1
        expected = logits.softmax(-1)[:, :, :classes].mean((1, 2))[:, prefix:]
        assert torch.allclose(score, expected, atol=1e-5)


def test_a_model_without_class_token_is_refused() -> None:
    model = fresh_model(BY_NAME["timm_vit_average"])
    with pytest.raises(ValueError, match=r"evit cannot run .* no class token; methods that fit: .*tome"):
        tokenreduce.patch(model, "evit", flops=0.6)


def test_a_raw_sum_does_not_count_as_all_that_it_holds() -> None:
    with pytest.raises(tokenreduce.InvalidValueError, match="give inherit=False, as the authors do"):
        tokenreduce.reducers.registry.create("evit", {"normalise": False})
    assert tokenreduce.reducers.registry.create("evit", {"normalise": False, "fuse": False}).inherit


def test_the_authors_form_leaves_all_sizes_at_1() -> None:
    model = fresh_model(BY_NAME["vit_tiny_patch16_224"])
    tokenreduce.patch(model, "evit", r=[0, 3, 3], normalise=False, inherit=False)
    model(BY_NAME["vit_tiny_patch16_224"].images())
    assert tokenreduce.report(model).sizes.unique().tolist() == [1]


def test_what_the_authors_code_gave() -> None:
    """Block of youweiliang/evit@5ca95a7, 16 tokens, keep rate 0.7, with the fused token: the kept ones and the sum."""
    x, logits = waves(1, 17, 8), waves(1, 2, 17, 17, start=50)
    attention = (2 * logits).softmax(-1)[:, :, 0, 1:].mean(1)
    options = {"keep": 13, "class_attention": attention, "normalise": False, "inherit": False}
    token_map = tokenreduce.plan(x[:, 1:], "evit", **options)
    assert token_map.rep[0, :12].tolist() == list(range(3, 15))
    fused = [-0.022644, -0.021585, 0.000823, 0.085465, -0.028007, -0.033423, 0.019852, 0.069781]
    assert torch.allclose(token_map.apply(x[:, 1:])[0, 12], torch.tensor(fused), atol=1e-5)
    assert token_map.sizes().tolist() == [[1.0] * 13]
    kept = tokenreduce.plan(x[:, 1:], "topk", keep=12, class_attention=attention).rep
    assert kept[0].tolist() == list(range(3, 15)), "without the fused token, as in JoakimHaurum/TokenReduction@88fe07e"
