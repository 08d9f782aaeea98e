"""`topk` against a slow reference written straight from section 2.4 of the specification."""

from __future__ import annotations

import pytest
import torch
from backbones import BY_NAME, fresh_model
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce
from tokenreduce.reducers.registry import create

SCORES = ("class_attention", "received_attention", "key_norm", "value_norm", "feature_norm", "scan_output")


def reference_score(case: Case, score: str, j: int) -> float:
    if score == "class_attention":
        return float(case.class_attention[0, j])
    if score == "received_attention":
        return float(sum(row[case.prefix + j] for head in case.attention[0] for row in head) / 2)
    if score == "scan_output":
        return sum(max(0.0, float(v)) for v in case.scan_output[0, j])
    vectors = {"key_norm": case.keys[0, :, j], "value_norm": case.values[0, :, j], "feature_norm": case.x[0, j]}
    return sum(float(v) ** 2 for v in vectors[score].flatten()) ** 0.5


def nearest(keys: torch.Tensor, i: int, kept: list[int]) -> int:
    cosines = [float(torch.nn.functional.cosine_similarity(keys[i], keys[k], dim=0, eps=1e-12)) for k in kept]
    return max(range(len(kept)), key=lambda m: (round(cosines[m], 5), -m))


@given(cases(least=2), st.sampled_from(SCORES), st.booleans(), st.booleans(), st.data())
@settings(max_examples=80, deadline=None)
def test_matches_the_specification(case, score, largest, inherit, data) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    given_to_plan = case.arguments("keys", "values", "class_attention", "attention", "scan_output")
    options = {"score": score, "largest": largest, "inherit": inherit}
    token_map = tokenreduce.plan(case.x, "topk", keep=keep, **options, **given_to_plan)
    sign = -1 if largest else 1
    ranks = sorted(range(case.n), key=lambda j: (sign * reference_score(case, score, j), j))
    kept = sorted(ranks[:keep])
    assert token_map.rep[0].tolist() == kept and token_map.drops
    expected = [kept.index(i) if i in kept else nearest(case.mean_keys, i, kept) for i in range(case.n)]
    assert token_map.dest[0].tolist() == expected
    y, sizes = tokenreduce.apply(token_map, case.x, case.sizes)
    assert torch.equal(y, case.x[:, kept]) and sizes[0].tolist() == case.inherited(kept, expected, inherit)


@pytest.mark.parametrize("score", SCORES)
def test_a_permuted_image_keeps_the_same_tokens(score) -> None:
    g = torch.Generator().manual_seed(1)
    n, order = 12, torch.randperm(12, generator=g)
    attention = torch.randn(1, 2, n + 1, n + 1, generator=g).softmax(-1)
    image = {name: torch.randn(1, 2, n, 4, generator=g) for name in ("keys", "values")}
    image["scan_output"] = torch.randn(1, 1, n, 4, generator=g)
    x, whole = torch.randn(1, n, 6, generator=g), torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    moved = {name: tensor[:, :, order] for name, tensor in image.items()}
    for tensors in (image, moved):
        tensors["scan_output"] = tensors["scan_output"][:, 0]
    first = tokenreduce.plan(x, "topk", keep=5, attention=attention, prefix=1, score=score, **image)
    second = tokenreduce.plan(
        x[:, order], "topk", keep=5, attention=attention[:, :, whole][..., whole], prefix=1, score=score, **moved
    )
    assert sorted(order[second.rep[0]].tolist()) == first.rep[0].tolist()


def test_without_fusion_evit_is_topk() -> None:
    g = torch.Generator().manual_seed(2)
    x, attention = torch.randn(2, 9, 4, generator=g), torch.rand(2, 9, generator=g)
    ours = tokenreduce.plan(x, "topk", keep=4, class_attention=attention)
    theirs = tokenreduce.plan(x, "evit", keep=4, class_attention=attention, fuse=False)
    assert torch.equal(ours.rep, theirs.rep) and torch.equal(ours.dest, theirs.dest)
    assert torch.equal(ours.sizes(), theirs.sizes()) and ours.sizes().sum() == 18


def test_what_a_score_needs() -> None:
    assert create("topk", {}).required() == {"class_attention", "mean_keys"}
    assert create("topk", {"score": "key_norm"}).required() == {"keys", "mean_keys"}
    assert create("topk", {"score": "feature_norm"}).required() == {"mean_keys"}
    with pytest.raises(ValueError, match="topk needs class_attention"):
        tokenreduce.plan(torch.randn(1, 4, 2), "topk", keep=2)


@pytest.mark.parametrize("score", SCORES[1:-1])
def test_all_scores_but_one_run_without_class_token(score) -> None:
    model, x = fresh_model(BY_NAME["timm_vit_average"]), BY_NAME["timm_vit_average"].images()
    tokenreduce.patch(model, "topk", flops=0.7, score=score)
    assert torch.isfinite(model(x)).all()
    assert tokenreduce.report(model).tokens[-1] < 64
    tokenreduce.unpatch(model)
    with pytest.raises(ValueError, match=r"topk cannot run .* no class token"):
        tokenreduce.patch(model, "topk", flops=0.7)


def test_only_two_scores_run_on_state_space_models() -> None:
    row = BY_NAME["scan_vim"]
    model, x = fresh_model(row), row.images()
    for score in ("feature_norm", "scan_output"):
        tokenreduce.patch(model, "topk", flops=0.7, score=score)
        assert torch.isfinite(model(x)).all()
        assert tokenreduce.report(model).tokens[-1] < 64
    for score in SCORES[:4]:
        with pytest.raises(ValueError, match=r"topk cannot run .* state-space model, which has no attention"):
            tokenreduce.patch(model, "topk", flops=0.7, score=score)
    with pytest.raises(ValueError, match=r"topk cannot run .* is no state-space model"):
        tokenreduce.patch(fresh_model(BY_NAME["timm_vit"]), "topk", flops=0.7, score="scan_output")


def test_options() -> None:
    with pytest.raises(ValueError, match=r"score is 'norm'; valid: 'class_attention', .*'feature_norm'"):
        create("topk", {"score": "norm"})
    for option in ("largest", "inherit"):
        with pytest.raises(TypeError, match=option):
            create("topk", {option: 1})


def test_deit_small_at_0_7_counts_3_0_gmacs() -> None:
    """EViT's table, without fusion: keep rate 0.7 in blocks 3, 6 and 9."""
    import timm

    model = timm.create_model("deit_small_patch16_224").eval()
    tokenreduce.patch(model, "topk", schedule=tokenreduce.Schedule.keep({3: 0.7, 6: 0.7, 9: 0.7}))
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    assert counted.model == pytest.approx(3.0e9, rel=0.02) and counted.uncounted == {}
