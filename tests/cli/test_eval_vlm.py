"""`tokenreduce eval --task vlm` and `visualize --keep` end to end: the shipped architecture with random weights, and a
saved model with its processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from command_rows import read
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from tokenreduce.cli import visualize as visualization
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.shipped.random_llava import random_llava
from tokenreduce.lab.shipped.vision_language import load_prompted, noise_inputs

KEYS = {"method", "budget", "options", "images", "kl", "kl_interval", "top1_agreement", "top1_agreement_interval"}
KEYS |= {"kv_share"}
EXACT = {"exact", "exact_interval", "change", "change_interval"}
TALK = "{% for m in messages %}{% for c in m.content %}{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}"
TALK += "{% endfor %}{% if add_generation_prompt %} answer :{% endif %}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as one from the hub: a small LLaVA, a tokenizer of words, an image processor, a chat template."""
    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "<unk>", "</s>", "what", "is", "this", "answer", ":", "red", "blue", "<image>"]
    table = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    table.pre_tokenizer = WhitespaceSplit()
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=table, **marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    side = {"height": 56, "width": 56}
    pictures = hf.CLIPImageProcessor(size=side, crop_size=side)
    processor = hf.LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TALK,
    )  # fmt: skip
    processor.save_pretrained(folder)
    model = random_llava(width=64, depth=3, side=4, words=len(words))
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return folder


def pictures(folder: Path) -> Path:
    for number, shade in enumerate((20, 120, 220)):
        Image.new("RGB", (60 + number, 50), (shade, 40, 255 - shade)).save(folder / f"{number}.png")
    return folder


def test_scenes_have_answers(run: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    asked = ("--method", "divprune,random", "--keep", "0.5,10", "--limit", 2, "--batch-size", 4)
    out = run("eval", "--task", "vlm", "--no-pretrained", *asked, "--json", file)
    rows, settings = read(file)
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("unpatched", None),
        ("divprune", "keep=0.5"),
        ("divprune", "keep=10"),
        ("random", "keep=0.5"),
        ("random", "keep=10"),
    ]
    assert all(row.keys() == KEYS | EXACT and row["images"] == 2 for row in rows)
    assert settings["model"] == "scene_vlm" and settings["data"] == "scenes" and settings["prompts"] == 8
    assert settings["words"] == 3 and not settings["pretrained"]
    assert "without articles" in out and "top-1" in out and "right answers" in out


def test_a_folder_of_images_has_none(run: Callable[..., str], tmp_path: Path, saved: Path) -> None:
    file = tmp_path / "rows.json"
    asked = ("--model", f"hf:{saved}", "--data", pictures(tmp_path), "--question", "what is this", "--words", 4)
    out = run("eval", "--task", "vlm", *asked, "--method", "divprune", "--keep", "0.25,1.0", "--json", file)
    rows, settings = read(file)
    assert all(row.keys() == KEYS for row in rows) and [row["images"] for row in rows] == [3] * 3
    assert rows[0]["kl"] == rows[2]["kl"] == 0 < rows[1]["kl"] and rows[2]["top1_agreement"] == 1
    assert rows[1]["kv_share"] < rows[2]["kv_share"] == 1
    assert settings["question"] == "what is this" and "exact" not in out


def test_lines_with_answers(run: Callable[..., str], tmp_path: Path, saved: Path) -> None:
    """What the unpatched model says is right here, so that its answers are exact."""
    folder, prompted = pictures(tmp_path), load_prompted(f"hf:{saved}")
    lines = []
    for name in ("0.png", "1.png"):
        inputs = prompted.processor(images=[Image.open(folder / name)], text=["what is this"])
        ids = prompted.model.generate(**inputs, do_sample=False, max_new_tokens=2)
        said = prompted.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0]
        lines.append({"image": name, "question": "what is this", "answers": [f"{said.upper()}.", "else"]})
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    file = tmp_path / "rows.json"
    asked = ("--model", f"hf:{saved}", "--data", folder / "asked.jsonl", "--words", 2, "--json", file)
    run("eval", "--task", "vlm", *asked, "--method", "divprune", "--keep", "1.0")
    assert [row["exact"] for row in read(file)[0]] == [1, 1]


def test_prompts_of_several_images(saved: Path) -> None:
    prompted = load_prompted(f"hf:{saved}")
    inputs = noise_inputs(prompted, 3)
    assert len(inputs["pixel_values"]) == 3 and int((inputs["input_ids"] == 10).sum()) == 48
    plain: Any = load_prompted(f"hf:{saved}", pretrained=False).model
    assert not torch.equal(plain.lm_head.weight, prompted.model.lm_head.weight)


def test_bench_of_a_saved_model(run: Callable[..., str], saved: Path, tmp_path: Path) -> None:
    asked = ("--model", f"hf:{saved}", "--keep", "0.5", "--images", "2", "--words", 1, "--rounds", 1, "--min-time", 0)
    run("bench", "--task", "generate", *asked, "--json", tmp_path / "rows.json")
    assert [row["tokens_left"] for row in read(tmp_path / "rows.json")[0]] == [32, 16]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ([], InvalidTypeError, "the budget is missing"),
        (["--keep", "0.5", "--flops", "0.5"], InvalidTypeError, "--task vlm does not use --flops"),
        (["--keep", "0.5", "--head", "knn"], InvalidTypeError, "does not use --head knn"),
        (["--keep", "0.5", "--data", "photographs"], InvalidValueError, "about scenes alone"),
        (["--keep", "0.5", "--model", "random-llava", "--data", "scenes"], InvalidValueError, "knows no words"),
    ],
)
def test_wrong_options(run: Callable[..., str], monkeypatch: Any, given: list[str], error: Any, says: str) -> None:
    small = random_llava(width=64, depth=2, side=4, words=50)
    monkeypatch.setattr("tokenreduce.lab.shipped.vision_language.random_llava", lambda: small)
    with pytest.raises(error, match=says):
        run("eval", "--task", "vlm", "--no-pretrained", *given)


@pytest.mark.parametrize("given", [["--keep", "0.5"], ["--words", "2"], ["--question", "why"]])
def test_other_tasks_do_not_use_them(run: Callable[..., str], given: list[str]) -> None:
    with pytest.raises(InvalidTypeError, match="--task classification does not use"):
        run("eval", "--flops", "0.6", *given)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is handed over to be drawn, which is drawn all the same."""
    seen: list[tuple[Any, ...]] = []
    draw = visualization.draw_kept

    def spy(*given: Any) -> None:
        seen.append(given)
        draw(*given)

    monkeypatch.setattr(visualization, "draw_kept", spy)
    return seen


def test_kept_tokens_of_a_scene(run: Callable[..., str], tmp_path: Path, drawn: list[tuple[Any, ...]]) -> None:
    out = tmp_path / "kept.png"
    asked = ("--method", "divprune,random", "--keep", "0.25,7", "--no-pretrained", "--question", "how many bags ?")
    said = run("visualize", *asked, "--out", out)
    ((pixels, kept, grid, _, title),) = drawn
    assert out.stat().st_size and grid == (10, 10) and pixels.shape == (1, 80, 80) and title == "how many bags ?"
    assert [len(numbers) for numbers in kept.values()] == [25, 7, 25, 7]
    assert "divprune at keep=7: 7 of 100 tokens of the image are left" in said


def test_kept_tokens_of_a_photograph(
    run: Callable[..., str], tmp_path: Path, saved: Path, drawn: list[tuple[Any, ...]]
) -> None:
    """The picture is drawn as the processor cuts it: here the middle square of red, white, and red again."""
    picture = Image.new("RGB", (168, 56), (255, 0, 0))
    picture.paste((255, 255, 255), (56, 0, 112, 56))
    picture.save(tmp_path / "wide.png")
    asked = ("--model", f"hf:{saved}", "--image", tmp_path / "wide.png", "--method", "divprune,globalcom2")
    said = run("visualize", *asked, "--keep", "4", "--out", tmp_path / "kept.png")
    ((pixels, kept, grid, _, _),) = drawn
    assert grid == (4, 4) and pixels.shape == (3, 56, 56) and pixels[:, :, 28].min() > 0.99
    assert len(kept) == 1 and "globalcom2 at keep=4 was not run" in " ".join(said.split())


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (["--keep", "1.0"], InvalidValueError, "or none has left"),
        (["--keep", "0.5", "--image", "a.png"], InvalidValueError, "about scenes alone"),
        (["--keep", "0.5", "--layers", "1"], InvalidTypeError, "does not use --layers"),
    ],
)
def test_what_cannot_be_drawn(run: Callable[..., str], tmp_path: Path, given: list[str], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        run("visualize", "--method", "divprune", "--no-pretrained", *given, "--out", tmp_path / "a.png")
