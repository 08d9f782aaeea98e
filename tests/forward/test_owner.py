"""An owner holds its model weakly, and that of a copy is the copy."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
from backbones import fresh_model
from choosing import MAIN
from torch import nn

from tokenreduce import patch, unpatch
from tokenreduce.forward.marks import marked_inside, parts_stand, patch_of
from tokenreduce.forward.owner import Weakly


def test_modules_are_held_weakly() -> None:
    module = nn.Linear(2, 2)
    held, gone = Weakly(module), weakref.ref(module)
    assert held() is module and Weakly()() is None
    del module
    assert gone() is None and held() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_own_themselves(copied) -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    twin = copied(model)
    for each in (model, twin):
        owner = each._tokenreduce.reduction.owner
        assert owner.backbone is each and all(patch_of(block).owner is owner for block in each.blocks)
    assert [*twin._tokenreduce.reduction.owner.touched] == []
    assert {*model.blocks} < {*model._tokenreduce.reduction.owner.touched}
    unpatch(twin)
    assert patch_of(model.blocks[0]) is not None and patch_of(twin.blocks[0]) is None


def test_a_copy_of_a_part_owns_nothing() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    block = copy.deepcopy(model.blocks[1])
    assert patch_of(block).owner.backbone is None
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None and parts_stand(block)


def test_parts_stand_until_one_is_replaced() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    block, reduction = model.blocks[1], model._tokenreduce.reduction
    assert block._tokenreduce.parts == marked_inside(block, reduction) == (("attn", "k_norm"),)
    assert parts_stand(block)
    norm, block.attn.k_norm = block.attn.k_norm, nn.Identity()
    assert not parts_stand(block)
    block.attn.k_norm = norm
    assert parts_stand(block)
    norm._tokenreduce = norm._tokenreduce._replace(reduction=None)
    assert not parts_stand(block), "that of another patch"
    del block.attn.k_norm
    assert not parts_stand(block)


def test_layers_that_left_the_model_are_unpatched_with_it() -> None:
    model = patch(fresh_model(MAIN), "tome", ratio=0.5)
    whole = model.blocks
    model.blocks = model.blocks[:2]
    unpatch(model)
    model.blocks = whole
    plain = fresh_model(MAIN)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model(MAIN.images()).equal(plain(MAIN.images()))
