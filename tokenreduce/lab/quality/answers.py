"""Answers of vision-language models: what a model says about images, how often it is right, what its cache holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.lab.quality.bootstrap import draw, interval
from tokenreduce.lab.quality.first_cache import first_cache


@dataclass(frozen=True)
class Answered:
    """What a model said to each prompt, and the bytes of keys and values that the prompts left in its cache.

    Args:
        texts: one a prompt.
        kv_bytes: of all prompts together, fillers of batches included.
    """

    texts: list[str]
    kv_bytes: int


@torch.inference_mode()
def answer(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any] | Tensor,
    text: Sequence[str],
    batch_size: int = 50,
    tell: Callable[[int], object] = lambda done: None,
    **generating: Any,
) -> Answered:
    """What `model.generate` says to each prompt of one image, greedily.

    Args:
        processor: called with `images=` and `text=`, as those of transformers; its `batch_decode` makes words of ids.
        images: one a prompt.
        tell: called with the number of prompts that are done, after each batch.
        generating: arguments of `generate`, such as max_new_tokens.
    """
    texts: list[str] = []
    kv_bytes = 0
    run: Any = model
    for start in range(0, len(text), batch_size):
        some = slice(start, start + batch_size)
        inputs = processor(images=images[some], text=text[some])
        with first_cache(model) as held:
            ids = run.generate(**inputs, do_sample=False, **generating)
        texts += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
        kv_bytes += sum(held)
        tell(len(texts))
    return Answered(texts, kv_bytes)


def hits(texts: Sequence[str], right: Sequence[Collection[str]]) -> Tensor:
    """`(prompts,)`, 1 where a text is one of the right answers, else 0; case and spaces around words do not count."""
    pairs = zip(texts, right, strict=True)
    return torch.tensor([spaced(text) in map(spaced, some) for text, some in pairs], dtype=torch.float64)


def spaced(text: str) -> str:
    """The words in lower case, with one space between them."""
    return " ".join(text.lower().split())


def same(texts: Sequence[str], others: Sequence[str]) -> Tensor:
    """`(prompts,)`, 1 where two models say the same, else 0."""
    return hits(texts, [[other] for other in others])


def mean_interval(values: Tensor, images: Tensor, rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of `values (prompts,)`, by a bootstrap over images: prompts of one image are drawn
    together. Of the difference of two models it is paired: give the differences.

    Args:
        images: `(prompts,)`, the number of each prompt's image, from 0 on.
    """
    count = int(images.max()) + 1
    times = draw(count, rounds, seed)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, images, values.double())
    prompts = torch.bincount(images, minlength=count).double()
    return interval((times @ sums) / (times @ prompts))
