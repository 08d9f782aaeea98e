"""`save_patch` and `load_patch`: a patch as JSON, without weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from tokenreduce.patching.finding import reduction_of
from tokenreduce.patching.recorded import FORMAT, read_patch
from tokenreduce.patching.verbs import Model, patch


def save_patch(model: nn.Module, path: str | Path) -> None:
    """Write the model's patch (method, options, schedule, modes) as JSON; weights are not part of it."""
    data = {"tokenreduce": FORMAT} | reduction_of(model).to_json()
    Path(path).write_text(json.dumps(data, indent=2) + "\n")


def load_patch(model: Model, path: str | Path) -> Model:
    """Patch `model`, in place, as `save_patch` recorded it; returns the model.

    Raises: ValueError for a file that is not such a record or does not fit the model.
    """
    read = read_patch(path)
    modes = {name: getattr(read, name) for name in ("restore", "prop_attn", "scan_conv", "scan_gap")}
    return patch(model, read.method, schedule=read.schedule, **modes, **read.options)
