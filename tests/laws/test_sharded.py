"""FSDP2: a patched model runs sharded, and is unpatched before or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from backbones import fresh_model
from choosing import MAIN
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tokenreduce import patch, unpatch

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def test_sharded_models_keep_their_patch(tmp_path: Path) -> None:
    model, x = patch(fresh_model(MAIN), "tome", ratio=0.5), MAIN.images()
    expected = model(x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for part in (*model.blocks, model):
            fully_shard(part, mesh=mesh)
        assert torch.equal(model(x), expected)
        with pytest.raises(ValueError, match=r"blocks\.0 has become a FSDPReducedBlock \(torch\.distributed\.fsdp.*"):
            unpatch(model)
        assert torch.equal(model(x), expected)
    finally:
        torch.distributed.destroy_process_group()
