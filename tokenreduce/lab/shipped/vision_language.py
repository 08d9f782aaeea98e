"""Vision-language models by name, and what makes their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.pretrained import FAILURES, PREFIX, cannot_load
from tokenreduce.lab.shipped.random_llava import NAME as RANDOM
from tokenreduce.lab.shipped.random_llava import random_llava
from tokenreduce.lab.shipped.scene_vlm import scene_vlm
from tokenreduce.lab.shipped.scene_words import SceneProcessor

SCENES = "scene_vlm"
PROMPT_WORDS = 40  # around the images of a prompt of random words


class Prompted(NamedTuple):
    """A model in eval mode and what makes its inputs of images and questions, as `answer` calls it; None for a model
    that knows no words."""

    model: Any
    processor: Any = None

    @property
    def chats(self) -> bool:
        """Whether prompts may hold any images and words."""
        return isinstance(self.processor, Placed) and isinstance(self.processor.processor, ChatProcessor)


class Placed:
    """A processor whose inputs come to the device of a model, pixels in its number format."""

    def __init__(self, processor: Any, model: Any) -> None:
        self.processor, self.model = processor, model

    def __call__(self, images: Any, text: Sequence[str]) -> dict[str, Tensor]:
        """As the processor."""
        return moved(self.processor(images=images, text=text), self.model)

    def batch_decode(self, sequences: Tensor) -> list[str]:
        """As the processor."""
        words: list[str] = self.processor.batch_decode(sequences)
        return words


def moved(inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Inputs on the device of a model, pixels in its number format."""
    return {name: x.to(model.device, model.dtype if x.is_floating_point() else x.dtype) for name, x in inputs.items()}


class ChatProcessor:
    """Makes a model's inputs with its own processor and chat template, and words of its ids.

    Prompts of a batch are padded on the left, as `generate` needs it.

    Raises: ValueError for a processor that makes no prompts.
    """

    def __init__(self, processor: Any) -> None:
        if not hasattr(processor, "tokenizer") or not getattr(processor, "chat_template", None):
            what = "chat template" if hasattr(processor, "tokenizer") else "tokenizer"
            raise InvalidValueError(
                f"this model's {type(processor).__name__} has no {what}, by which questions become prompts; give a "
                "model that was trained for chats (names often say chat, instruct or it)"
            )
        self.processor = processor
        self.processor.tokenizer.padding_side = "left"

    def __call__(self, images: Sequence[Any], text: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of prompts, each of an image of PIL, or a list of them, and a question."""
        several = [some if isinstance(some, list) else [some] for some in images]
        said = [
            [{"role": "user", "content": [*({"type": "image"} for _ in some), {"type": "text", "text": question}]}]
            for some, question in zip(several, text, strict=True)
        ]
        prompts = [self.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in said]
        first = self.processor.tokenizer.bos_token
        written = first is not None and all(prompt.startswith(first) for prompt in prompts)
        more = {"add_special_tokens": False} if written else {}  # the tokenizer would write it again
        return dict(self.processor(images=several, text=prompts, padding=True, return_tensors="pt", **more))

    def batch_decode(self, sequences: Tensor) -> list[str]:
        """The words of generated ids `(n, m)`."""
        words: list[str] = self.processor.batch_decode(sequences, skip_special_tokens=True)
        return words


def load_prompted(name: str, pretrained: bool = True) -> Prompted:
    """The model called `name`: `scene_vlm`, `random-llava`, or hf:NAME with its processor.

    Raises: ValueError if there is none, transformers cannot load it, or its processor makes no prompts.
    """
    if name == SCENES:
        shipped = scene_vlm(pretrained)
        return Prompted(shipped, Placed(SceneProcessor(), shipped))
    if name == RANDOM:
        return Prompted(random_llava())
    if not name.startswith(PREFIX):
        raise unknown("vision-language model", name, (SCENES, RANDOM, f"{PREFIX}NAME"))
    try:
        import transformers
    except ImportError:
        raise InvalidValueError(
            f"{name} needs transformers, which is not installed: pip install 'tokenreduce[transformers]'"
        ) from None
    transformers.logging.set_verbosity_error()
    path = name.removeprefix(PREFIX)
    try:
        model: Any = made_of(transformers.AutoModelForImageTextToText, path, pretrained)
        processor = transformers.AutoProcessor.from_pretrained(path)
    except FAILURES as error:
        raise cannot_load(path, error) from None
    return Prompted(model.eval(), Placed(ChatProcessor(processor), model))


def made_of(kind: Any, path: str, pretrained: bool) -> Any:
    """The model in its own number format, with its weights or with random ones."""
    if pretrained:
        return kind.from_pretrained(path, dtype="auto")
    from transformers import AutoConfig

    return kind.from_config(AutoConfig.from_pretrained(path))


def prompt_of(prompted: Prompted, images: int) -> dict[str, Tensor]:
    """A prompt with so many images of noise: times do not depend on what is in them."""
    if prompted.chats:
        return noise_inputs(prompted, images)
    return handmade_inputs(prompted.model, images, PROMPT_WORDS)


def noise_inputs(prompted: Prompted, images: int, side: int = 336) -> dict[str, Tensor]:
    """Inputs of one prompt about images of noise, made by the model's processor."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8, generator=generator)
    pictures = [Image.fromarray(picture.numpy()) for picture in noise]
    inputs: dict[str, Tensor] = prompted.processor([pictures], ["What do these images show?"])
    return inputs


def handmade_inputs(model: Any, images: int, words: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of one prompt of random words after random images, for a model of LLaVA's class, whose images are all of
    one size."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    vision, token = config.vision_config, config.image_token_id
    said = torch.randint(1, min(token, config.text_config.vocab_size), (1, words), generator=generator)
    ids = torch.cat([said[:, :1], torch.full((1, images * config.image_seq_length), token), said[:, 1:]], 1)
    size = (images, vision.num_channels, vision.image_size, vision.image_size)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(size, generator=generator),
    }
