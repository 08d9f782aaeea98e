"""What tokens receive in the vision tower, and the methods that read it, in every family that shows it."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
import transformers as hf
from by_hand import by_hand, greedy
from by_masks import ByMasks
from prompting import BY_NAME, IMAGE, PROMPTS, TEXT, Row, fresh, generate, new, shared
from tokenreduce.patches.vision_language import _tower
from tokenreduce.patches.vision_language.qwen2_5_vl import windows
from torch import Tensor

from tokenreduce import compatible, patch, plan, report, unpatch

STEPS = 5
ROWS = [row for row in BY_NAME.values() if "fopru" in compatible(shared(row.name)).language]
every_family = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
LLAVA, QWEN25 = BY_NAME["llava"], BY_NAME["qwen2_5_vl"]


def of_clip(model: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """`(16,)` an image: column sums of the eager maps of the layer whose output is taken, mean over heads and over the
    patches behind each of the features."""
    tower = model.model.get_submodule("vision_model" if hasattr(model.model, "vision_model") else "vision_tower")
    tower.set_attn_implementation("eager")
    pixels = given["pixel_values"].flatten(0, -4)  # of crops by prompt, where those of zeros are none
    with torch.no_grad():
        maps = tower(pixels[pixels.flatten(1).any(1)], output_attentions=True).attentions
    found = maps[getattr(model.config, "vision_feature_layer", -1)].mean(1).sum(1)
    side = int(found.shape[1] ** 0.5)
    group = side // 4
    squares = found[:, found.shape[1] - side**2 :].view(-1, 4, group, 4, group)
    return list(squares.mean((2, 4)).flatten(1))


def of_qwen(model: Any, given: dict[str, Tensor], kind: str = "image") -> list[Tensor]:
    """Frame by frame in loops, mean over the four patches that are merged, in raster order of the features."""
    tower, grids = model.model.visual, given[f"{kind}_grid_thw"]
    found: list[Any] = []
    last = tower.blocks[-1].attn
    handle = last.register_forward_pre_hook(lambda m, args, kwargs: found.append((args, kwargs)), with_kwargs=True)
    pixels = given["pixel_values" if kind == "image" else "pixel_values_videos"]
    with torch.no_grad():
        getattr(model.model, f"get_{kind}_features")(pixels, grids)
    handle.remove()
    (x,), kwargs = found[0]
    rotate = sys.modules[type(last).__module__].apply_rotary_pos_emb_vision
    with torch.no_grad():
        q, k, _ = last.qkv(x).view(len(x), 3, last.num_heads, -1).unbind(1)
        q, k = rotate(q, k, *kwargs["position_embeddings"])
    received, start = torch.zeros(len(x)), 0
    for frames, height, width in grids.tolist():
        for _ in range(frames):
            end = start + height * width
            for head in range(last.num_heads):
                logits = q[start:end, head] @ k[start:end, head].T * last.scaling
                received[start:end] += logits.softmax(1).sum(0) / last.num_heads
            start = end
    merged = received.view(-1, 4).mean(1)
    if hasattr(tower, "window_size"):
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(
            grids, spatial_merge_size=2, window_size=tower.window_size, patch_size=tower.patch_size
        )
        raster = torch.zeros_like(merged)
        raster[index] = merged
        assert index.tolist() != list(range(len(index)))
        merged = raster
    return list(merged.split((grids.prod(1) // 4).tolist()))


def reference(row: Row, given: dict[str, Tensor]) -> list[Tensor]:
    if "pixel_values" not in given:
        return []
    return of_qwen(fresh(row), given) if row.rotates_in_3d else of_clip(fresh(row), given)


def by_plan(method: str, received: list[Tensor], **options: Any) -> Any:
    """The method's own map with what is received by the reference, unit by unit."""
    rows = iter(received)

    def choose(x: Tensor, keep: int, grid: Any) -> Any:
        token_map = plan(x[None], method, keep=keep, received_attention=next(rows)[None, None], grid=grid, **options)
        rep, share = token_map.representatives()[0], token_map.dense()[0]
        share = share / share.sum(1, keepdim=True) if token_map.divide else share
        return rep[rep.argsort()].tolist(), share[rep.argsort()]

    return choose


CASES: list[tuple[str, dict[str, Any]]] = [
    ("fopru", {}),
    ("fopru", {"strategy": "row"}),
    ("visionzip", {"score": "received", "contextual": 0.5}),
    ("vflowopt", {"cell": 2, "keep": 0.5}),
]


@every_family
@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_as_on_prompts_deleted_by_hand(row: Row, method: str, options: dict[str, Any]) -> None:
    keep, options = options.get("keep", 0.25), {name: x for name, x in options.items() if name != "keep"}
    model = patch(fresh(row), method, keep=keep, **options)
    renumber = report(model).positions == "renumber"
    assert renumber == (not row.rotates_in_3d and method != "vflowopt")
    out = generate(model, row.inputs(PROMPTS), STEPS)
    for i, prompt in enumerate(PROMPTS):
        choose = by_plan(method, reference(row, row.inputs([prompt])), **options)
        sequence = by_hand(shared(row.name), row, prompt, keep, choose, renumber)
        ids, logits = greedy(shared(row.name), sequence, STEPS)
        assert out.sequences[i, -STEPS:].tolist() == ids
        assert (torch.stack(out.logits)[:, i] - logits).abs().max() <= 1e-5
    beams = [generate(model, row.inputs([p]), STEPS, num_beams=3).sequences[:, -STEPS:].tolist() for p in PROMPTS]
    together = generate(model, row.inputs(PROMPTS), STEPS, num_beams=3).sequences[:, -STEPS:].tolist()
    assert together == [answer for answers in beams for answer in answers]


def by_rank(received: list[Tensor]) -> Any:
    """The highest of those that are left of each unit; units take turns, stage by stage."""
    left, turns = [scores.tolist() for scores in received], cycle(range(len(received)))

    def choose(rows: Tensor, attention: Any, count: int) -> list[int]:
        i = next(turns)
        kept = sorted(sorted(range(len(left[i])), key=lambda j: -left[i][j])[:count])
        left[i] = [left[i][j] for j in kept]
        return kept

    return choose


@pytest.mark.parametrize("row", [row for row in ROWS if row.within], ids=lambda row: row.name)
def test_what_is_known_of_tokens_stays_with_them(row: Row) -> None:
    """Later layers rank what is left by what it received in the tower."""
    stages = {0: 0.5, 2: 0.5}
    out = generate(patch(fresh(row), "fopru", keep=stages), row.inputs(PROMPTS), STEPS)
    for i, prompt in enumerate(PROMPTS):
        received = reference(row, row.inputs([prompt]))
        ids, logits = ByMasks(row, prompt, stages, by_rank(received) if received else None).greedy(STEPS)
        assert out.sequences[i, -STEPS:].tolist() == ids
        assert (torch.stack(out.logits)[:, i] - logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_videos_receive_within_a_frame(name: str) -> None:
    row = BY_NAME[name]
    given = row.inputs([(2, "video", 3)])
    expected = of_qwen(fresh(row), given, "video")
    model = patch(fresh(row), "fopru", keep=0.25)
    output = model.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"], return_dict=True)
    adapter = model.model._tokenreduce.reduction.adapter
    facts = adapter.facts(model.model, output.tokenreduce, [16])
    assert torch.allclose(facts[0].received_attention, expected[0], atol=1e-6) and expected[0].std() > 0


def test_windows_of_a_grid() -> None:
    """Two frames of 3 x 4 in windows of 2 x 2: those at the border are smaller."""
    first = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    seen: dict[int, int] = {}
    found = [seen.setdefault(number, len(seen)) for number in windows((2, 3, 4), 2).tolist()]
    assert found == [number + later for later in (0, 4) for row in first for number in row]


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_padding_of_a_crop_receives_nothing_and_gives_nothing(name: str) -> None:
    row = BY_NAME[name]
    given = row.inputs([PROMPTS[0]])
    seen = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    seen[..., 20:] = False
    model, plain = patch(fresh(row), "fopru", keep=0.25), fresh(row)
    stamp = model.model.get_image_features(given["pixel_values"], seen, return_dict=True).tokenreduce
    tower, patches = plain.model.vision_model, torch.ones(1, 8, 8, dtype=torch.bool)
    patches[..., 5:] = False
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(given["pixel_values"][0], patches, output_attentions=True).attentions
    expected = maps[-1].mean(1)[:, patches.flatten()].sum(1)
    assert torch.allclose(stamp.received_attention, expected, atol=1e-5)
    assert (stamp.received_attention[:, ~patches.flatten()] == 0).all() and expected.std() > 0


def siglip(strategy: str) -> Any:
    """A LLaVA whose tower has no class token."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**sizes, image_size=32, patch_size=8),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_select_strategy=strategy,
    )
    return new(replace(LLAVA, build=lambda: hf.LlavaForConditionalGeneration(config)))


@pytest.mark.parametrize("method", ["fopru", "visionzip", "todre"])
def test_a_tower_without_a_class_token(method: str) -> None:
    """Where all its tokens are features, they are a grid, and what they receive is known."""
    model, options = siglip("full"), {"threshold": 0} if method == "todre" else {}
    unpatched, prompt = copy.deepcopy(model), PROMPTS[1]
    given = LLAVA.inputs([prompt])
    assert "pool" in compatible(model).language and "fastervlm" not in compatible(model).language
    received = of_clip(copy.deepcopy(model), given)
    choose = by_plan(method, received, **options)
    sequence = by_hand(unpatched, LLAVA, prompt, 0.5, choose, True)
    out = generate(patch(model, method, keep=0.5, **options), given, STEPS)
    assert out.sequences[0, -STEPS:].tolist() == greedy(unpatched, sequence, STEPS)[0]


def test_a_tower_whose_first_patch_is_cut_off() -> None:
    """As if it were a class token."""
    assert {"fopru", "visionzip", "pool"}.isdisjoint(compatible(siglip("default")).language)


def test_class_attention_comes_first_where_there_is_one() -> None:
    model, given = patch(fresh(LLAVA), "visionzip", keep=0.5), LLAVA.inputs(PROMPTS)
    auto = generate(model, given).logits[0]
    by_class = generate(patch(model, "visionzip", keep=0.5, score="class"), given).logits[0]
    received = generate(patch(model, "visionzip", keep=0.5, score="received"), given).logits[0]
    assert torch.equal(auto, by_class) and not torch.equal(auto, received)
    with pytest.raises(ValueError, match="it needs class_attention, but its vision tower has no class token"):
        patch(fresh(QWEN25), "visionzip", keep=0.5, score="class")


@every_family
def test_library_methods_weigh_by_it(row: Row) -> None:
    model = patch(fresh(row), "kmeans", keep=0.25, weights="attention")
    weighted = generate(model, row.inputs(PROMPTS)).logits[0]
    assert torch.isfinite(weighted).all()
    assert not torch.equal(weighted, generate(patch(model, "kmeans", keep=0.25), row.inputs(PROMPTS)).logits[0])


@every_family
def test_nothing_is_left_behind(row: Row) -> None:
    model = patch(fresh(row), "fopru", keep=0.25)
    generate(model, row.inputs(PROMPTS))
    assert _tower._shown.received == [] and _tower._shown.projected == [] and not _tower._shown.asked
    unpatch(model)
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not [hook for hook in hooks if getattr(hook, "__module__", "").startswith("tokenreduce")]
