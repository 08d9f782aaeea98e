"""Prompts of vision-language models made with chat templates, and processors that make none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.shipped.vision_language import ChatProcessor, load_prompted

WORDS = ["<pad>", "<unk>", "<s>", "what", "is", "this", "<image>"]
TALK = "{% for m in messages %}{% for c in m.content %}{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}"
TALK += "{% endfor %}"


def processor(template: str | None) -> Any:
    """One whose tokenizer writes <s> before every text."""
    table = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, "<unk>"))
    table.pre_tokenizer = WhitespaceSplit()
    table.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=table, **marks)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    side = {"height": 28, "width": 28}
    return hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=side, crop_size=side), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


@pytest.mark.parametrize("template", [TALK, "<s> " + TALK], ids=["bare", "written"])
def test_a_text_begins_once(template: str) -> None:
    pictures = [Image.new("RGB", (28, 28))] * 2
    ids = ChatProcessor(processor(template))(pictures, ["what is this", "what"])["input_ids"]
    assert ids.tolist() == [[2, 6, 6, 6, 6, 3, 4, 5], [0, 0, 2, 6, 6, 6, 6, 3]]


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        (processor(None), "LlavaProcessor has no chat template"),
        (SimpleNamespace(chat_template=TALK), "SimpleNamespace has no tokenizer"),
    ],
)
def test_processors_that_make_no_prompts(given: Any, lacks: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{lacks}, .*; give a model that was trained for chats"):
        ChatProcessor(given)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError(""), "ImportError; install what is missing"),
        (ValueError("\n\n no such thing\nmore"), "no such thing; check the name or the folder"),
        (AttributeError("no class X"), "no class X; its configuration asks for what this version"),
    ],
)
def test_models_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(hf.AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(InvalidValueError, match=f"^transformers cannot load 'some/model': {words}"):
        load_prompted("hf:some/model")
