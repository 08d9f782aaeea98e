"""`PromptTrials`: the errors of schedules within a language model, on prompts with images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.budget.schedule import Schedule
from tokenreduce.budget.spreading import Counts, bisect
from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.journal import Journal, digest, digest_of_model
from tokenreduce.lab.search.curves import Curve
from tokenreduce.lab.search.trials import Candidate, Trials, Variant
from tokenreduce.patching.finding import find_language
from tokenreduce.patching.language import depth_of
from tokenreduce.patching.verbs import reduced, report
from tokenreduce.reducers.registry import create

Prompt = Mapping[str, Any]


class PromptTrials(Trials):
    """Measures candidates by the next word after each prompt: the KL divergence of the patched model's distribution
    from the unpatched one's. Shares are of the image tokens, mean over the layers, and not of the multiply-adds.

    Args:
        prompts: what a processor makes of each, with tensors, one prompt in each.
        batches: the numbers of the prompts that are told together; each runs alone.

    Raises: ValueError if the first prompt has no image.
    """

    def __init__(
        self,
        model: nn.Module,
        default: Variant,
        prompts: Sequence[Prompt],
        batches: Sequence[Sequence[int]],
        journal: Journal,
        tell: Callable[[str, int], object] = lambda what, done: None,
    ) -> None:
        self.default, self.journal, self.tell, self.base = default, journal, tell, model
        self.prompts = [[prompts[number] for number in batch] for batch in batches]
        self._batches = []
        self._images = [digest(*map(digest_of_prompt, batch)) for batch in self.prompts]
        self.about = [digest_of_model(model), torch.__version__, version("tokenreduce"), "prompts"]
        self._codes, self._reductions, self._reference = {}, {}, {}
        _, part, adapter = find_language(model)
        self.depth = depth_of(part, adapter)
        self.tokens = self._count_image(prompts[0])
        self.kinds = ("next_word",)

    @property
    def all(self) -> range:
        return range(len(self.prompts))

    def _count_image(self, prompt: Prompt) -> int:
        """Tokens of the largest image of a prompt."""
        with reduced(self.base, "random", keep=1):
            self._next_word(prompt)
            try:
                return max(entered for entered, _ in report(self.base).units)
            except InvalidValueError:
                raise InvalidValueError("the first prompt has no image: give prompts as their images' processor makes "
                                        "them, with pixels") from None  # fmt: skip

    def reference(self, batch: int) -> list[Tensor]:
        """`(words,)` of each prompt of a batch: log probabilities of the unpatched model."""
        if batch not in self._reference:
            with reduced(self.base, "random", keep=1.0):  # which removes nothing, and sets a present patch aside
                self._reference[batch] = [self._next_word(prompt) for prompt in self.prompts[batch]]
        return self._reference[batch]

    def own(self, variant: Variant, flops: float) -> Candidate:
        reducer = create(variant.method, variant.options)
        layers = [layer for layer in reducer.language_layers(self.depth) if layer < self.depth]

        def counts(amount: float) -> Counts:
            left, found = self.tokens, []
            for layer in range(self.depth):
                left = max(1, int(left * (1 - amount) + 1e-9)) if layer in layers else left
                found.append(left)
            return tuple(found)

        return self.counted(variant, self._within(variant, counts, flops))

    def shaped(self, variant: Variant, curve: Curve, flops: float) -> Candidate:
        first = int(asks(variant))

        def counts(amount: float) -> Counts:
            shares = curve.shares(self.depth, max(1 - amount, 0.5 / self.tokens))
            left, found = self.tokens, []
            for layer, share in enumerate(shares):
                left = min(left, max(1, round(self.tokens * share))) if layer >= first else left
                found.append(left)
            return tuple(found)

        return self.counted(variant, self._within(variant, counts, flops), curve)

    def _within(self, variant: Variant, counts: Callable[[float], Counts], share: float) -> Counts:
        """The greatest counts whose mean is at most a share of all."""
        if self._share(counts(1.0)) > share:
            raise InvalidValueError(f"{variant} keeps {self._share(counts(1.0)):.3f} of the image tokens at least")
        return counts(bisect(lambda amount: self._share(counts(amount)) <= share)[0])

    def _share(self, counts: Counts) -> float:
        return sum(counts) / (self.tokens * self.depth)

    def counted(self, variant: Variant, counts: Counts, curve: Curve | None = None) -> Candidate:
        if counts[0] < self.tokens and asks(variant):
            raise InvalidValueError(f"{variant} reads the attention of the layer before, and layer 0 has none")
        entered = (self.tokens, *counts[:-1])
        kept = {layer: left / now for layer, (left, now) in enumerate(zip(counts, entered, strict=True)) if left < now}
        return Candidate(variant, Schedule.keep(kept or {1: 1.0}), self._share(counts), counts, curve)

    def _lane(self, candidate: Candidate) -> Any:
        return candidate

    def _measure(self, lane: Any, batch: int) -> Tensor:
        variant, expected = lane.variant, self.reference(batch)
        with reduced(self.base, variant.method, keep=dict(lane.schedule.events), **variant.options):
            found = [self._next_word(prompt) for prompt in self.prompts[batch]]
        pairs = zip(expected, found, strict=True)
        return torch.stack([(p.exp() * (p - q)).sum().clamp_min(0) for p, q in pairs])[:, None]

    def _next_word(self, prompt: Prompt) -> Tensor:
        """`(words,)` in float64: log probabilities after the last word of a prompt."""
        like = next(self.base.parameters())
        given = {name: x.to(like.device) if isinstance(x, Tensor) else x for name, x in prompt.items()}
        mask = given.get("attention_mask")
        with torch.inference_mode():
            logits = self.base(**given).logits
        last = -1 if mask is None else int(mask[0].nonzero()[-1])
        return logits[0, last].double().log_softmax(0).cpu()


def asks(variant: Variant) -> bool:
    """Whether a method reads the attention of the prompt."""
    return "text_attention" in create(variant.method, variant.options).required()


def digest_of_prompt(prompt: Prompt) -> str:
    """A hash of what is in a prompt."""
    return digest(sorted(prompt), *(prompt[name] for name in sorted(prompt) if isinstance(prompt[name], Tensor)))
