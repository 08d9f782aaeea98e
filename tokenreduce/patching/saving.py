"""`save_patch` and `load_patch`: a patch as JSON, without weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.patching.finding import is_patched, language_reduction_of, reduction_of
from tokenreduce.patching.recorded import FORMAT, read_patch
from tokenreduce.patching.verbs import Model, patch


def save_patch(model: nn.Module, path: str | Path) -> None:
    """Write the model's patch (method, options, schedule or budget, modes) as JSON; weights are not part of it.

    Raises: ValueError if the model is not patched, both its vision tower and what enters its language model are, or the
    file cannot be written.
    """
    language = language_reduction_of(model)
    if language is not None and is_patched(model):
        raise InvalidValueError(
            f"both the vision tower and what enters the language model of this {type(model).__name__} are patched, and "
            "a file holds one patch; save that of the tower from the tower, and load this one onto a model without it"
        )
    data = {"tokenreduce": FORMAT} | (reduction_of(model) if language is None else language).to_json()
    text = json.dumps(data, indent=2) + "\n"
    try:
        Path(path).write_text(text)
    except (OSError, TypeError) as error:
        raise InvalidValueError(f"{path} cannot be written ({error}); name a file in a folder that exists") from None


def load_patch(model: Model, path: str | Path) -> Model:
    """Patch `model`, in place, as `save_patch` recorded it; returns the model.

    Raises: ValueError for a file that is not such a record or does not fit the model.
    """
    read = read_patch(path)
    if read.keep is not None:
        return patch(model, read.method, keep=read.keep, positions=read.positions, **read.options)
    modes = {name: getattr(read, name) for name in ("restore", "prop_attn", "scan_conv", "scan_gap")}
    return patch(model, read.method, schedule=read.schedule, **modes, **read.options)
