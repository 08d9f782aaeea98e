"""What a model would have said at each word of an answer that is given to it (teacher forcing), through `generate`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Said(NamedTuple):
    """An answer: its ids `(B, m)`, the logits that each was chosen by `(B, m, V)`, and which of them are words, `(B,
    m)`: those until the first end of text, which counts."""

    ids: Tensor
    logits: Tensor
    real: Tensor


class Forced:
    """A logits processor that lets nothing but the given ids be said.

    Args:
        ids: `(B, m)`.
        start: length of the prompts.
    """

    def __init__(self, ids: Tensor, start: int) -> None:
        self.ids, self.start = ids, start

    def __call__(self, said: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(1, self.ids[:, said.shape[1] - self.start, None], 0.0)


@torch.inference_mode()
def greedy(model: Any, inputs: dict[str, Tensor], words: int) -> Said:
    """The model's own answer of at most so many words."""
    return _generate(model, inputs, words, [])


@torch.inference_mode()
def forced(model: Any, inputs: dict[str, Tensor], answer: Said) -> Tensor:
    """`(B, m, V)`: the logits of a model that is made to say this answer."""
    rule = Forced(answer.ids, inputs["input_ids"].shape[1])
    return _generate(model, inputs, answer.ids.shape[1], [rule]).logits


def _generate(model: Any, inputs: dict[str, Tensor], words: int, rules: list[Any]) -> Said:
    out = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=words,
        logits_processor=rules,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    return Said(ids, torch.stack(out.logits, 1), until_the_end(ids, model.generation_config.eos_token_id))


def until_the_end(ids: Tensor, ends: int | list[int] | None) -> Tensor:
    """`(B, m)`: False after the first id that ends a text."""
    if ends is None:
        return torch.ones_like(ids, dtype=torch.bool)
    is_end = torch.isin(ids, torch.tensor(ends, device=ids.device))
    return (is_end.cumsum(1) - is_end.long()) == 0


def compare_words(answer: Said, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`(B,)` each, means over the words of an answer: the Kullback-Leibler divergence, in nats, of the distributions
    that `logits` give from those of the model that said it, and the share of words that both like best."""
    own, other = answer.logits.double().log_softmax(-1), logits.double().log_softmax(-1)
    apart = torch.where(own > -torch.inf, own.exp() * (own - other), 0.0).sum(-1)
    alike = (answer.logits.argmax(-1) == logits.argmax(-1)).double()
    words = answer.real.sum(1)
    return tuple((x * answer.real).sum(1) / words for x in (apart, alike))  # type: ignore[return-value]
