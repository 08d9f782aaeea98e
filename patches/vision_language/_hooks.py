"""The hooks on a vision-language model: on the model that holds both parts, and on its language model, whose call is
the one place where rows leave and come back.

Each is a function at module level: the same object in copies and pickles of a model, by which it is found again.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.forward.language.kept import Kept
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.planning import plan_removal
from tokenreduce.forward.language.record import LanguageRecord
from tokenreduce.forward.language.reduction import LanguageReduction, count_left
from tokenreduce.forward.language.run import Crossing, LanguageRun, close, current, forget, open_run
from tokenreduce.forward.language.stream import Later, Stream
from tokenreduce.forward.language.units import Unit
from tokenreduce.forward.marks import patch_of
from tokenreduce.forward.records import keep_record

from ._cache import ReducedCache, bytes_of, check_cache, held_by, held_so_far, is_filled, reduce_cache
from ._calls import check_call, check_features, check_linear, check_manner, check_mask, check_steps
from ._masks import mask_of_places, masks_of_prompts, masks_of_step


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
    forget(reduction)  # what Ctrl-C has left, after which torch calls no hooks
    asked = given_to(model, args, kwargs)
    check_features(asked.get("mm_encoder_outputs"))
    given = reduction.adapter.encoded(model, asked)
    units = reduction.adapter.units(model, reduction, given)
    if loses(reduction, units):
        check_steps(reduction, asked)
    open_run(reduction, units, mask=given.get("attention_mask"))
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
    run = current(reduction)
    if run is None or run.crossing is not None:  # left in the middle by Ctrl-C
        forget(reduction)
        run = open_run(reduction, (), inside=True)
    removes, before = rows is not None and loses(reduction, run.units), held_by(cache)
    if not removes and before is None:
        return None
    if removes:
        check_cache(cache)
    check_call(language, reduction, given, removes, run.pairs)
    if before is not None:
        check_manner(reduction, before)
    changed = pass_through(run, language, given) if removes else step(run, language, given, before)  # type: ignore[arg-type]
    if isinstance(cache, ReducedCache):
        cache.inside = True
    return (), given | changed


def loses(reduction: LanguageReduction, units: Sequence[Unit]) -> bool:
    """Whether a token of any of these leaves, or may."""
    return any(reduction.ends or reduction.left(len(unit.places)) < len(unit.places) for unit in units)


def step(run: LanguageRun, language: Any, given: dict[str, Any], before: Kept) -> dict[str, Any]:
    """What changes for tokens of which none leaves, after a prompt from which some have."""
    cache, positions = given["past_key_values"], given.get("position_ids")
    rows = given["inputs_embeds"] if given.get("inputs_embeds") is not None else given["input_ids"]
    past, places = cache.get_seq_length(), rows.shape[1]
    check_mask(mask_of_places(run, given), past + places)
    changed: dict[str, Any] = {"attention_mask": masks_of_step(run, language, given, before, past, rows)}
    if positions is None:
        positions = torch.arange(past, past + places, device=rows.device).expand(rows.shape[0], -1)
        changed["position_ids"] = positions
    if run.reduction.renumbers:
        changed["position_ids"] = positions - before.removed[:, None].to(positions.device)
    entries = before.columns.shape[1] + past - before.seen + places
    run.crossing = Crossing(cache, later=Later(before.held, entries, places) if before.held else None)
    return changed


def pass_through(run: LanguageRun, language: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What changes for prompts from which tokens leave."""
    reduction, rows, cache = run.reduction, given["inputs_embeds"], given.get("past_key_values")
    units = [unit.on(rows.device) for unit in run.units]
    removal = plan_removal(reduction.reducer, reduction.first, units, rows)
    before = held_so_far(cache, rows.shape[0], rows.device, reduction.later)
    mask = mask_of_places(run, given)
    check_mask(mask, before.seen + rows.shape[1])
    real = None if mask is None else mask[:, before.seen :].to(rows.device, torch.bool)
    passage = Passage.of(removal.removed, real, before.seen)
    check_linear(cache, before, passage)
    stream = None
    if reduction.later:
        units = [unit._replace(places=passage.back[unit.prompt, unit.places]) for unit in removal.left(units)]
        stream = Stream(reduction, units, passage.valid, before.held, before.columns.shape[1])
    run.crossing = Crossing(cache, passage, before, stream)
    return {
        "inputs_embeds": passage.rows(removal.carry(rows)),
        "attention_mask": masks_of_prompts(run, language, given, before, passage),
        "position_ids": passage.positions(given.get("position_ids"), reduction.renumbers, before),
        **reduction.adapter.rows(given, removal, passage),
    }


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
    return come_back(run, crossing.passage, crossing.before, crossing.stream, language, output)


def come_back(
    run: LanguageRun, passage: Passage, before: Kept, stream: Stream | None, language: Any, output: Any
) -> Any:
    """Rows for all places of the prompts, a cache that knows what it holds, and a record for `report`."""

    def whole(x: Tensor | None, layer: int | None = None) -> Tensor | None:
        x = x if x is None or stream is None else stream.restore(x, layer)
        return None if x is None else passage.restore(x)

    output.last_hidden_state = whole(output.last_hidden_state)
    states = output.get("hidden_states")
    if states is not None:  # what enters the first layer, what each layer puts out, and the last after the norm
        inner = [whole(x, layer - 1) for layer, x in enumerate(states[:-1])]
        output.hidden_states = (*inner, whole(states[-1]))
    cache = output.get("past_key_values")
    if cache is not None and is_filled(cache):
        held = None if stream is None else stream.held
        reduce_cache(cache, passage.then(before, held, run.reduction.asks, run.reduction.manner))
    rows = rows_of_layers(passage, before, stream, language.config.num_hidden_layers)
    keep_record(run.reduction, record_of(run, passage, stream, cache, rows))
    return output


def rows_of_layers(passage: Passage, before: Kept, stream: Stream | None, layers: int) -> list[tuple[int, int]]:
    """The rows in each layer, and the entries that they attend to."""
    rows, past, found = passage.index.shape[1], before.columns.shape[1], []
    for layer in range(layers):
        if stream is not None and layer in stream.held:
            past = stream.before[layer].within.shape[1]
            rows = stream.held[layer].within.shape[1] - past
        found.append((rows, past + rows))
    return found


def record_of(
    run: LanguageRun, passage: Passage, stream: Stream | None, cache: Any, layers: list[tuple[int, int]]
) -> LanguageRecord:
    """What `report` shows."""
    entered = [len(unit.places) for unit in run.units]
    counts = {0: [count_left(n, run.reduction.first) for n in entered]} | ({} if stream is None else stream.counts)
    left, tokens = entered, []
    for layer in range(len(layers)):
        left = counts.get(layer, left)
        tokens.append(sum(left))
    prompts, places = passage.back.shape
    return LanguageRecord(
        tuple(zip(entered, left, strict=True)),
        (places, layers[-1][0]),
        bytes_of(cache, passage.past + places),
        prompts,
        tuple(tokens),
        tuple(layers),
        (places, passage.past + places),
        tuple(unit.facts.grid for unit in run.units),
    )
