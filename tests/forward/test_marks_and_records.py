"""What ties modules to their patch, and a patch to its last forward."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from patches_by_hand import reduction, tokens
from torch import nn

from tokenreduce.forward.marks import ATTRIBUTE, Mark, mark, patch_of, unmark
from tokenreduce.forward.records import Record, keep_record, last_record
from tokenreduce.forward.slicing import Slicing


def test_marks() -> None:
    module, patch = nn.Linear(2, 2), reduction()
    before = dict(vars(module))
    assert patch_of(module) is None
    unmark(module)
    mark(module, patch)
    assert patch_of(module) is patch and vars(module)[ATTRIBUTE] == Mark(patch, -1)
    assert Mark(patch).layer == -1
    mark(module, patch, 3)
    assert module._tokenreduce.layer == 3 and module._tokenreduce.reduction is patch
    unmark(module)
    assert vars(module) == before and patch_of(module) is None


def test_records_are_of_the_last_forward_in_any_thread() -> None:
    one, other = reduction(), reduction()
    assert last_record(one) is None
    first, second = Record(12, (12, 8, 5, 5), ()), Record(12, (12, 8, 4, 4), ())
    keep_record(one, first)
    assert last_record(one) == first and last_record(other) is None
    with ThreadPoolExecutor(1) as pool:
        pool.submit(keep_record, one, second).result()
    assert last_record(one) == second
    assert second.sizes is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        second.entered = 11  # type: ignore[misc]


def test_a_record_grows_with_its_forward_until_it_is_asked_for() -> None:
    patch, counts = reduction(), [12]
    keep_record(patch, Record(12, counts, []))
    counts.append(8)
    found = last_record(patch)
    counts.append(5)
    assert found == Record(12, (12, 8), ()) and last_record(patch).counts == (12, 8, 5)


def test_a_record_lives_as_long_as_its_patch() -> None:
    patch, sizes = reduction(), torch.ones(2, 12)
    keep_record(patch, Record(12, (12,), (), sizes))
    alive = weakref.ref(sizes)
    del sizes
    gc.collect()
    assert alive() is not None
    del patch
    gc.collect()
    assert alive() is None


def test_records_are_not_kept_while_compiling(monkeypatch) -> None:
    patch = reduction()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    keep_record(patch, Record(12, (12,), ()))
    assert last_record(patch) is None


def test_slicing_cuts_at_its_placement_only() -> None:
    geometry, x = reduction().geometry, tokens()
    slicing = Slicing(geometry, (12, 8, 5, 5), "mid")
    assert slicing.enter(0, x) is x and slicing.attention_bias(x) is None
    assert slicing.reduce(1, x, "pre") is x and slicing.reduce(1, x, "post") is x
    assert torch.equal(slicing.reduce(1, x, "mid"), x[:, : 8 + 3])
    left = slicing.reduce(2, x, "mid")
    assert left.shape[1] == 5 + 3
    table, pairs = torch.randn(4, 12, 6), torch.randn(1, 2, 15, 15)
    assert torch.equal(slicing.rows(table, left), table[:, :5])
    assert torch.equal(slicing.pairs(pairs, left), pairs[:, :, :8, :8])
    with pytest.raises(dataclasses.FrozenInstanceError):
        slicing.placement = "pre"  # type: ignore[misc]
