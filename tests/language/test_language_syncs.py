"""A step of decoding never waits for the device: it asks for no value of a tensor that an unpatched model does not ask
for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prompting import BY_NAME, PROMPTS, ROWS, Row, fresh, shared
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenreduce import patch, report

WAITING = {"_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "unique_dim", "_unique2"}
WITHIN: list[tuple[str, Any, dict[str, Any]]] = [
    ("fastv", 0.5, {}),
    ("pyramiddrop", 0.5, {}),
    ("divprune", {0: 0.5, 1: 0.75, 2: 0.5}, {}),
    ("todre", 0.5, {"threshold": 1.0}),
]


class Waits(TorchDispatchMode):
    """Counts what has to know values: on a GPU each waits until all work before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING or by_mask:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of `tolist` and `numpy`, which dispatch nothing on the CPU, as they are called."""
    seen: list[str] = []
    for name in ("tolist", "numpy"):
        before = getattr(Tensor, name)

        def called(self: Tensor, *args: Any, name: str = name, before: Any = before) -> Any:
            seen.append(name)
            return before(self, *args)

        monkeypatch.setattr(Tensor, name, called)
    return seen


def waits(model: Any, given: dict[str, Tensor], lists: list[str]) -> list[str]:
    """What the second step after a prompt asks for; the first may prepare something."""
    with torch.no_grad():
        out = model(**given, use_cache=True)
        batch, mask = len(given["input_ids"]), given["attention_mask"]
        for step in range(2):
            mask = torch.cat([mask, mask.new_ones(batch, 1)], 1)
            place = torch.full((batch, 1), given["input_ids"].shape[1] + step)
            asked = {"input_ids": torch.full((batch, 1), 5), "attention_mask": mask, "position_ids": place}
            if model.config.model_type.startswith("qwen"):
                asked["position_ids"] = place.expand(3, batch, 1)
            lists.clear()
            with Waits() as seen:
                model(**asked, past_key_values=out.past_key_values, use_cache=True)
    return sorted([*seen.seen, *lists])


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_enters(row: Row, prompts: Any, lists: list[str]) -> None:
    """The batch has fillers and padding."""
    given = row.inputs(prompts)
    model = patch(fresh(row), "divprune", keep=0.25)
    assert waits(model, given, lists) == waits(shared(row.name), given, lists)
    assert report(model).visual_left < report(model).visual_tokens


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "batch"])
@pytest.mark.parametrize("case", WITHIN, ids=lambda case: case[0])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl"])
def test_what_leaves_within(name: str, case: Any, prompts: Any, lists: list[str]) -> None:
    row, (method, keep, options) = BY_NAME[name], case
    given = row.inputs(prompts)
    model = patch(fresh(row), method, keep=keep, **options)
    assert waits(model, given, lists) == waits(shared(row.name), given, lists)


def test_waiting_is_seen(lists: list[str]) -> None:
    """So that the tests above can fail."""
    x = torch.tensor([1.0, 0.0])
    with Waits() as seen:
        bool(x.any())
        x[x > 0]
        x.nonzero()
        x.tolist()
    assert seen.seen == ["_local_scalar_dense", "index", "nonzero"] and lists == ["tolist"]
