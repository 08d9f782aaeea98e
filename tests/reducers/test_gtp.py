"""`gtp` against a slow reference written straight from section 7 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from waves import waves

import tokenreduce
from tokenreduce.reducers.methods.gtp import GTP
from tokenreduce.reducers.tokens import Tokens

DEFAULTS = {
    "graph": "mixed",
    "neighbours": 8,
    "alpha": 0.1,
    "scales": True,
    "selection": "mixed",
    "heads": "max",
    "inherit": False,
}


def cell(i: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    return divmod(i, grid[1]) if grid is not None else (0, i)


def normalised_graph(x: torch.Tensor, grid: tuple[int, int] | None, graph: str, neighbours: int) -> list[list[float]]:
    """`D^-1/2 Adj D^-1/2` of the tokens `(n, C)`."""
    n = len(x)
    edges = set()
    if graph != "semantic":
        for i in range(n):
            for j in range(n):
                (y, x_), (v, u) = cell(i, grid), cell(j, grid)
                if i != j and abs(y - v) <= 1 and abs(x_ - u) <= 1:
                    edges.add((i, j))
    if graph != "spatial":
        unit = [row / max(float(row.norm()), 1e-6) for row in x]
        for i in range(n):
            order = sorted((j for j in range(n) if j != i), key=lambda j: (-float(unit[i] @ unit[j]), j))
            edges.update((i, j) for j in order[:neighbours])
    degree = [sum(i == a for a, _ in edges) for i in range(n)]
    return [
        [(degree[i] * degree[j]) ** -0.5 if (i, j) in edges and degree[j] else 0.0 for j in range(n)] for i in range(n)
    ]


def score(case: Case, j: int, selection: str, heads: str) -> float:
    if selection == "class":
        return float(case.class_attention[0, j])
    a, at = case.attention[0], case.prefix + j
    over = max if heads == "max" else lambda values: sum(values) / len(values)
    regeneration = over([float(a[h, at, at]) for h in range(len(a))])
    broadcast = over([float(a[h, :, at].sum()) for h in range(len(a))])
    return {"mixed": regeneration * broadcast, "broadcast": broadcast, "regeneration": regeneration}[selection]


def check(case: Case, keep: int, grid: tuple[int, int] | None = None, **options) -> None:
    o = DEFAULTS | options
    n, s = case.n, case.mass
    g = normalised_graph(case.x[0], grid, o["graph"], o["neighbours"])
    order = sorted(range(n), key=lambda j: (-score(case, j, o["selection"], o["heads"]), j))
    kept, dropped = order[:keep], order[keep:]
    features = [case.x[0, i] + o["alpha"] * sum(g[i][j] * case.x[0, j] for j in dropped) for i in kept]
    sizes = [s[i] + o["alpha"] * sum(g[i][j] * s[j] for j in dropped) * o["scales"] for i in kept]
    undo = torch.zeros(n, keep)
    for j in range(n):
        to = {m: g[i][j] for m, i in enumerate(kept) if g[i][j] > 0}
        if j in kept:
            to = {kept.index(j): 1.0}
        elif not to:
            distance = [math.dist(cell(i, grid), cell(j, grid)) for i in kept]
            to = {distance.index(min(distance)): 1.0}
        for m, share in to.items():
            undo[j, m] = share / sum(to.values())
    if o["inherit"]:
        sizes = [sum(s[j] * float(undo[j, m]) for j in range(n)) for m in range(keep)]
    entries = case.arguments("attention", "class_attention")
    token_map = tokenreduce.plan(case.x, "gtp", keep=keep, grid=grid, **entries, **options)
    y, grown = tokenreduce.apply(token_map, case.x, case.sizes)
    assert token_map.rep[0].tolist() == kept
    assert torch.allclose(y[0], torch.stack(features), atol=1e-5)
    assert torch.allclose(token_map.dense()[0] @ case.x[0], torch.stack(features), atol=1e-5)
    assert torch.allclose(grown[0], torch.tensor(sizes), atol=1e-5)
    assert torch.allclose(token_map.undo_matrix()[0], undo, atol=1e-5)
    assert torch.allclose(tokenreduce.restore(token_map, y)[0], undo @ torch.stack(features), atol=1e-5)


@settings(max_examples=120, deadline=None)
@given(cases(least=2), st.data())
def test_matches_the_specification(case, data) -> None:
    check(case, data.draw(st.integers(1, case.n - 1)), case.grid)


@settings(max_examples=150, deadline=None)
@given(cases(least=2), st.data())
def test_options_match_the_specification(case, data) -> None:
    graph = data.draw(st.sampled_from(["mixed", "spatial", "semantic"]))
    check(
        case,
        data.draw(st.integers(1, case.n - 1)),
        case.grid if graph != "semantic" or data.draw(st.booleans()) else None,
        graph=graph,
        neighbours=data.draw(st.integers(1, 5)),
        alpha=data.draw(st.sampled_from([0, 0.1, 0.4, 2.0])),
        scales=data.draw(st.booleans()),
        selection=data.draw(st.sampled_from(["mixed", "broadcast", "regeneration", "class"])),
        heads=data.draw(st.sampled_from(["max", "mean"])),
        inherit=data.draw(st.booleans()),
    )


def test_a_row_of_cells_by_hand() -> None:
    """Cells 0 - 1 - 2 in a row, degrees 1, 2, 1; the middle one goes and gives alpha / sqrt(2) to both."""
    x = torch.tensor([[[1.0, 0], [0, 8], [0, 4]]])
    attention = torch.diag(torch.tensor([0.9, 0.1, 0.8]))[None, None]
    options = {"attention": attention, "grid": (1, 3), "graph": "spatial", "alpha": 0.5}
    token_map = tokenreduce.plan(x, "gtp", keep=2, **options)
    given = 0.5 / 2**0.5
    assert torch.allclose(token_map.apply(x), torch.tensor([[[1.0, 8 * given], [0, 4 + 8 * given]]]))
    assert torch.allclose(token_map.sizes(), torch.tensor([[1 + given, 1 + given]]))
    restored = token_map.restore(torch.tensor([[[2.0], [4.0]]]))
    assert restored.flatten().tolist() == [2, 3, 4]
    unscaled = tokenreduce.plan(x, "gtp", keep=2, scales=False, **options)
    assert unscaled.sizes().tolist() == [[1, 1]] and torch.equal(unscaled.apply(x), token_map.apply(x))
    assert unscaled.sizes(torch.tensor([[3.0, 5, 2]])).tolist() == [[3, 2]]


def test_the_graph_stays_that_of_the_input() -> None:
    """In a later block tokens keep their nodes and degrees: here 2 and 0 of a row of 4 are left, in this order."""
    method = GTP(graph="spatial", alpha=1.0)
    state = method.begin(Tokens(torch.zeros(1, 4, 2), grid=(1, 4)))
    x = torch.tensor([[[1.0], [10], [100]]])
    sources = {
        "origin": lambda: torch.tensor([[2, 0, 1]]),
        "own_attention": lambda: torch.tensor([[[0.5, 0.7, 0.1]]]),
        "received_attention": lambda: torch.ones(1, 1, 3),
    }
    token_map = method.plan(Tokens(x, sources=sources, grid=(1, 4), layer=1), 2, state)
    assert token_map.rep.tolist() == [[1, 0]]
    assert torch.allclose(token_map.apply(x), torch.tensor([[[10 + 100 / 2**0.5], [1 + 100 / 2]]]))


def test_a_dropped_token_without_kept_neighbours_goes_to_the_nearest() -> None:
    attention = torch.diag(torch.tensor([0.5, 0.0, 0.0, 0.0, 0.9, 0.0]))[None, None] + 0.01
    x = torch.randn(1, 6, 3)
    row = tokenreduce.plan(x, "gtp", keep=2, attention=attention, grid=(1, 6), graph="spatial")
    assert row.undo_matrix().argmax(-1).tolist() == [[1, 1, 0, 0, 0, 0]]  # 2 lies between them: the best score
    far = torch.diag(torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0, 0.9]))[None, None] + 0.01
    two_rows = tokenreduce.plan(x, "gtp", keep=1, attention=far, grid=(2, 3), graph="spatial")
    assert two_rows.undo_matrix().tolist() == [[[1.0]] * 6]


def test_one_cell_and_few_tokens_have_finite_graphs() -> None:
    """A node of degree 0 would divide by zero; fewer tokens than neighbours are all neighbours."""
    for graph in ("mixed", "spatial", "semantic"):
        assert GTP(graph=graph).begin(Tokens(torch.zeros(1, 1, 2), grid=(1, 1))).tolist() == [[[0.0]]]
        links = GTP(graph=graph).begin(Tokens(torch.zeros(2, 3, 2), grid=(3, 1)))
        assert (links > 0).sum((1, 2)).tolist() == ([4, 4] if graph == "spatial" else [6, 6])


def test_what_options_need() -> None:
    assert GTP().required() == GTP.needs
    assert GTP(graph="semantic").required() == {"received_attention", "own_attention", "origin"}
    assert GTP(selection="broadcast").required() == {"received_attention", "origin", "grid"}
    assert GTP(selection="regeneration").required() == {"own_attention", "origin", "grid"}
    assert GTP(selection="class").required() == {"class_attention", "origin", "grid"}
    x, attention = torch.randn(1, 6, 4), torch.ones(1, 2, 6, 6) / 6
    with pytest.raises(ValueError, match="gtp needs grid"):
        tokenreduce.plan(x, "gtp", keep=3, attention=attention)
    with pytest.raises(ValueError, match=r'there are 6 in a grid \(2, 4\); use graph="semantic"'):
        tokenreduce.plan(x, "gtp", keep=3, attention=attention, grid=(2, 4))
    assert tokenreduce.plan(x, "gtp", keep=3, attention=attention, graph="semantic").count == 3


def test_options_are_checked() -> None:
    assert GTP(alpha=1).alpha == 1
    for option, wrong in {"alpha": [-0.1, math.inf, math.nan], "neighbours": [0, -3]}.items():
        for value in wrong:
            with pytest.raises(ValueError, match=f"option {option} is .*; it must be"):
                GTP(**{option: value})
    with pytest.raises(ValueError, match="option graph is 'knn'; valid: 'mixed', 'spatial', 'semantic'"):
        GTP(graph="knn")


def test_deit_small_with_8_propagated_saves_the_published_26_percent() -> None:
    import timm

    model = timm.create_model("deit_small_patch16_224").eval()
    tokenreduce.patch(model, "gtp", r=8)
    counted = tokenreduce.count_flops(model, torch.zeros(1, 3, 224, 224))
    assert counted.model == pytest.approx(3.42e9, rel=0.005)
    assert 1 - counted.model / 4.60e9 == pytest.approx(0.26, abs=0.005)


def test_scales_reach_the_attention_and_can_be_switched_off() -> None:
    from backbones import BY_NAME, shared_model

    model, x = shared_model("timm_vit_not_square"), BY_NAME["timm_vit_not_square"].images()
    for scales in (True, False):
        with tokenreduce.reduced(model, "gtp", r=5, scales=scales):
            model(x)
            sizes = None
            for token_map in (m for _, m in tokenreduce.report(model).maps):
                sizes = token_map.sizes(sizes)
            assert (sizes == 1).all() if not scales else (sizes > 1).any()
            assert ((sizes >= 1) & (sizes < 3)).all()


def test_what_the_authors_code_gave() -> None:
    """`select` and `propagate` of Ackesnal/GTP-ViT@97a1178: 16 tokens, mixed graph of 4 neighbours, 6 leave."""
    x, attention = waves(1, 17, 8), (2 * waves(1, 2, 17, 17, start=50)).softmax(-1)
    options = {"keep": 10, "attention": attention, "grid": (4, 4), "prefix": 1, "neighbours": 4}
    token_map = tokenreduce.plan(x[:, 1:], "gtp", **options)
    assert token_map.rep[0].tolist() == [6, 15, 8, 11, 5, 2, 0, 1, 4, 3]
    first = [-0.946346, -0.783282, -0.899503, -0.974135, 1.003053, -0.294945, 0.990049, -0.580938, -0.991312, 0.905034]
    sizes = [1.0327, 1.053486, 1.04019, 1.050441, 1.040238, 1.036523, 1.026743, 1.01005, 1.026826, 1.042173]
    assert torch.allclose(token_map.apply(x[:, 1:])[0, :, 0], torch.tensor(first), atol=1e-5)
    assert torch.allclose(token_map.sizes()[0], torch.tensor(sizes), atol=1e-5)


def test_inherited_sizes_are_whole() -> None:
    x, attention = waves(1, 17, 8), (2 * waves(1, 2, 17, 17, start=50)).softmax(-1)
    options = {"keep": 10, "attention": attention, "grid": (4, 4), "prefix": 1}
    inherited, lost = (tokenreduce.plan(x[:, 1:], "gtp", inherit=inherit, **options) for inherit in (True, False))
    assert torch.equal(inherited.apply(x[:, 1:]), lost.apply(x[:, 1:]))
    assert float(inherited.sizes().sum()) == pytest.approx(16) and float(lost.sizes().sum()) < 11
