"""Vision-language models with prompts: small random configurations, every parameter perturbed.

A prompt is a list of parts: a number is that many words, a string the name of an image or video of the row.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import prompt_rows
import torch
from torch import Tensor, nn

IMAGE, VIDEO, PAD, WORDS = 99, 98, 0, 90
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "pad_token_id": PAD,
}
OF_IMAGES = {"image_grid_thw", "image_sizes", "image_position_ids"}  # arguments with something for each image
Part = int | str
Prompt = Sequence[Part]
# One, two and no image, of one row's sizes "a" and "b".
PROMPTS: tuple[Prompt, ...] = ((2, "a", 3), (1, "b", 2, "a", 4), (6,))


@dataclass(frozen=True)
class Row:
    """A family's model and how to prompt it.

    Args:
        build: makes the model; every parameter is perturbed afterwards.
        units: the images (and videos) by name: the numbers of tokens in each run of placeholders that one has.
        encode: makes the arguments that go with the units of these names, pixels drawn from a generator.
        grids: `(H, W)` of the tokens of each unit, where known.
        types: the arguments that say of what kind each of the ids is.
        rotates_in_3d: positions are of time, height and width.
        within: tokens may leave before later layers, too.
        lasting: which tokens of each unit never leave.
        join: makes one tensor of those of all prompts.
        axis: the dimension of `pixel_values` that counts images.
        start: the first position.
        blocks: the block that each of the ids is in, whose tokens see each other; -1: none.
        prefix: only the first prompt of a conversation has blocks.
        masks: the language model's, of places and blocks `(n,)`, where it makes none itself.
        tower: the name of the vision tower in the inner model.
    """

    name: str
    build: Callable[[], nn.Module]
    units: dict[str, tuple[int, ...]]
    encode: Callable[[Sequence[str], torch.Generator], dict[str, Tensor]]
    grids: dict[str, tuple[int, int]]
    types: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}
    rotates_in_3d: bool = False
    within: bool = False
    lasting: dict[str, tuple[int, ...]] = field(default_factory=dict)
    join: Callable[[Sequence[Tensor]], Tensor] = torch.cat
    axis: int = 0
    start: int = 0
    blocks: Callable[[list[int]], list[int]] = lambda ids: [-1] * len(ids)
    prefix: bool = False
    masks: Callable[[Tensor, Tensor], Any] | None = None
    tower: str = "vision_tower"

    def ids(self, prompt: Prompt, seed: int = 0) -> list[int]:
        """Random words, and placeholders."""
        found: list[int] = []
        for i, part in enumerate(prompt):
            generator = torch.Generator().manual_seed(1000 * seed + i)
            if isinstance(part, int):
                found += torch.randint(1, WORDS, (part,), generator=generator).tolist()
                continue
            for n, run in enumerate(self.units[part]):
                found += ([WORDS + n] if n else []) + [VIDEO if part.startswith("video") else IMAGE] * run
        return found

    def inputs(self, prompts: Sequence[Prompt], side: str = "left", seed: int = 0) -> dict[str, Tensor]:
        """The model's arguments for a batch, padded on one side. A prompt has the same words in any batch."""
        rows = [self.ids(prompt, seed + len(prompt)) for prompt in prompts]
        most = max(map(len, rows))
        pads = [[PAD] * (most - len(row)) for row in rows]
        left = side == "left"
        ids = torch.tensor([[*pad, *row] if left else [*row, *pad] for pad, row in zip(pads, rows, strict=True)])
        real = torch.tensor([[*pad, *([1] * len(row))] for pad, row in zip(pads, rows, strict=True)])
        given = {"input_ids": ids, "attention_mask": real if left else real.flip(1)}
        given |= self.pixels(prompts, seed)
        return given | self.types(ids)

    def pixels(self, prompts: Sequence[Prompt], seed: int) -> dict[str, Tensor]:
        """Of all units, those of a prompt drawn for it alone."""
        found: dict[str, list[Tensor]] = {}
        for prompt in prompts:
            names = [part for part in prompt if isinstance(part, str)]
            generator = torch.Generator().manual_seed(17 + 1000 * seed + len(prompt))
            for kind in ("image", "video"):
                some = [name for name in names if name.startswith("video") == (kind == "video")]
                for name, tensor in (self.encode(some, generator) if some else {}).items():
                    found.setdefault(name, []).append(tensor)
        return {name: self.join(tensors) for name, tensors in found.items()}


@cache
def shared(name: str) -> Any:
    """The row's model, shared by the tests of a process: leave it unpatched."""
    return new(BY_NAME[name])


def new(row: Row) -> Any:
    """A model that has never run: transformers leaves hooks in models whose hidden states were asked for."""
    torch.manual_seed(0)
    model = row.build().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = list(range(WORDS, 100))  # nobody answers with an image
    return model


def fresh(row: Row) -> Any:
    """A copy of the row's model."""
    return copy.deepcopy(shared(row.name))


def language_of(model: Any) -> Any:
    """The language model without its head."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def held(layer: Any, rows: int) -> int:
    """How many entries a layer of a cache holds after so many rows."""
    return min(rows, layer.sliding_window - 1) if layer.is_sliding else rows


def generate(model: Any, given: dict[str, Any], steps: int = 5, **more: Any) -> Any:
    """Greedy, unless told otherwise, with the logits of each step."""
    asked = {"do_sample": False, "max_new_tokens": steps, "min_new_tokens": steps} | more
    return model.generate(**given, **asked, output_logits=True, return_dict_in_generate=True)


def load_rows() -> list[Row]:
    """The row of every family."""
    files = pkgutil.iter_modules(prompt_rows.__path__, "prompt_rows.")
    return [importlib.import_module(file.name).make_row() for file in files if "._" not in file.name]


ROWS = load_rows()
BY_NAME = {row.name: row for row in ROWS}
