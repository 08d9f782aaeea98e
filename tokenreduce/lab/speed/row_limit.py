"""The limit of a patched vision-language model: an unpatched language model that is called with the rows that were
left, which costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tokenreduce.patching.finding import find_language


def language_of(model: nn.Module) -> Any:
    """The language model of a vision-language model."""
    _, part, adapter = find_language(model)
    return part.get_submodule(adapter.language)


def reduced_call(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What a patched model calls its language model with for these inputs, but the cache: fewer rows, their positions
    and masks."""
    called: list[dict[str, Any]] = []
    hook = language_of(model).register_forward_pre_hook(
        lambda module, args, kwargs: called.append(kwargs), with_kwargs=True
    )
    try:
        model(**given, use_cache=True, logits_to_keep=1)
    finally:
        hook.remove()
    return {name: value for name, value in called[0].items() if name not in ("past_key_values", "use_cache")}


def prefill_limit(model: Any, called: dict[str, Any], rows: Sequence[int]) -> Any:
    """A forward of the unpatched `model` from the rows on: the cache that it leaves, and the logits after the last row.

    Args:
        called: arguments of the language model.
        rows: of each layer; where there are fewer, the last ones go on.
    """
    with sliced(language_of(model), rows):
        out = language_of(model)(**called, use_cache=True)
    return out.past_key_values, model.get_output_embeddings()(out.last_hidden_state[:, -1:])


@contextmanager
def sliced(language: Any, rows: Sequence[int]) -> Iterator[None]:
    """The layers of a language model see the last `rows` of what is put in."""
    hooks = []
    for layer, count in zip(language.layers, rows, strict=True):
        if count < rows[0]:
            slicing = Slicing(count)
            hooks.append(layer.register_forward_pre_hook(slicing, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Slicing:
    """The hook on a layer that is to see the last `count` rows."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        changed = {
            "position_embeddings": tuple(self.of(table, -2) for table in kwargs["position_embeddings"]),
            "position_ids": self.of(kwargs.get("position_ids"), -1),
            "attention_mask": mask if mask is None else self.of(self.of(mask, -1), -2),
        }
        return (self.of(args[0], -2), *args[1:]), kwargs | changed

    def of(self, x: Tensor | None, axis: int) -> Tensor | None:
        """The last rows of `x` along an axis; a layer before may have sliced it."""
        return x if x is None else x.narrow(axis, x.shape[axis] - self.count, self.count)
