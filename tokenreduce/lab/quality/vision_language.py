"""What reduced vision-language models lose: word by word against the unpatched model, and in right answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.asked import Asked
from tokenreduce.lab.lanes import patched_lane, try_arms, twin
from tokenreduce.lab.quality.answers import hits, mean_interval
from tokenreduce.lab.quality.first_cache import first_cache
from tokenreduce.lab.quality.forced import Said, compare_words, forced, greedy
from tokenreduce.lab.quality.vqa_words import normalised
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.shipped.vision_language import Prompted
from tokenreduce.patching.finding import find_language
from tokenreduce.patching.verbs import unpatch

MEANING = (
    "KL and top-1 agreement: of the next word, along the unpatched model's own greedy answer, which all models are "
    "made to say; means over its words, then over prompts"
)
EXACT = (
    'exact: answers that equal a right one, in lower case, without articles and punctuation, with "none" and '
    "numbers to ten as digits; change: against the unpatched model"
)


class Judged:
    """What is known of one model so far: `words` of each batch as `compare_words` gives them, `texts` of its own
    answers, and the bytes of keys and values that all prompts left."""

    def __init__(self) -> None:
        self.words: list[tuple[Tensor, Tensor]] = []
        self.texts: list[str] = []
        self.kv_bytes = 0

    def means(self) -> tuple[Tensor, Tensor]:
        """Divergence and agreement of each prompt, `(prompts,)` each."""
        kl, alike = zip(*self.words, strict=True)
        return torch.cat(kl).cpu(), torch.cat(alike).cpu()


def measure_answers(
    prompted: Prompted,
    arms: Sequence[Arm],
    asked: Asked,
    *,
    batch_size: int = 8,
    words: int = 20,
    progress: Progress = lambda fraction, what: None,
) -> list[Row]:
    """A row for the unpatched model and each arm; rows of arms that the model cannot reach (`refused`) come last.

    Args:
        words: that an answer has at most.

    Raises: ValueError for a model that knows no words, and where no arm can be reached.
    """
    if prompted.processor is None:
        raise InvalidValueError("this model has random weights and knows no words; give hf:NAME or scene_vlm")
    find_language(prompted.model)
    base = unpatch(twin(prompted.model)).eval()
    lanes, refused = try_arms(arms, lambda arm: patched_lane(base, arm))
    judged = [Judged() for _ in (base, *lanes)]
    starts = range(0, len(asked.text), batch_size)
    for done, start in enumerate(starts):
        some = slice(start, start + batch_size)
        inputs = prompted.processor(images=asked.images[some], text=asked.text[some])
        with first_cache(base) as held:
            own = greedy(base, inputs, words)
        judged[0].kv_bytes += sum(held)
        judged[0].texts += prompted.processor.batch_decode(own.ids)
        judged[0].words.append(compare_words(own, own.logits))
        for (arm, model), one in zip(lanes, judged[1:], strict=True):
            progress(done / len(starts), str(arm))
            _judge(model, inputs, own, one)
            if asked.answers is not None:
                one.texts += prompted.processor.batch_decode(greedy(model, inputs, words).ids)
    progress(1.0, "done")
    return _rows([arm for arm, _ in lanes], judged, asked) + refused


def _judge(model: Any, inputs: dict[str, Tensor], own: Said, judged: Judged) -> None:
    with first_cache(model) as held:
        judged.words.append(compare_words(own, forced(model, inputs, own)))
    judged.kv_bytes += sum(held)


def _rows(arms: Sequence[Arm], judged: Sequence[Judged], asked: Asked) -> list[Row]:
    rows: list[Row] = []
    right = None if asked.answers is None else [[normalised(text) for text in some] for some in asked.answers]
    base = None if right is None else hits([normalised(text) for text in judged[0].texts], right)
    for arm, one in zip((None, *arms), judged, strict=True):
        kl, alike = one.means()
        row: Row = {
            "method": "unpatched" if arm is None else arm.method,
            "budget": None if arm is None else arm.budget,
            "options": {} if arm is None else arm.options,
            "images": int(asked.of_image.max()) + 1,
            "kl": kl.mean().item(),
            "kl_interval": mean_interval(kl, asked.of_image),
            "top1_agreement": alike.mean().item(),
            "top1_agreement_interval": mean_interval(alike, asked.of_image),
            "kv_share": one.kv_bytes / judged[0].kv_bytes if judged[0].kv_bytes else 1.0,
        }
        if right is not None and base is not None:
            exact = hits([normalised(text) for text in one.texts], right)
            row |= {"exact": exact.mean().item(), "exact_interval": mean_interval(exact, asked.of_image)}
            change = exact - base
            row |= {"change": change.mean().item(), "change_interval": mean_interval(change, asked.of_image)}
        rows.append(row)
    return rows
