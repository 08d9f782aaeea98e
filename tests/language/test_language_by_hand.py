"""A patched model gives what an unpatched one gives of prompts whose tokens were deleted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import by_divprune, by_hand, by_map, greedy, logits_of, units_of
from prompting import BY_NAME, PROMPTS, ROWS, Prompt, Row, fresh, generate, held, shared
from torch.nn.functional import cross_entropy

from tokenreduce import patch, report

STEPS, NEAR = 5, 1e-5
every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA = BY_NAME["llava"]


def prompts_of(row: Row) -> list[Prompt]:
    return [*PROMPTS, (2, "video", 3, "a", 2)] if "video" in row.units else [*PROMPTS]


def check(row: Row, prompts: list[Prompt], choose: Any, keep: Any, renumber: bool, model: Any, **more: Any) -> Any:
    """Greedy answers and logits of a batch, left-padded, prompt by prompt; returns what `generate` gave."""
    out = generate(model, row.inputs(prompts), STEPS, **more)
    for i, prompt in enumerate(prompts):
        ids, logits = greedy(shared(row.name), by_hand(shared(row.name), row, prompt, keep, choose, renumber), STEPS)
        assert out.sequences[i, -STEPS:].tolist() == ids
        assert (torch.stack(out.logits)[:, i] - logits).abs().max() <= NEAR
    return out


@every_family
@pytest.mark.parametrize("keep", [0.25, 5])
def test_divprune_in_a_batch(row: Row, keep: float) -> None:
    """One, two and no image, and a video: rows of the cache are those of the longest prompt that is left."""
    prompts, model = prompts_of(row), patch(fresh(row), "divprune", keep=keep)
    out = check(row, prompts, by_divprune, keep, not row.rotates_in_3d, model)
    left = [len(by_hand(shared(row.name), row, p, keep, by_divprune).rows) for p in prompts]
    whole = row.inputs(prompts)["input_ids"].shape[1]
    layers = [layer for layer in out.past_key_values.layers if getattr(layer, "keys", None) is not None]
    assert layers and all(layer.keys.shape[2] == held(layer, max(left) + STEPS - 1) for layer in layers)
    assert out.past_key_values.get_seq_length() == whole + STEPS - 1
    shown = report(model)
    assert shown.rows == (whole, max(left)) and len(shown.units) == sum(len(units_of(row, p)) for p in prompts)
    sizes = [4 * layer.keys[:, :, 0].numel() + 4 * layer.values[:, :, 0].numel() for layer in layers]
    for found, rows in ((shown.kv_bytes, max(left)), (shown.kv_bytes_unpatched, whole)):
        assert found == sum(size * held(layer, rows) for size, layer in zip(sizes, layers, strict=True))


@every_family
@pytest.mark.parametrize("method", ["ward", "kmeans", "random", "pool", "atc", "tome", "pitome"])
def test_methods_of_the_library_as_they_are(row: Row, method: str) -> None:
    """Merged tokens stand where their representative stood, in the order of the prompt, which is not that of
    `tome` and `pitome`."""
    keep = 0.75 if method in ("tome", "pitome") else 0.25
    if method == "pool" and not row.grids:
        with pytest.raises(ValueError, match=r"pool cannot run before the language model of this \w+: it needs grid"):
            patch(fresh(row), method, keep=keep)
        return
    check(row, [*PROMPTS], by_map(method), keep, False, patch(fresh(row), method, keep=keep))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["keep", "renumber"])
@pytest.mark.parametrize("method", ["divprune", "tome"])
def test_both_positions_with_both_implementations(method: str, positions: str, implementation: str) -> None:
    model = fresh(LLAVA)
    model.set_attn_implementation(implementation)
    patch(model, method, keep=0.5, positions=positions)
    choose = by_divprune if method == "divprune" else by_map(method)
    check(LLAVA, [*PROMPTS], choose, 0.5, positions == "renumber", model)


@every_family
def test_eager_attention(row: Row) -> None:
    model = fresh(row)
    model.set_attn_implementation("eager")
    check(row, [*PROMPTS], by_divprune, 0.25, not row.rotates_in_3d, patch(model, "divprune", keep=0.25))


def test_positions_matter() -> None:
    """So that an oracle that sees none of them would be noticed."""
    keep, new = (by_hand(shared("llava"), LLAVA, PROMPTS[1], 0.25, by_divprune, renumber) for renumber in (False, True))
    with torch.no_grad():
        assert (logits_of(shared("llava"), keep) - logits_of(shared("llava"), new)).abs().max() > 0.01


@every_family
def test_prompts_of_one_length(row: Row) -> None:
    """Without padding no mask comes with them, and what is left of them is of different lengths."""
    prompts: list[Prompt] = [(2, "a", 3), (len(row.ids((2, "a", 3))),)]
    check(row, prompts, by_divprune, 0.25, not row.rotates_in_3d, patch(fresh(row), "divprune", keep=0.25))


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_place_of_a_plain_forward(row: Row, side: str) -> None:
    """Kept places show their own logits, removed ones those of the last place before them that was kept."""
    given = row.inputs(PROMPTS, side)
    with torch.no_grad():
        out = patch(fresh(row), "divprune", keep=0.25)(**given, output_hidden_states=True)
    assert out.logits.shape[:2] == given["input_ids"].shape
    assert all(states.shape[:2] == given["input_ids"].shape for states in out.hidden_states)
    for i, prompt in enumerate(PROMPTS):
        sequence = by_hand(shared(row.name), row, prompt, 0.25, by_divprune, not row.rotates_in_3d)
        with torch.no_grad():
            rows = logits_of(shared(row.name), sequence)
        places, last = kept_places(row, prompt), -1
        shown = out.logits[i][given["attention_mask"][i].bool()]
        for place in range(len(shown)):
            last += place in places
            assert (shown[place] - rows[max(last, 0)]).abs().max() <= NEAR


def kept_places(row: Row, prompt: Prompt) -> set[int]:
    """The places of a prompt that stay."""
    from by_hand import whole

    with torch.no_grad():
        full = whole(shared(row.name), row, row.inputs([prompt]))
    stay = set(range(len(full.rows)))
    for places, grid in units_of(row, prompt):
        kept, _ = by_divprune(full.rows[places], max(1, len(places) // 4), grid)
        stay -= {place for i, place in enumerate(places) if i not in kept}
    return stay


@every_family
def test_without_a_cache(row: Row) -> None:
    """Every step plans again, and comes to the same."""
    model = patch(fresh(row), "divprune", keep=0.25)
    check(row, [*PROMPTS], by_divprune, 0.25, not row.rotates_in_3d, model, use_cache=False)


@pytest.mark.parametrize("method", ["tome", "pool"])
def test_methods_that_cannot_remove_so_many_at_once_do_it_again(method: str) -> None:
    """`tome` halves at most: 16 -> 8 -> 4 -> 2."""
    model = patch(fresh(LLAVA), method, keep=2)
    generate(model, LLAVA.inputs(PROMPTS))
    assert report(model).units == ((16, 2),) * 3


@every_family
def test_a_prompt_does_not_depend_on_its_batch_or_its_order(row: Row) -> None:
    model, prompts = patch(fresh(row), "divprune", keep=0.25), [*PROMPTS, (3, "b", 2)]
    together = generate(model, row.inputs(prompts))
    turned = generate(model, row.inputs(prompts[::-1]))
    for i, prompt in enumerate(prompts):
        alone = generate(model, row.inputs([prompt]))
        for other, j in ((together, i), (turned, len(prompts) - 1 - i)):
            assert other.sequences[j, -STEPS:].tolist() == alone.sequences[0, -STEPS:].tolist()
            assert (torch.stack(other.logits)[:, j] - torch.stack(alone.logits)[:, 0]).abs().max() <= NEAR


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_that_of_the_shorter_prompts(row: Row, side: str) -> None:
    given = row.inputs(PROMPTS, side)
    ids, real = given["input_ids"], given["attention_mask"].bool()
    labels = ids.masked_fill(~real | (ids >= 90), -100)
    starts = real.long().argmax(1)
    labels[torch.arange(len(ids)), starts] = -100  # predicted from a pad's place, which is arbitrary
    given = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    oracle, model = fresh(row).double(), patch(fresh(row).double(), "divprune", keep=0.25).train()
    out = model(**given, labels=labels)
    losses = []
    for i, prompt in enumerate(PROMPTS):
        sequence = by_hand(oracle, row, prompt, 0.25, by_divprune, not row.rotates_in_3d)
        wanted = labels[i][real[i]][sorted(kept_places(row, prompt))]
        with torch.no_grad():
            found = logits_of(oracle, sequence)
        losses.append(cross_entropy(found[:-1], wanted[1:], reduction="none")[wanted[1:] != -100])
    expected, loss = torch.cat(losses).mean(), cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert abs(loss.detach() - expected) <= 1e-6
    assert float(out.loss.detach()) == pytest.approx(float(expected), rel=1e-6)  # transformers computes it in fp32
    out.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_removed_tokens_have_no_gradient() -> None:
    model = patch(fresh(LLAVA), "divprune", keep=0.25)
    given = LLAVA.inputs([PROMPTS[0]])
    features = model.model.get_image_features(given.pop("pixel_values"), return_dict=True)
    rows = features.pooler_output[0].detach().requires_grad_()
    features.pooler_output = [rows]
    model(**given, mm_encoder_outputs={"image": features}).logits.square().sum().backward()
    reached = set(rows.grad.abs().sum(1).nonzero()[:, 0].tolist())
    assert reached == set(by_divprune(rows.detach(), 4, None)[0])
