"""The hooks on a vision-language model: on its vision tower, on the model that holds both parts, and on its language
model, whose call is the one place where rows leave and come back.

Each is a function at module level: the same object in copies and pickles of a model, by which it is found again.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.kept import Kept
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.planning import Removal, plan_removal
from tokenreduce.forward.language.record import LanguageRecord
from tokenreduce.forward.language.reduction import LanguageReduction
from tokenreduce.forward.language.run import Crossing, LanguageRun, close, current, open_run
from tokenreduce.forward.marks import patch_of
from tokenreduce.forward.records import keep_record
from tokenreduce.ops.attention import class_rows
from tokenreduce.ops.modes import without_autocast

from ._cache import ReducedCache, check_cache, held_by, held_so_far, reduce_cache, row_bytes

STAMP = "tokenreduce"  # the attribute of a tower's output which says that its units are whole


class Encoded(NamedTuple):
    """What a patched model's tower says of what it encoded: the grids of images or videos, where it was given them, and
    the attention of the class token to all tokens in the layers that were to show it, where the method reads it."""

    grids: tuple[tuple[int, ...], ...] = ()
    class_attention: Tensor | None = None


class _Shown(threading.local):
    def __init__(self) -> None:
        self.projected: list[Tensor] = []  # queries and keys of the layers of the tower that show their attention


_shown = _Shown()


def show(projection: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Keep the queries or keys of a layer until the tower ends."""
    _shown.projected.append(output.detach())


def stamp(tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Leave a stamp on what the tower puts out, which goes with the features until they are used."""
    projected, _shown.projected = _shown.projected, []
    if output is None or isinstance(output, tuple):
        return
    grids = kwargs.get("grid_thw")
    sizes = () if grids is None else tuple(tuple(grid) for grid in grids.tolist())
    setattr(output, STAMP, Encoded(sizes, attention_of_class(projected, tower) if projected else None))


def attention_of_class(projected: list[Tensor], tower: Any) -> Tensor:
    """`(images, tokens)`: the mean over layers and heads of the first token's attention, of pairs of queries and keys
    `(images, tokens, H d)`."""
    split = [x.unflatten(-1, (tower.config.num_attention_heads, -1)).transpose(1, 2) for x in projected]
    with torch.no_grad(), without_autocast(projected[0].device):
        rows = [class_rows(q, k, None, 1) for q, k in zip(split[::2], split[1::2], strict=True)]
    return torch.stack(rows).mean(0)


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names."""
    if not args:  # as in every step of decoding
        return kwargs
    names = inspect.signature(module.forward).parameters
    return dict(zip(names, args, strict=False)) | kwargs


def enter_model(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Open a run: encode pixels, unless `generate` has, and find the units."""
    reduction: Any = patch_of(model)
    if reduction is None or reduction.is_identity:
        return None
    given = given_to(model, args, kwargs)
    given = reduction.adapter.encoded(model, given)
    open_run(reduction, reduction.adapter.units(model, reduction, given))
    return (), given


def leave_model(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Close the run, also after an exception."""
    reduction: Any = patch_of(model)
    if reduction is not None:
        close(reduction)


def enter_language(language: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let fewer rows enter, or one step of prompts from which rows have left before."""
    reduction: Any = patch_of(language)
    if reduction is None:
        return None
    given = given_to(language, args, kwargs)
    cache, rows = given.get("past_key_values"), given.get("inputs_embeds")
    run = current(reduction) or open_run(reduction, (), inside=True)
    removal = plan_removal(reduction, run.units, rows) if run.units and rows is not None else None
    before = held_by(cache)
    if removal is None and before is None:
        return None
    if removal is not None:
        check_cache(cache)
    check_call(language, given, removal is not None)
    if removal is None:
        changed = step(reduction, given, before)  # type: ignore[arg-type]
        run.crossing = Crossing(cache)
    else:
        changed = pass_through(run, given, removal)
    if isinstance(cache, ReducedCache):
        cache.inside = True
    return (), given | changed


def check_call(language: Any, given: dict[str, Any], removes: bool) -> None:
    """Raise for arguments that hold something for each place in a way that is not known here."""
    mask = given.get("attention_mask")
    if isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim != 2):
        raise InvalidValueError(
            "a reduced model takes an attention mask of the prompts' places, (batch, places), and not one of pairs or "
            "several of them; give that, or call tokenreduce.unpatch(model)"
        )
    if given.get("cu_seq_lens_q") is not None:
        raise InvalidValueError("a reduced model takes no packed sequences; give prompts as a padded batch")
    wanted = given.get("output_attentions")
    if removes and (language.config.output_attentions if wanted is None else wanted):
        raise InvalidValueError(
            "output_attentions is not possible where tokens leave before the language model: its maps have no rows for "
            "them; leave it out, or call tokenreduce.unpatch(model)"
        )


def step(reduction: LanguageReduction, given: dict[str, Any], before: Kept) -> dict[str, Any]:
    """What changes for tokens of which none leaves, behind a prompt from which some have."""
    cache, mask, positions = given["past_key_values"], given.get("attention_mask"), given.get("position_ids")
    rows = given["inputs_embeds"] if given.get("inputs_embeds") is not None else given["input_ids"]
    past, places = cache.get_seq_length(), rows.shape[1]
    check_mask(mask, past + places)
    changed: dict[str, Any] = {"attention_mask": before.mask(mask, past - before.seen + places)}
    if positions is None:
        positions = torch.arange(past, past + places, device=rows.device).expand(rows.shape[0], -1)
        changed["position_ids"] = positions
    if reduction.renumbers:
        changed["position_ids"] = positions - before.removed[:, None]
    return changed


def check_mask(mask: Tensor | None, places: int) -> None:
    if mask is not None and mask.shape[1] != places:
        raise InvalidValueError(
            f"attention_mask has {mask.shape[1]} places, but cache and prompt have {places}; give one for all of them"
        )


def pass_through(run: LanguageRun, given: dict[str, Any], removal: Removal) -> dict[str, Any]:
    """What changes for prompts from which tokens leave."""
    reduction, rows, cache = run.reduction, given["inputs_embeds"], given.get("past_key_values")
    before, mask = held_so_far(cache, rows.shape[0], rows.device), given.get("attention_mask")
    check_mask(mask, before.seen + rows.shape[1])
    real = None if mask is None else mask[:, before.seen :].bool()
    passage = Passage.of(removal.removed, real, before.seen)
    check_linear(cache, before, passage)
    hidden = before.mask(mask if mask is None else mask[:, : before.seen], 0)
    old = torch.ones_like(before.valid) if hidden is None else hidden
    run.crossing = Crossing(cache, passage, before)
    return {
        "inputs_embeds": passage.rows(removal.carry(rows)),
        "attention_mask": torch.cat([old, passage.valid], 1).long(),
        "position_ids": passage.positions(given.get("position_ids"), reduction.renumbers, before),
        **reduction.adapter.rows(given, removal, passage),
    }


def check_linear(cache: Any, before: Kept, passage: Passage) -> None:
    """Raise where fillers would pass through the state of linear attention."""
    if cache is not None and before.seen and any(cache.is_linear) and not bool(passage.valid.all()):
        raise InvalidValueError(
            "layers with linear attention cannot take a batch of later turns whose prompts are left with different "
            "numbers of tokens; give one prompt at a time, or the whole conversation at once"
        )


def leave_language(language: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Give every place a row again, and the cache what it holds; also after an exception, without `output`."""
    reduction: Any = patch_of(language)
    run = None if reduction is None else current(reduction)
    if run is None:
        return None
    crossing, run.crossing = run.crossing, None
    if run.inside:
        close(reduction)
    if crossing is None:
        return None
    if isinstance(crossing.cache, ReducedCache):
        crossing.cache.inside = False
    if crossing.passage is None or crossing.before is None or output is None:
        return None
    return come_back(run, crossing.passage, crossing.before, language, output)


def come_back(run: LanguageRun, passage: Passage, before: Kept, language: Any, output: Any) -> Any:
    """Rows for all places of the prompts, a cache that knows what it holds, and a record for `report`."""
    output.last_hidden_state = passage.restore(output.last_hidden_state)
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(passage.restore(states) for states in output.hidden_states)
    cache = output.get("past_key_values")
    kept = passage.then(before)
    if cache is not None:
        reduce_cache(cache, kept)
    count = run.reduction.count
    units = tuple((len(unit.places), count(len(unit.places))) for unit in run.units)
    rows = passage.back.shape[1], passage.index.shape[1]
    layers = language.config.num_hidden_layers
    record = LanguageRecord(
        units, rows, row_bytes(cache), (kept.columns.shape[1], kept.seen), passage.back.shape[0], layers
    )
    keep_record(run.reduction, record)
    return output


PRE = (enter_model, enter_language)
POST = (stamp, show, leave_model, leave_language)


def add_hooks(model: nn.Module, tower: nn.Module, language: nn.Module, showing: Sequence[nn.Module]) -> None:
    """Put all hooks on the parts of a model, `showing` those of the tower that show queries and keys."""
    tower.register_forward_hook(stamp, with_kwargs=True, always_call=True)
    for projection in showing:
        projection.register_forward_hook(show)
    model.register_forward_pre_hook(enter_model, with_kwargs=True)
    model.register_forward_hook(leave_model, always_call=True)
    language.register_forward_pre_hook(enter_language, with_kwargs=True)
    language.register_forward_hook(leave_language, always_call=True)


def take_off_hooks(module: nn.Module) -> None:
    """Take our hooks off `module`, and nobody else's."""
    pre = [key for key, hook in module._forward_pre_hooks.items() if hook in PRE]
    post = [key for key, hook in module._forward_hooks.items() if hook in POST]
    for key in pre:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    for key in post:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)
        module._forward_hooks_always_called.pop(key, None)
