"""`Run`: when it reduces, what it restores and what it keeps for that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from patches_by_hand import COUNT, DEPTH, GRID, reduction, tokens
from torch import Tensor

from tokenreduce import Reducer, Schedule, TokenMap
from tokenreduce.budget.phase import current_phase
from tokenreduce.forward import run as running
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.maps.restoring import Restoring
from tokenreduce.maps.token_map import keep_tokens

SEEN: list[tuple[str, Any]] = []


@dataclass(frozen=True)
class Watched(Reducer):
    """Keeps the last tokens; says what it was given."""

    name: ClassVar[str] = "watched"
    placement: ClassVar[str] = "mid"

    def begin(self, tokens: Any) -> str:
        SEEN.append(("begin", (tokens.layer, tokens.count, current_phase())))
        return "state"

    def plan(self, tokens: Any, keep: int, state: Any = None) -> TokenMap:
        SEEN.append(("plan", (tokens.layer, tokens.count, keep, state, current_phase(), torch.is_grad_enabled())))
        batch, n = tokens.features.shape[:2]
        kept = torch.arange(n - keep, n).expand(batch, -1)
        return keep_tokens(kept, torch.zeros(batch, n, dtype=torch.long))

    def decide(self, tokens: Any, state: Any = None) -> int:
        SEEN.append(("decide", (tokens.layer, tokens.count, state)))
        return 7 if tokens.layer < 2 else 9


class Before(Watched):
    placement: ClassVar[str] = "pre"


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def watched(schedule: Schedule, reducer: Reducer | None = None, **fields: Any) -> Reduction:
    return replace(reduction(**fields), reducer=reducer or Watched(), schedule=schedule)


def forward(run: Run, x: Tensor) -> list[Tensor]:
    """Layers that add nothing; what each returns."""
    run.begin(x)
    out = []
    for layer in range(DEPTH):
        x = run.enter(layer, x)
        for placement in ("pre", "mid", "post"):
            x = run.reduce(layer, x, placement)
        x = run.leave(layer, x)
        out.append(x)
    return out


def test_reduces_where_the_schedule_says_at_its_placement() -> None:
    patch = watched(Schedule.keep({1: 8, 2: 20, 3: 5}))
    run, x = Run(patch, COUNT, GRID), tokens()
    assert not run.surrounded and run.taps.layers == frozenset() and run.shown.video is None
    assert [run.may_reduce(layer) for layer in range(DEPTH)] == [False, True, False, True]
    for layer, placement in ((1, "pre"), (1, "post"), (0, "mid"), (2, "mid")):
        assert run.reduce(layer, x, placement) is x
    assert SEEN == []
    out = forward(run, x)
    assert [one.shape[1] for one in out] == [15, 11, 11, 8] and run.counts == [12, 8, 8, 5] and run.next_layer == 4
    assert SEEN == [
        ("begin", (0, 12, "reducer")),
        ("plan", (1, 12, 8, "state", "reducer", False)),
        ("plan", (3, 8, 5, "state", "reducer", False)),
    ]
    kept = torch.cat([x[:, :2], x[:, 9:14], x[:, 14:]], 1)
    assert torch.equal(out[3], kept) and [layer for layer, _ in run.history] == [1, 3] and len(run.maps) == 2
    record = run.record()
    assert record.entered == 12 and record.counts == [12, 8, 8, 5] and record.sizes is None
    assert [layer for layer, _ in record.maps] == [1, 3]


def test_before_a_layer() -> None:
    run, x = Run(watched(Schedule.keep({0: 4}), Before()), COUNT, GRID), tokens()
    assert run.reduce(0, x, "mid") is x
    assert run.reduce(0, x, "pre").shape[1] == 7


def test_an_adaptive_method_decides_in_its_layers() -> None:
    patch = watched(Schedule.adaptive([0, 1, 3]), needs_all=frozenset({0}))
    assert patch.adaptive and patch.deciding_layers == (1, 3) and patch.is_identity(COUNT) is False
    run = Run(patch, COUNT, GRID)
    assert [run.may_reduce(layer) for layer in range(DEPTH)] == [False, True, False, True]
    out = forward(run, tokens())
    assert [one.shape[1] for one in out] == [15, 10, 10, 10] and run.counts == [12, 7, 7, 7]
    assert [name for name, _ in SEEN] == ["begin", "decide", "plan", "decide"], "9 of 7 removes nothing"
    assert SEEN[1] == ("decide", (1, 12, "state")) and len(run.maps) == 1


@pytest.mark.parametrize("whole", [frozenset({2}), frozenset()])
def test_tokens_come_back_before_layers_that_need_them(whole: frozenset[int]) -> None:
    schedule = Schedule.keep({0: 8, 1: 6, 3: 5})
    patch = watched(schedule if whole else schedule.restore_after(1), needs_all=whole)
    assert patch.full_layers == {2} and patch.counts(COUNT) == (8, 6, 12, 5)
    assert patch.entering(COUNT, (8, 6, 12, 5)) == (12, 8, 12, 12)
    run, x = Run(patch, COUNT, GRID), tokens()
    out = forward(run, x)
    assert [one.shape[1] for one in out] == [11, 9, 15, 8]
    assert len(run.maps) == 1 and [layer for layer, _ in run.history] == [0, 1, 3]
    # As copies: what was dropped takes what the first of the tokens left holds.
    expected = x.clone()
    expected[:, 2:8] = x[:, 8:9]
    assert torch.equal(out[2], expected)


@pytest.mark.parametrize(
    ("at_end", "between", "ends", "taps", "full", "keeps"),
    [
        ("copy", "copy", True, {1}, True, False),
        ("delta", "copy", True, set(), False, True),
        ("delta", "copy", False, set(), False, False),
        ("copy", "delta", True, set(), False, False),
        ("copy", "delta", True, {1}, False, True),
        ("copy", "freeze", False, {1}, False, True),
        ("copy", "delta", False, set(), True, True),
        ("soft", "soft", True, {1}, True, False),
    ],
)
def test_tokens_around_maps_are_kept_only_for_modes_that_look_back(at_end, between, ends, taps, full, keeps) -> None:
    restoring = Restoring(at_end, between, ends=ends, taps=True, charged=False)
    patch = reduction(restoring=restoring, needs_all=frozenset({3} if full else set()))
    run, x = Run(patch, COUNT, GRID, frozenset(taps)), tokens()
    assert run.keeps_around == keeps
    reduced = run.reduce(1, x, "mid")
    assert reduced.shape[1] == 11
    assert [(before is x, after is reduced) for before, after, empty in run.around if empty is None] == (
        [(True, True)] if keeps else []
    )


def test_tapped_layers_return_all_tokens_and_go_on_with_the_reduced() -> None:
    restoring = Restoring("copy", "delta", ends=True, taps=True, charged=False)
    run, x = Run(watched(Schedule.keep({0: 6}), restoring=restoring), COUNT, GRID, frozenset({1, 3})), tokens()
    out = forward(run, x)
    assert [one.shape[1] for one in out] == [9, 15, 9, 15] and run.counts == [6, 6, 6, 6]
    assert torch.equal(out[1], x) and torch.equal(out[3], x), "by what changed since, which is nothing"
    copied = x.clone()
    copied[:, 2:8] = x[:, 8:9]
    assert torch.equal(run.restore(out[2], at_end=True), copied)
    assert torch.equal(run.restore(out[2]), x)


def test_what_a_tapped_layer_handed_out_enters_a_layer_that_needs_all_tokens() -> None:
    run = Run(watched(Schedule.keep({0: 6}), needs_all=frozenset({2})), COUNT, GRID, frozenset({1}))
    x, change = tokens(0), tokens(1)
    reduced = run.leave(0, run.reduce(0, run.enter(0, x), "mid"))
    handed_out = run.leave(1, run.enter(1, reduced))
    assert reduced.shape[1] == 9 and handed_out.shape[1] == 15
    changed = handed_out + change
    assert run.enter(2, changed) is changed, "what a hook made of it, as it is"
    assert run.maps == [] and run.taps.waiting is None


def test_everything_comes_back_at_the_end_in_the_mode_of_the_end() -> None:
    restoring = Restoring("copy", "delta", ends=True, taps=True, charged=False)
    run, x = Run(watched(Schedule.keep({0: 6}), restoring=restoring), COUNT, GRID), tokens()
    reduced = run.reduce(0, run.enter(0, x), "mid")
    assert run.leave(0, reduced).shape[1] == 9
    copied = x.clone()
    copied[:, 2:8] = x[:, 8:9]
    assert torch.equal(run.leave(1, reduced, everything=True), copied)


def test_padding_is_blanked_where_tokens_enter() -> None:
    valid = torch.ones(2, 15).bool()
    valid[1, 6:14] = False
    run, x = Run(watched(Schedule.keep({1: 6})), COUNT, GRID, valid=valid), tokens()
    assert torch.equal(run.enter(0, x), x.masked_fill(~valid[..., None], 0))
    assert run.enter(1, x) is x
    assert torch.equal(run.record().sizes, valid[:, 2:14].float())


def test_sizes_stay_unknown_while_tokens_are_only_dropped() -> None:
    run = Run(watched(Schedule.keep({1: 6})), COUNT, GRID)
    run.reduce(1, tokens(), "mid")
    assert run.sizes is None


def test_sizes_and_places_follow_what_is_merged() -> None:
    merging, x = Run(reduction({1: 6, 2: 3}, method="kmeans", follows_origin=True), COUNT, GRID), tokens()
    merging.shown.add("mean_keys", tokens(1, channels=4))
    reduced = merging.reduce(1, x, "mid")
    [token_map] = merging.maps
    assert torch.equal(reduced[:, :2], x[:, :2]) and torch.equal(reduced[:, -1:], x[:, -1:])
    assert torch.allclose(reduced[:, 2:-1], token_map.apply(x[:, 2:14]), atol=1e-6)
    assert torch.equal(merging.places.origin(2, x.device), token_map.rep)
    assert merging.sizes is not None and merging.sizes.shape == (2, 6) and merging.sizes.sum(1).tolist() == [12, 12]
    assert torch.equal(merging.sizes, token_map.sizes(None))
    merging.shown.add("mean_keys", tokens(1, count=6, channels=4))
    twice = merging.reduce(2, reduced, "mid")
    assert torch.allclose(twice[:, 2:-1], merging.maps[1].apply(reduced[:, 2:-1], token_map.sizes(None)), atol=1e-6)
    assert merging.sizes.shape == (2, 3) and merging.sizes.sum(1).tolist() == [12, 12]
    assert torch.equal(merging.places.origin(2, x.device), token_map.rep.gather(1, merging.maps[1].rep))


def test_keys_keep_their_heads_for_a_kernel_that_averages_them_and_knows_no_padding() -> None:
    valid = torch.ones(2, 15).bool()
    assert Run(reduction(method="tome"), COUNT, GRID).shown.by_head
    assert not Run(reduction(method="tome"), COUNT, GRID, valid=valid).shown.by_head
    assert not Run(reduction(method="random"), COUNT, GRID).shown.by_head
    assert not Run(reduction(method="random"), COUNT, GRID, valid=valid).shown.by_head


def test_a_kernel_is_chosen_where_it_can_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "choose", lambda name, x: name)
    patch, x, valid = reduction(method="tome"), tokens(), torch.ones(2, 15).bool()

    def chosen(patch: Reduction, gradients: bool = False, **arguments: Any) -> Any:
        run = Run(patch, COUNT, GRID, **arguments)
        with torch.set_grad_enabled(gradients):
            run.begin(x)
        return run.kernel

    assert chosen(patch) == patch.reducer.fast().kernel != ""
    assert chosen(patch, gradients=True) is None and chosen(patch, valid=valid) is None
    assert chosen(reduction(method="random")) is None
    assert chosen(replace(patch, schedule=Schedule.adaptive())) is None


def test_what_a_layer_has_shown_is_forgotten_when_it_ends() -> None:
    run, keys = Run(reduction(), COUNT, GRID), torch.randn(2, 2, 15, 4)
    run.show_attention(lambda q, k: (q, k, None))
    run.shown.add("keys", keys)
    assert run.shown.entries == {"keys": keys} and run.shown.attend is not None
    run.leave(0, tokens())
    assert run.shown.entries == {} and run.shown.attend is None
