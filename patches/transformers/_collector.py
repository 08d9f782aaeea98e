"""Which outputs the forward that runs now collects: private API of transformers, touched in this file only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from tokenreduce.errors import InvalidValueError

KNOWN = "transformers 5.18 to 5.23"  # the lower bound of pyproject.toml, and the newest that was tested


def collected_layers(depth: int) -> frozenset[int]:
    """The layers whose outputs this forward collects, of a model with `depth` of them.

    Output i + 1 of `hidden_states` is that of layer i; feature maps of backbones are made of them too.
    """
    outputs = collector()
    if "attentions" in outputs:
        refuse_attentions()
    if "hidden_states" not in outputs:
        return frozenset()
    # Should this key be renamed, all layers count as collected: that costs time, and changes no result.
    chosen = outputs.get("_hidden_states_layers")
    return frozenset(layer for layer in range(depth) if chosen is None or layer + 1 in chosen)


def collector() -> Mapping[str, Any]:
    """What transformers collects in this forward, by name; empty if nothing.

    Raises: ValueError if this transformers keeps it elsewhere.
    """
    # Imported when a forward asks: a rename must not make adapters fail to import.
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:
        raise InvalidValueError(
            f"transformers {transformers.__version__} does not tell which hidden states a forward collects, so that a "
            f"reduced model cannot give them all their tokens; known: {KNOWN}. Install one of these, or call "
            "tokenreduce.unpatch(model)"
        ) from None
    return _active_collector.get() or {}


def refuse_attentions() -> None:
    """Raise, since a reduced model has no attention over all tokens."""
    raise InvalidValueError(
        "output_attentions=True does not fit a reduced model: its attention is over fewer tokens; leave it out, or "
        "call tokenreduce.unpatch(model)"
    )
