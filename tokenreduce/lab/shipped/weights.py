"""The weights that ship with the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ASSETS = Path(__file__).parent / "assets"


def with_weights(model: Any, file: Path) -> Any:
    """The model in eval mode with the weights in a file, in float32 where it holds halves."""
    from safetensors.torch import load_file

    weights = load_file(str(file))
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
    return model.eval()
