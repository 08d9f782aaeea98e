"""FSDP: a patched model runs sharded, whole or in parts, and is unpatched before or, with FSDP2, not at all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import BY_NAME, fresh_model
from changing import layers_of
from choosing import MAIN
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.multiprocessing import spawn

from tokenreduce import patch, report, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sharded_models_keep_their_patch(alone: None) -> None:
    model, x = patch(fresh_model(MAIN), "tome", ratio=0.5), MAIN.images()
    expected = model(x)
    mesh = init_device_mesh("cpu", (1,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    assert torch.equal(model(x), expected)
    with pytest.raises(ValueError, match=r"blocks\.0 has become a FSDPReducedBlock \(torch\.distributed\.fsdp.*"):
        unpatch(model)
    assert torch.equal(model(x), expected)


def wrapped(model: Any, original: bool, by_layer: bool = True) -> Any:
    """The model in FSDP1, each layer in one of its own or all in one."""
    policy = ModuleWrapPolicy({type(layers_of(model)[0])}) if by_layer else None
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=original, device_id=torch.device("cpu")
    )


@pytest.mark.parametrize("original", [False, True])
def test_fsdp1_around_a_patched_model_and_patched_itself(alone: None, original: bool) -> None:
    plain, x = fresh_model(MAIN), MAIN.images()
    unpatched, expected = plain(x), patch(plain, "tome", flops=0.6)(x)
    sharded = wrapped(patch(fresh_model(MAIN), "tome", flops=0.6), original)
    assert torch.equal(sharded(x), expected) and report(sharded).to_json() == report(plain).to_json()
    around = patch(wrapped(fresh_model(MAIN), original, by_layer=False), "tome", flops=0.6)
    assert torch.equal(around(x), expected) and report(around).to_json() == report(plain).to_json()
    assert torch.equal(unpatch(sharded)(x), unpatched) and torch.equal(unpatch(around)(x), unpatched)
    with pytest.raises(ValueError, match=r"are of class FullyShardedDataParallel .* apply tokenreduce first"):
        patch(sharded, "tome", flops=0.6)


def in_parts(rank: int, store: str) -> None:
    """What one of two processes checks, each of which holds a part of all weights."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in ("torchvision_vit", "open_clip_vit"):
        for original in (False, True):
            row = BY_NAME[name]
            whole, inputs = patch(fresh_model(row), "tome", flops=0.6), row.inputs()
            expected = row.outputs(whole, inputs)
            sharded = wrapped(patch(fresh_model(row), "tome", flops=0.6), original)
            found = row.outputs(sharded, inputs)
            torch.testing.assert_close(found, expected)
            said, meant = report(sharded), report(whole)
            assert said.tokens == meant.tokens and not said.outdated and not said.refused, str(said)
            assert said.flops_share == pytest.approx(meant.flops_share, abs=1e-4), str(said)
    around = wrapped(fresh_model(BY_NAME["torchvision_vit"]), True, by_layer=False)
    with pytest.raises(ValueError, match="patch the model first, and wrap it then"):
        patch(around, "tome", flops=0.6)
    torch.distributed.destroy_process_group()


def test_fsdp1_with_weights_in_parts(tmp_path: Path) -> None:
    """Whose sizes say nothing of what a layer costs."""
    spawn(in_parts, (f"{tmp_path}/store",), nprocs=2)
