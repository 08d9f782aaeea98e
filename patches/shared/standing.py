"""Whether a patch still stands: a model's parts may be replaced, cut or wrapped after it was patched.

Where the parts inside a layer changed, the patch takes hold of the new ones, as patching again would; where the layers
themselves changed, it says what happened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.marks import ATTRIBUTE, Mark, marked_inside, parts_stand, patch_of
from tokenreduce.forward.reduction import Reduction

from .classes import is_own_forward

AGAIN = "patch it again, or call tokenreduce.unpatch(model)"
_taking = threading.Lock()


def count_layers(layers: Iterable[nn.Module], reduction: Reduction) -> int:
    """How many of the patched layers the model has now: the first so many, or it raises."""
    depth = 0
    for layer in layers:
        mark = layer.__dict__.get(ATTRIBUTE)
        if (mark is None or mark.layer != depth or mark.reduction is not reduction) and not _wraps(
            layer, reduction, depth
        ):
            raise InvalidValueError(_what_happened(list(layers), reduction))
        depth += 1
    if depth == 0:
        raise InvalidValueError(f"this model had {reduction.geometry.depth} blocks when it was patched; none is left")
    return depth


def check_embedding(model: nn.Module, reduction: Reduction) -> None:
    """Raise if a module that noted what the method reads of the input has left the model; one that was wrapped has
    not."""
    reads = reduction.reducer.read_between() & {"grid", "positions", "pixels"}
    for path in vars(model)[ATTRIBUTE].parts if reads else ():
        module = model.get_submodule(path[0])
        if not any(patch_of(inner) is reduction and _number(inner) < 0 for inner in module.modules()):
            raise InvalidValueError(
                f"{'.'.join(path)} was replaced after the model was patched, so that the {', '.join(sorted(reads))} of "
                f"these tokens, which {reduction.reducer.name} reads, cannot be seen; {AGAIN}"
            )


def _wraps(layer: nn.Module, reduction: Reduction, number: int) -> bool:
    """Whether `layer` is a wrapper of another library around the layer of this number."""
    owner = reduction.owner
    if owner is None or layer in owner.wrappers:
        return owner is not None
    inside = [module for module in layer.modules() if patch_of(module) is reduction and _number(module) >= 0]
    if ATTRIBUTE in vars(layer) or [_number(module) for module in inside] != [number]:
        return False
    owner.wrappers.add([layer])
    return True


def _number(module: nn.Module) -> int:
    mark: Mark | None = vars(module).get(ATTRIBUTE)
    return -1 if mark is None else mark.layer


def _what_happened(layers: list[nn.Module], reduction: Reduction) -> str:
    """What was done to a model whose layers are not those that were patched, and what to do."""
    depth = reduction.geometry.depth
    said = []
    numbers = [_number(layer) if patch_of(layer) is reduction else -1 for layer in layers]
    for place, (layer, number) in enumerate(zip(layers, numbers, strict=True)):
        if number < 0:
            said.append(f"block {place} is a {type(layer).__name__} that was put there since")
        elif number in numbers[:place]:
            said.append(f"block {place} is block {number} again")
    gone = [str(number) for number in range(depth) if number not in numbers]
    if gone:
        said.append(
            f"block{'s' if len(gone) > 1 else ''} {', '.join(gone)} of {depth} {'are' if gone[1:] else 'is'} gone"
        )
    if not said:
        said = [f"the blocks are in another order: {', '.join(map(str, numbers))}"]
    return f"this model was changed after it was patched: {'; '.join(said)}; {AGAIN}"


def keep_hold(layer: nn.Module, reduction: Any) -> None:
    """Take hold of what was replaced inside a layer since it was patched.

    Raises: ValueError if the patch cannot go on with it.
    """
    # Compilers give no module to a function that they do not trace.
    stands = reduction.stands(_number(layer)) if torch.compiler.is_compiling() else parts_stand(layer)
    if not stands:
        _take_hold(layer, reduction)


def _take_hold(layer: nn.Module, reduction: Reduction) -> None:
    owner, number = reduction.owner, _number(layer)
    model = None if owner is None else owner.backbone
    said = f"block {number} was changed after the model was patched"
    if owner is None or model is None:
        raise InvalidValueError(f"{said}, and taken out of it; {AGAIN}")
    needs, missing = reduction.reducer.required(), owner.adapter.missing(model)
    reasons = owner.adapter.refusals(model) + [missing[need] for need in sorted(needs) if need in missing]
    if reasons:
        raise InvalidValueError(f"{said}, and cannot be reduced as it is now: {'; '.join(reasons)}; {AGAIN}")
    with _taking:
        owner.adapter.hold(model, layer, reduction, number)


def mark_layer(layer: nn.Module, reduction: Reduction, number: int) -> None:
    """Say that `layer` has this number, and relies on what is marked inside."""
    layer._tokenreduce = Mark(reduction, number, marked_inside(layer, reduction))  # type: ignore[assignment]


def shared_parts(parts: Iterator[tuple[str, nn.Module]]) -> list[str]:
    """Which of the named modules stand in several places, where each place would need a patch of its own."""
    names: dict[int, list[str]] = {}
    for name, module in parts:
        names.setdefault(id(module), []).append(name)
    found = ", ".join(" and ".join(same) for same in names.values() if len(same) > 1)
    said = f"{found} are one and the same module, which cannot be two layers at once: put a copy in each place"
    return [f"{said} (copy.deepcopy)"] if found else []


def replaced_forward(module: nn.Module) -> Any:
    """What stands in the place of a module's own forward, on the module itself; None if nothing does."""
    own = vars(module).get("forward")
    # Tools that wrap a forward leave the module's own one there when they are taken off.
    return None if is_own_forward(own, module) else own


def in_the_way(model: nn.Module, originals: Mapping[type[nn.Module], type[nn.Module]]) -> list[str]:
    """Who keeps a patch from being undone, module by module."""
    said = []
    for name, module in model.named_modules():
        kind, at = type(module), f"{name or type(model).__name__}"
        if kind not in originals and any(base in originals for base in kind.__mro__):
            said.append(f"{at} has become a {kind.__name__} ({kind.__module__})")
        own = replaced_forward(module) if kind in originals else None
        if own is not None and not any(is_own_forward(value, module) for value in vars(module).values()):
            said.append(f"the forward of {at} was replaced ({_maker(own)})")
    return said


def _maker(function: Any) -> str:
    function = getattr(function, "func", function)
    return getattr(function, "__module__", None) or type(function).__name__
