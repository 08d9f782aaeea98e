"""`visionzip` against loops; `tests/language/test_language_received.py` has it in models."""

from __future__ import annotations

import pytest
import torch
from cases import cases
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenreduce


@pytest.mark.parametrize("merge", ["sum", "mean"])
@given(cases(least=2), st.data(), st.sampled_from([0.0, 10 / 64, 0.5, 1.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_matches_the_specification(merge, case, data, contextual, by_class) -> None:
    keep = data.draw(st.integers(1, case.n - 1))
    received = torch.stack([case.class_attention.flip(1), case.class_attention.flip(1)], 1)
    shown = {"received_attention": received, "keys": case.keys}
    shown |= {"class_attention": case.class_attention} if by_class else {}
    token_map = tokenreduce.plan(case.x, "visionzip", keep=keep, contextual=contextual, merge=merge, **shown)
    score = case.class_attention[0].tolist() if by_class else case.class_attention[0].tolist()[::-1]

    few = min(keep - 1, int(keep * contextual))
    dominant = sorted(sorted(range(case.n), key=lambda i: (-score[i], i))[: keep - few])
    rest = [i for i in range(case.n) if i not in dominant]
    step = max(1, len(rest) // few) if few else 0
    targets = [rest[step * i] for i in range(few)]
    assert token_map.representatives()[0].tolist() == [*dominant, *targets] and token_map.count == keep

    found = token_map.apply(case.x)[0]
    assert torch.equal(found[: keep - few], case.x[0, dominant])
    if not few:
        assert token_map.drops
        return
    unit = [key / max(float(key.norm()), 1e-6) for key in case.mean_keys.double()]
    share = token_map.dense()[0, keep - few :]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        joins = share[:, i].nonzero()[:, 0].tolist()
        assert len(joins) == 1
        if i not in targets:
            alike = [float(unit[i] @ unit[target]) for target in targets]
            assert alike[joins[0]] >= max(alike) - 1e-6
            if case.kind in ("ties", "identical"):
                assert joins[0] == alike.index(max(alike))
            members[targets[joins[0]]].append(i)
    for target, row in zip(targets, found[keep - few :], strict=True):
        joined = [case.x[0, i] for i in members[target]]
        expected = case.x[0, target] + (sum(joined) / len(joined) if joined else 0)
        expected = expected / 2 if joined and merge == "mean" else expected
        assert torch.allclose(row, expected, atol=1e-5)


def test_the_counts_of_the_paper() -> None:
    x = torch.randn(1, 576, 8, generator=torch.Generator().manual_seed(0))
    token_map = tokenreduce.plan(x, "visionzip", keep=64, received_attention=torch.rand(1, 2, 576))
    assert int((token_map.dense()[0] > 0).sum(1).gt(1).sum()) <= 10
    assert (
        token_map.representatives()[0, :54].diff().gt(0).all()
        and token_map.representatives()[0, 54:].diff().gt(0).all()
    )
    assert token_map.dense()[0, :54].sum() == 54


def test_each_score_says_what_it_lacks() -> None:
    x = torch.randn(1, 6, 2)
    with pytest.raises(ValueError, match="visionzip needs class_attention"):
        tokenreduce.plan(x, "visionzip", keep=3, score="class")
    with pytest.raises(ValueError, match="visionzip needs received_attention"):
        tokenreduce.plan(x, "visionzip", keep=3)
