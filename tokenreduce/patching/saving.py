"""`save_patch` and `load_patch`: a patch as JSON, without weights."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from tokenreduce.budget.schedule import Schedule
from tokenreduce.errors import InvalidValueError
from tokenreduce.patching.finding import reduction_of
from tokenreduce.patching.verbs import Model, patch
from tokenreduce.reducers.registry import lookup

FORMAT = 1


def save_patch(model: nn.Module, path: str | Path) -> None:
    """Write the model's patch (method, options, schedule, modes) as JSON; weights are not part of it."""
    data = {"tokenreduce": FORMAT} | reduction_of(model).to_json()
    Path(path).write_text(json.dumps(data, indent=2) + "\n")


def load_patch(model: Model, path: str | Path) -> Model:
    """Patch `model`, in place, as `save_patch` recorded it; returns the model.

    Raises: ValueError for a file that is not such a record or does not fit the model.
    """
    try:
        data = json.loads(Path(path).read_text())
        if data["tokenreduce"] != FORMAT:
            raise InvalidValueError(f"{path} has patch format {data['tokenreduce']!r}; this version reads {FORMAT}")
        schedule = Schedule.from_json(data["schedule"])
        method, options = data["method"], dict(data["options"])
        modes = {"restore": data["restore"], "prop_attn": data["prop_attn"]}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidValueError(f"{path} is not a patch written by save_patch ({error!r})") from None
    return patch(model, method, schedule=schedule, **modes, **{**lookup(method).former, **options})
