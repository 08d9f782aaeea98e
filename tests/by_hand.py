"""Prompts whose tokens were deleted by hand: what a patched vision-language model has to equal.

An unpatched model, one prompt at a time, without padding and without a cache, is fed embeddings and positions from
which the tokens are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from prompting import IMAGE, PAD, VIDEO, WORDS, Prompt, Row, language_of
from torch import Tensor

import tokenreduce

# The places kept of a unit's features (T, C), ascending, and how much of each token goes into each of them (k, T).
Choice = tuple[list[int], Tensor]


def directions_apart(x: Tensor) -> list[list[float]]:
    """Squared distances of the directions of all pairs of tokens, 2 - 2 cos; a zero vector has none and stays zero."""
    unit = [row / max(float(row.norm()), 1e-6) for row in x.double()]
    return [[round(float(((a - b) ** 2).sum()), 6) for b in unit] for a in unit]


def diverse(x: Tensor, keep: int) -> list[int]:
    """DivPrune in loops: the token whose nearest other is farthest, then the one whose nearest kept one is farthest."""
    apart, kept = directions_apart(x), []
    while len(kept) < keep:
        gaps = gaps_of(apart, kept)
        kept.append(min(i for i, gap in gaps.items() if gap == max(gaps.values())))
    return sorted(kept)


def gaps_of(apart: list[list[float]], kept: list[int]) -> dict[int, float]:
    """How far each token that is not kept is from the nearest that is; the first time, from the nearest other."""
    rest = [i for i in range(len(apart)) if i not in kept]
    return {i: min((apart[i][j] for j in kept or range(len(apart)) if j != i), default=0.0) for i in rest}


def by_divprune(x: Tensor, keep: int, grid: Any) -> Choice:
    kept = diverse(x, keep)
    return kept, torch.eye(len(x))[kept]


def by_map(method: str) -> Callable[..., Choice]:
    """Of a method that reaches the count at once, from its own map."""

    def choose(x: Tensor, keep: int, grid: Any) -> Choice:
        token_map = tokenreduce.plan(x[None], method, keep=keep, grid=grid)
        share = token_map.dense()[0]
        order = token_map.representatives()[0].argsort()
        return token_map.representatives()[0][order].tolist(), (share / share.sum(1, keepdim=True))[order]

    return choose


@dataclass
class Sequence:
    """What enters the language model of one prompt: rows, their positions `(axes, n)`, what layers add, and what masks
    are made of, the place and the block of each row, and the words, PAD where an image is."""

    rows: Tensor
    positions: Tensor
    visual: Tensor
    added: list[Tensor]
    places: Tensor
    blocks: Tensor
    words: Tensor
    masks: Callable[[Tensor, Tensor], Any] | None


def whole(model: Any, row: Row, given: dict[str, Tensor]) -> Sequence:
    """Of a prompt with all its tokens."""
    core, ids = model.model, given["input_ids"][0]
    rows, added = core.get_input_embeddings()(ids), []
    for token, kind, pixels in ((IMAGE, "image", "pixel_values"), (VIDEO, "video", "pixel_values_videos")):
        if pixels not in given:
            continue
        encode = getattr(core, f"get_{kind}_features")
        more = {name: given[name] for name in signature(encode).parameters if name in given and name != pixels}
        encoded = encode(given[pixels], **more, return_dict=True)
        rows[ids == token] = torch.cat(list(encoded.pooler_output))
        for i, features in enumerate(getattr(encoded, "deepstack_features", None) or []):
            added += [torch.zeros_like(rows)] if len(added) <= i else []
            added[i][ids == token] = torch.cat(list(features))
    positions = torch.arange(row.start, row.start + len(ids))[None]
    if row.rotates_in_3d:
        grids = {name: given.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        positions = core.get_rope_index(given["input_ids"], mm_token_type_ids=given["mm_token_type_ids"], **grids)[0][
            :, 0
        ]
    places, blocks = torch.arange(len(ids)), torch.tensor(row.blocks(ids.tolist()))
    visual = (ids == IMAGE) | (ids == VIDEO)
    return Sequence(rows, positions, visual, added, places, blocks, ids.masked_fill(visual, PAD), row.masks)


def units_of(row: Row, prompt: Prompt) -> list[tuple[list[int], Any]]:
    """The places of every image and video of a prompt that may leave, and its grid."""
    found, place = [], 0
    for part in prompt:
        if isinstance(part, int):
            place += part
            continue
        places: list[int] = []
        for i, run in enumerate(row.units[part]):
            place += i > 0
            places += range(place, place + run)
            place += run
        left = [at for i, at in enumerate(places) if i not in row.lasting.get(part, ())]
        found.append((left, row.grids.get(part)))
    return found


def deleted(
    full: Sequence, units: list[tuple[list[int], Any]], keep: float | int, choose: Callable[..., Choice], renumber: bool
) -> Sequence:
    """The same with fewer tokens of each unit."""
    rows, added = full.rows.clone(), [x.clone() for x in full.added]
    gone: set[int] = set()
    for places, grid in units:
        count = max(1, int(len(places) * keep + 1e-9)) if isinstance(keep, float) else min(keep, len(places))
        if count == len(places):
            continue
        kept, share = choose(full.rows[places], count, grid)
        for x, before in ((rows, full.rows), *zip(added, full.added, strict=True)):
            for i, weights in zip(kept, share, strict=True):
                x[places[i]] = sum(w * before[places[j]] for j, w in enumerate(weights) if w > 0)
        gone |= {place for i, place in enumerate(places) if i not in kept}
    stay = [i for i in range(len(rows)) if i not in gone]
    positions = full.positions[:, : len(stay)] if renumber else full.positions[:, stay]
    of_rows = {name: getattr(full, name)[stay] for name in ("visual", "places", "blocks", "words")}
    return replace(full, rows=rows[stay], positions=positions, added=[x[stay] for x in added], **of_rows)


def masks_of(sequence: Sequence) -> Any:
    """What the language model is called with: one mask of rows, or those of pairs that it does not make itself."""
    if sequence.masks is None:
        return torch.ones(1, len(sequence.rows), dtype=torch.long)
    found = sequence.masks(sequence.places, sequence.blocks)
    return {kind: added(mask) for kind, mask in found.items()} if isinstance(found, dict) else added(found)


def added(seen: Tensor) -> Tensor:
    """What is added to logits, as every attention implementation does."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def logits_of(model: Any, sequence: Sequence) -> Tensor:
    """`(n, words)`: of each row, by one forward over all of them."""
    more: dict[str, Any] = {}
    if sequence.added:
        more = {"visual_pos_masks": sequence.visual[None]}
        more["deepstack_visual_embeds"] = [x[sequence.visual] for x in sequence.added]
    language = language_of(model)
    if hasattr(language, "get_per_layer_inputs"):
        more["per_layer_inputs"] = language.get_per_layer_inputs(sequence.words[None], None)
    out = language(
        inputs_embeds=sequence.rows[None],
        attention_mask=masks_of(sequence),
        position_ids=sequence.positions if len(sequence.positions) == 1 else sequence.positions[:, None],
        use_cache=False,
        **more,
    )
    return model.lm_head(out.last_hidden_state)[0]


def extended(model: Any, sequence: Sequence, token: int) -> Sequence:
    """With one word more, whose position follows the greatest so far."""
    word = model.get_input_embeddings()(torch.tensor([token]))
    next_one = (sequence.positions.max() + 1).expand(len(sequence.positions), 1)
    return Sequence(
        torch.cat([sequence.rows, word]),
        torch.cat([sequence.positions, next_one], 1),
        torch.cat([sequence.visual, torch.tensor([False])]),
        [torch.cat([x, torch.zeros_like(word)]) for x in sequence.added],
        torch.cat([sequence.places, sequence.places[-1:] + 1]),
        torch.cat([sequence.blocks, torch.tensor([-1])]),
        torch.cat([sequence.words, torch.tensor([token])]),
        sequence.masks,
    )


def likeliest(logits: Tensor) -> int:
    return int(logits[:WORDS].argmax())


def drawn(logits: Tensor) -> int:
    """A word by chance, as `generate` draws it where nobody answers with an image."""
    shares = logits.clone().index_fill(0, torch.arange(WORDS, len(logits)), -torch.inf).softmax(-1)
    return int(torch.multinomial(shares[None], 1))


@torch.no_grad()
def greedy(
    model: Any, sequence: Sequence, steps: int, choose: Callable[[Tensor], int] = likeliest
) -> tuple[list[int], Tensor]:
    """The ids of `steps` words, the likeliest ones unless told otherwise, and the logits of each."""
    ids: list[int] = []
    found: list[Tensor] = []
    for _ in range(steps):
        found.append(logits_of(model, sequence)[-1])
        ids.append(choose(found[-1]))
        sequence = extended(model, sequence, ids[-1])
    return ids, torch.stack(found)


def by_hand(
    model: Any, row: Row, prompt: Prompt, keep: float | int, choose: Callable[..., Choice], renumber: bool = False
) -> Sequence:
    """What is left of a prompt, alone."""
    with torch.no_grad():
        return deleted(whole(model, row, row.inputs([prompt])), units_of(row, prompt), keep, choose, renumber)
