"""Parts stand until one is added, replaced or taken away, and keep no module alive."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
from backbones import fresh_model
from choosing import MAIN
from torch import nn
from torch.nn.utils import parametrizations

from tokenreduce.forward.parts import Parts


def replaced(model: nn.Module) -> None:
    model.blocks[1].mlp.fc1 = nn.Linear(2, 2)


def added(model: nn.Module) -> None:
    model.blocks[1].mlp.more = nn.Identity()


def taken(model: nn.Module) -> None:
    model.blocks[1].mlp.fc1 = None


def parametrised(model: nn.Module) -> None:
    parametrizations.weight_norm(model.blocks[1].mlp.fc1)


def cut(model: nn.Module) -> None:
    model.blocks = model.blocks[:2]


@pytest.mark.parametrize("change", [replaced, added, taken, parametrised, cut])
def test_what_changes_is_seen(change) -> None:
    model = fresh_model(MAIN)
    parts = Parts(model)
    assert parts.stand()
    change(model)
    assert not parts.stand() and Parts(model).stand()


def test_weights_and_modes_are_no_parts() -> None:
    model = fresh_model(MAIN)
    parts = Parts(model)
    model.double().train().load_state_dict(fresh_model(MAIN).state_dict())
    assert parts.stand()


def test_copies_have_none_and_nothing_is_held() -> None:
    model = fresh_model(MAIN)
    parts, gone = Parts(model), [weakref.ref(module) for module in model.modules()]
    assert not copy.deepcopy(parts).stand() and not pickle.loads(pickle.dumps(parts)).stand()
    del model
    gc.collect()
    assert not any(module() for module in gone) and not parts.stand()


def test_a_part_that_is_alone_is_seen_too() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
    parts, before = Parts(model), model[0][0]  # as a wrapper keeps it
    model[0][0] = nn.Linear(2, 2)
    assert not parts.stand() and before is not None
