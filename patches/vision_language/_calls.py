"""Calls of a language model that cannot be made with fewer rows, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.forward.language.kept import Kept
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.reduction import LanguageReduction

from ._layers import is_changed

RUN_WITH = ("sdpa", "eager")  # attention implementations that were tried with rows removed


def untried(language: Any) -> str:
    """Why removing cannot run with the attention of this language model; empty if it can."""
    used = language.config._attn_implementation
    if used in RUN_WITH:
        return ""
    return (
        f"the attention of its language model is {used!r}, with which removing was never tried; call "
        f'model.set_attn_implementation("sdpa") first'
    )


def check_features(features: Any) -> None:
    """Raise for features of images that are not what `generate` hands over."""
    if features is not None and not isinstance(features, Mapping):
        raise InvalidTypeError(
            f"mm_encoder_outputs is a {type(features).__name__}; it must be a dict with what the model puts out, such "
            'as {"image": model.get_image_features(pixel_values, return_dict=True)}'
        )


def check_steps(reduction: LanguageReduction, given: dict[str, Any]) -> None:
    """Raise where `generate`, which alone hands features over, would ask every word anew what leaves."""
    if reduction.asks and given.get("mm_encoder_outputs") and given.get("use_cache") is False:
        raise InvalidValueError(
            f"without a cache {reduction.reducer.name} would let the newest word decide what leaves, step by step; "
            "leave use_cache=False out, or use a method that reads no text"
        )


def check_call(language: Any, reduction: LanguageReduction, given: dict[str, Any], removes: bool, pairs: bool) -> None:
    """Raise for arguments that hold something for each place in a way that is not known here. `pairs`: masks of pairs
    are what this language model gets."""
    reason = untried(language)
    if reason:
        raise InvalidValueError(reason)
    mask = given.get("attention_mask")
    if not pairs and (isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim != 2)):
        raise InvalidValueError(
            "a reduced model takes an attention mask of the prompts' places, (batch, places), and not one of pairs or "
            "several of them; give that, or call tokenreduce.unpatch(model)"
        )
    if given.get("cu_seq_lens_q") is not None:
        raise InvalidValueError("a reduced model takes no packed sequences; give prompts as a padded batch")
    wanted = given.get("output_attentions")
    if removes and (language.config.output_attentions if wanted is None else wanted):
        raise InvalidValueError(
            "output_attentions is not possible where tokens leave before the language model: its maps have no rows for "
            "them; leave it out, or call tokenreduce.unpatch(model)"
        )
    if removes and reduction.later:
        check_layers(language)


def check_layers(language: Any) -> None:
    """Raise where rows cannot leave within the language model."""
    if language.gradient_checkpointing and language.training:
        raise InvalidValueError(
            "gradient checkpointing runs layers again outside of a forward, where it is not known which rows left; "
            "switch it off, or let tokens leave before the language model (keep=0.5 with another method)"
        )
    if any(is_changed(layer.self_attn, language.config) for layer in language.layers):
        raise InvalidValueError(
            "the model was given another attention implementation after it was patched; patch it again"
        )


def check_manner(reduction: LanguageReduction, before: Kept) -> None:
    """Raise for a cache that another patch has made in another manner."""
    if before.under != reduction.manner:
        positions, layers = before.under
        raise InvalidValueError(
            f"this cache was filled with positions={positions!r} and tokens leaving before layers {list(layers)} "
            f"within the language model; the model is patched otherwise now ({reduction.positions!r}, "
            f"{list(reduction.later)}): patch it as it was, or encode the prompt anew"
        )


def check_mask(mask: Tensor | None, places: int) -> None:
    """Raise for a mask that is not of all places."""
    if mask is not None and mask.shape[1] != places:
        raise InvalidValueError(
            f"attention_mask has {mask.shape[1]} places, but cache and prompt have {places}; give one for all of them"
        )


def check_linear(cache: Any, before: Kept, passage: Passage) -> None:
    """Raise where fillers would pass through the state of linear attention."""
    if cache is not None and before.seen and any(cache.is_linear) and not bool(passage.valid.all()):
        raise InvalidValueError(
            "layers with linear attention cannot take a batch of later turns whose prompts are left with different "
            "numbers of tokens; give one prompt at a time, or the whole conversation at once"
        )
