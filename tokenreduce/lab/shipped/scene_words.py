"""The words of the shipped vision-language model, and what makes its inputs of scenes and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data import scenes
from tokenreduce.lab.data.scene_questions import NAMES, NUMBERS, PLURALS, SHADES, SIDES

PAD, BOS, EOS, IMAGE = "<pad>", "<bos>", "<eos>", "<image>"
MARKS = (PAD, BOS, EOS, IMAGE)
ASKING = ("are", "any", "how", "is", "many", "the", "there", "things", "what", "where", "shade", "?")
SAYING = ("yes", "no", "nothing", "top", "bottom")
KNOWN = (*MARKS, *ASKING, *SAYING, *NAMES, *PLURALS.values(), *NUMBERS, *SHADES, *" ".join(SIDES).split())
WORDS = tuple(dict.fromkeys(KNOWN))  # by number; trained weights know them by it
SIDE = 10  # patches along a side of a scene


def scene_tokenizer() -> Any:
    """A tokenizer of whole words, which stand between spaces; pads on the left."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, PAD))
    words.pre_tokenizer = WhitespaceSplit()
    named = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": PAD}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, padding_side="left", additional_special_tokens=[IMAGE], **named
    )


class SceneProcessor:
    """Makes the model's inputs, as processors of transformers do: one scene and one question a prompt."""

    def __init__(self) -> None:
        self.tokenizer = scene_tokenizer()

    def __call__(self, images: Tensor, text: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `pixel_values` of scenes `(n, 1, 80, 80)` uint8 and n questions, words with
        spaces between them.

        Raises: ValueError for a word that the model does not know.
        """
        unknown = next((word for question in text for word in question.split() if word not in WORDS), None)
        if unknown is not None:
            known = " ".join(word for word in WORDS if word not in MARKS)
            raise InvalidValueError(f"the model does not know the word {unknown!r}; its words are: {known}")
        start = " ".join([BOS, *[IMAGE] * SIDE**2])
        prompts = [f"{start} {question}" for question in text]
        ids = self.tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        return {**ids, "pixel_values": scenes.normalise(images)}

    def batch_decode(self, sequences: Tensor) -> list[str]:
        """The words of generated ids `(n, m)`, without what marks beginning, end and image."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
