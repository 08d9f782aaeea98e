"""`ward_cluster_attended` and `ward_match_attended` in the interpreter: maps of the reference, by its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_calls import DTYPES, by_reference, same
from layers import Layer, kernels_asked_for
from torch import Tensor

pytest.importorskip("triton")
from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.triton import cluster, ward
from tokenreduce.ops.triton.attended import ward_cluster_attended
from tokenreduce.ops.triton.class_rows import KEYS, Rows, Weights, weighing
from tokenreduce.ops.triton.cluster import TILE
from tokenreduce.ops.triton.match import SMALL
from tokenreduce.ops.triton.ward import WIDEST
from tokenreduce.reducers.methods.ward import LEAST, Ward
from tokenreduce.reducers.tokens import Tokens


def planned(method: Ward, tokens: Tokens, keep: int, fused: bool = True) -> TokenMap:
    """By the operator and nothing else, or, if not `fused`, by others."""
    with kernels_asked_for() as asked, dispatch.using("triton"):
        found = method.plan(tokens, keep)
    name = "ward_cluster" if method.rounds is None else "ward_match"
    assert asked == [f"{name}_attended"] + [name] * (not fused)
    return found


def check(layer: Layer, keep: int, **options: Any) -> TokenMap:
    """The map is that of the reference."""
    method, tokens = Ward(**options), layer.tokens()
    found = planned(method, tokens, keep)
    same(found, by_reference(method.plan, tokens, keep))
    return found


@pytest.mark.interpreted
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("how", ["contiguous", "channels first"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clusters_of_any_type_and_strides(dtype: torch.dtype, how: str, sized: bool) -> None:
    check(Layer(dtype=dtype, how=how, sized=sized), 23)


@pytest.mark.interpreted
@pytest.mark.parametrize("class_tokens", [1, 2])
@pytest.mark.parametrize(("prefix", "suffix"), [(2, 0), (5, 0), (2, 3)])
@pytest.mark.parametrize("n", [1, 2, TILE - 1, TILE, TILE + 1, KEYS - 2, KEYS - 1, KEYS + 5])
def test_clusters_of_any_number_of_tokens(n: int, prefix: int, suffix: int, class_tokens: int) -> None:
    layer = Layer(n, prefix, suffix, class_tokens=class_tokens)
    for keep in {n, max(1, n - 1), max(1, n * 2 // 3)}:
        check(layer, keep)


@pytest.mark.interpreted
@pytest.mark.parametrize(("heads", "head"), [(1, 1), (1, 7), (6, 64), (16, 40), (24, 8)])
@pytest.mark.parametrize("width", [None, 5, 48])
def test_heads_and_sketches_of_any_width(heads: int, head: int, width: int | None) -> None:
    check(Layer(40, heads=heads, head=head), 15, width=width)


@pytest.mark.interpreted
@pytest.mark.parametrize("attended", [0.1, 1.0, 1])
def test_any_part_of_attention(attended: float) -> None:
    """All of it, too: then sizes do not count, those of 0 included."""
    layer = Layer(50)
    plain = check(layer, 20, attended=attended)
    assert not torch.equal(plain.dest, by_reference(Ward(attended=0.0).plan, layer.tokens(), 20).dest)  # type: ignore[arg-type]
    assert layer.sizes is not None
    layer.sizes[:, ::3] = 0
    if attended == 1:
        same(check(layer, 20, attended=attended), plain)


@pytest.mark.interpreted
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("n", "prefix", "class_tokens"), [(50, 1, 1), (50, 5, 1), (KEYS + 5, 2, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_are_compared_and_attended(
    dtype: torch.dtype, n: int, prefix: int, class_tokens: int, sized: bool
) -> None:
    """Where a user has keys compared in later layers, too."""
    layer = Layer(n, prefix, dtype=dtype, class_tokens=class_tokens, sized=sized, number=5)
    found = check(layer, 20, early=1.0)
    assert not torch.equal(found.dest, check(layer, 20).dest)  # type: ignore[arg-type]


@pytest.mark.interpreted
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize(("n", "channels"), [(60, 48), (61, 4 * WIDEST + 4), (SMALL + 3, 48)])
def test_rounds(n: int, channels: int, rounds: int) -> None:
    """All in one program, and a launch a round: of many tokens, or of wide points."""
    options = {"rounds": rounds, "width": channels // 4 + 1}
    found = check(Layer(n, channels=channels), n - n * 2 // 5, **options)
    sizes_alone = by_reference(Ward(attended=0.0, **options).plan, Layer(n, channels=channels).tokens(), found.count)
    assert not torch.equal(found.dest, sizes_alone.dest)  # type: ignore[arg-type]


def weights(layer: Layer, kernel: str) -> tuple[Tensor, Tensor]:
    """As the kernel has them, and as the reference has them."""
    tokens, method = layer.tokens(), Ward()
    made: list[Tensor] = []

    class Watched:
        def __init__(self, launched: Any) -> None:
            self.launched = launched

        def __getitem__(self, grid: Any) -> Any:
            def launch(*args: Any, **constants: Any) -> None:
                self.launched[grid](*args, **constants)
                made.append(args[self.launched.arg_names.index("mass")].clone())

            return launch

    if kernel == "_weigh":
        rows = Rows.of(layer.queries, layer.keys, layer.bias, layer.class_tokens)
        given, constants = weighing(Weights(rows.write(), layer.prefix, method.attended, LEAST), layer.keys)
        mass = torch.ones(2, layer.n) if layer.sizes is None else layer.sizes.clone()
        ward._weigh[(-(-layer.n // 16), 2)](mass, *given, layer.n, **constants, BLOCK=16)
        made.append(mass)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster, "start", lambda launched, x: Watched(launched))
            planned(method, tokens, layer.n)
    return made[0], by_reference(method.masses, tokens)


@pytest.mark.interpreted
@pytest.mark.parametrize("kernel", ["_costs", "_weigh"])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("prefix", "class_tokens"), [(1, 1), (5, 1), (2, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_those_of_the_reference(
    dtype: torch.dtype, prefix: int, class_tokens: int, sized: bool, kernel: str
) -> None:
    """Those of the least attention, too."""
    found, expected = weights(Layer(150, prefix, dtype=dtype, class_tokens=class_tokens, sized=sized), kernel)
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=0)


@pytest.mark.interpreted
@pytest.mark.parametrize("kernel", ["_costs", "_weigh"])
def test_tokens_that_nothing_looks_at_weigh_as_the_least(kernel: str) -> None:
    layer = Layer(70, sized=False)
    layer.bias = torch.zeros(2, 1, 1, 71)
    layer.bias[0, ..., 40:] = -torch.inf
    found, expected = weights(layer, kernel)
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=0)
    assert (found[0, 39:] == found[0, 39]).all() and found[0, 39] == found.min()


@pytest.mark.interpreted
@pytest.mark.parametrize("kernel", ["_costs", "_weigh"])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_attention_that_is_no_number_leaves_sizes_to_decide(odd: float, kernel: str) -> None:
    """In its image alone."""
    layer = Layer(70)
    clean, _ = weights(layer, kernel)
    layer.keys[1, 0, 5, 3] = odd
    found, expected = weights(layer, kernel)
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=0)
    assert torch.equal(found[0], clean[0]) and layer.sizes is not None
    one = found[1] / layer.sizes[1] ** 0.65
    torch.testing.assert_close(one, one[:1].expand(70), rtol=3e-6, atol=0)
    check(layer, 25)
    check(layer, 40, rounds=2)


@pytest.mark.interpreted
@pytest.mark.parametrize("rounds", [None, 2])
def test_other_logits_than_of_keys_take_the_other_operators(rounds: int | None) -> None:
    """Of relative positions, and attention that is given."""
    layer, method = Layer(40), Ward(rounds=rounds)
    layer.bias = torch.randn(1, 3, 41, 41, generator=torch.Generator().manual_seed(0))
    relative = layer.tokens()
    given = layer.tokens()
    seen = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    given.sources = {"class_attention": lambda: seen}
    for tokens in (relative, given):
        assert tokens.class_attention_parts() is None
        same(planned(method, tokens, 25, fused=False), by_reference(method.plan, tokens, 25))


@pytest.mark.parametrize("keep", [-1, 0, 41])
def test_a_number_of_clusters_that_cannot_be_is_refused_before_anything_is_launched(keep: int) -> None:
    layer = Layer(40)
    parts = layer.tokens().class_attention_parts()
    assert parts is not None
    with pytest.raises(InvalidValueError, match=rf"keep is {keep}; of 40 tokens it must lie in \[1, 40\]"):
        ward_cluster_attended(layer.features, None, None, 48, True, keep, *parts, 0.35, LEAST)
