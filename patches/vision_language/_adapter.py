"""`VisionLanguageAdapter`: what the families of vision-language models of transformers share.

Outside of the language model everything stays as the user and `generate` count it: ids with all placeholders, masks,
positions, lengths. Inside fewer rows exist. So the hooks are on the call of the language model, and never on the
methods that encode images, whose lengths `generate` compares with the placeholders.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.passage import Passage
from tokenreduce.forward.language.planning import Removal
from tokenreduce.forward.language.run import forget
from tokenreduce.forward.language.units import Facts, Unit, find_units
from tokenreduce.forward.marks import mark, patch_of, unmark
from tokenreduce.reducers.contract import Reducer

from ..shared.adapter import Adapter
from ._calls import untried
from ._hooks import enter_language, enter_model, leave_language, leave_model
from ._layers import enter_layer, show_attention, stop_showing
from ._tower import (
    STAMP,
    Encoded,
    enter_tower,
    from_the_start,
    numbers_of,
    show,
    show_both,
    show_received,
    show_whole,
    stamp,
    stop_tower,
)

NO_CLASS_TOKEN = {"class_attention": "its vision tower has no class token"}
RARE = {  # what few families show, and what is said of the others
    "received_attention": "its vision tower does not show what its tokens attend to",
    "crops": "it is not known of which crop each of its images' tokens is",
}
OF_TOWER = frozenset({"class_attention", "received_attention", "crops"})
SHOWN = frozenset({"keys", "mean_keys", "origin", "grid", "positions"}) | OF_TOWER  # keys: the rows themselves
PRE = (enter_tower, enter_model, enter_language, enter_layer, show_received)
ATTENTION = {"class_attention": show, "received_attention": show_whole}
POST = (stamp, show, show_whole, show_both, leave_model, leave_language)


class VisionLanguageAdapter(Adapter):
    """An adapter for one model type; subclasses say where its parts are.

    `models`: the classes that hold vision tower and language model, without the head; `tower` and `language`: the
    names of these parts; `pixels`: the argument with the pixels of each modality, which has a `get_..._features` and a
    `..._token_id`; `hands_on`: whether other arguments of the model go to these methods; `rotates_in_3d`: positions are
    of time, height and width; `within`: tokens may leave before later layers too, which was tried; `masks_outside`: the
    model makes the masks of pairs that its language model is called with.
    """

    place = "language"
    models: ClassVar[tuple[type[nn.Module], ...]]
    tower: ClassVar[str]
    language: ClassVar[str] = "language_model"
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values"}
    hands_on: ClassVar[bool] = False
    within: ClassVar[bool] = False
    rotates_in_3d: ClassVar[bool] = False
    masks_outside: ClassVar[bool] = False

    @property
    def family(self) -> str:  # type: ignore[override]
        return f"transformers {', '.join(model.__name__ for model in self.models)}"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, self.models)

    def refusals(self, model: Any) -> list[str]:
        reason = untried(model.get_submodule(self.language))
        return [reason] if reason else []

    def refuse_layers(self, model: Any) -> list[str]:
        """Why tokens cannot leave within this language model; empty if they can."""
        if not self.within:
            return ["tokens leave only before the language model of this family, at layer 0"]
        config = model.get_submodule(self.language).config
        sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        if sliding or (getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)):
            return ["layers of its language model have sliding windows, from which tokens leave only at layer 0"]
        return []

    def lacks(self, model: Any) -> dict[str, str]:
        """The entries of `SHOWN`, but for `RARE`, that this model's images do not have, each with the reason."""
        missing = dict.fromkeys(("grid", "positions"), "its images' tokens are no known grid")
        return missing | NO_CLASS_TOKEN

    def shows(self, model: Any) -> frozenset[str]:
        """Which of `RARE` its images show."""
        return frozenset()

    def missing_for(self, model: Any, needs: frozenset[str]) -> dict[str, str]:
        """Which of the entries that a method `needs` there are none of before the language model, and why."""
        unknown = dict.fromkeys(needs - SHOWN - {"text_attention"}, "nothing before the language model shows it")
        lacks, reasons = dict(self.lacks(model)), self.refuse_layers(model)
        lacks |= {name: why for name, why in RARE.items() if name not in self.shows(model)}
        lacks |= {"text_attention": "; ".join(reasons)} if reasons else {}
        return unknown | {name: lacks[name] for name in needs & lacks.keys()}

    def lengths(self, model: Any, parts: Sequence[Any]) -> list[int]:
        """Tokens of each image or video, of the features as they were encoded."""
        return [len(part) for part in parts]

    def leaving(self, model: Any, units: list[Unit], parts: Sequence[Any]) -> list[Unit]:
        """The units without tokens that never leave, such as ends of lines."""
        return units

    def facts(self, model: Any, encoded: Encoded, lengths: Sequence[int]) -> Sequence[Facts]:
        """What is known of the images or videos as they were encoded."""
        return ()

    def tower_layers(self, model: Any) -> Sequence[nn.Module]:
        """The layers of the tower among which the configuration names those whose states are taken; none where none of
        them shows its attention."""
        return ()

    def showing(self, model: Any) -> Sequence[nn.Module]:
        """The projections of the tower to queries and keys, layer by layer, of the attention that features are ranked
        by."""
        return ()

    def showing_all(self, model: Any) -> Sequence[nn.Module]:
        """The same of all layers up to there; none if the family cannot."""
        return ()

    def receiving(self, model: Any) -> Sequence[nn.Module]:
        """Instead, the attention of the tower that takes images of any size as one sequence."""
        return ()

    def rows(self, given: dict[str, Any], removal: Removal, passage: Passage) -> dict[str, Any]:
        """The other arguments of the language model that have something for each row, for the rows that enter."""
        return {}

    def encoded(self, model: Any, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments with features in the place of pixels, as `generate` hands them over."""
        there = [name for name, pixels in self.pixels.items() if given.get(pixels) is not None]
        if not there or given.get("mm_encoder_outputs") is not None:  # both: the model itself says what is wrong
            return given
        names = inspect.signature(model.forward).parameters
        more = {k: v for k, v in given.items() if k not in names and k != "return_dict"} if self.hands_on else {}
        features = {}
        for modality in there:
            encode = getattr(model, f"get_{modality}_features")
            wanted = {name: given[name] for name in inspect.signature(encode).parameters if name in given}
            features[modality] = encode(**wanted, **more, return_dict=True)
        kept = {name: value for name, value in given.items() if name not in {self.pixels[m] for m in there}}
        return kept | {"mm_encoder_outputs": features}

    def units(self, model: Any, reduction: Any, given: dict[str, Any]) -> list[Unit]:
        """The images and videos in the prompts of this forward.

        Raises: ValueError for features that are not known to be whole, and where prompts are given without ids.
        """
        found: list[Unit] = []
        for modality, output in (given.get("mm_encoder_outputs") or {}).items():
            parts = getattr(output, "pooler_output", None)
            if parts is None or modality not in self.pixels:
                continue
            seal, ids = getattr(output, STAMP, None), given.get("input_ids")
            if seal is None:
                raise InvalidValueError(
                    f"it is not known where each {modality} of these features begins: encode with this model while it "
                    "is patched, and generate without prefill_chunk_size"
                )
            if ids is None:
                raise InvalidValueError(
                    f"with inputs_embeds it is not known where the {modality}s stand in the prompts; give input_ids, "
                    "or call tokenreduce.unpatch(model)"
                )
            check_taken(reduction.reducer, model, seal, len(self.tower_layers(model)))
            lengths = self.lengths(model, parts)
            token = getattr(model.config, f"{modality}_token_id")
            units = find_units(ids == token, lengths, self.facts(model, seal, lengths))
            found += self.leaving(model, units, parts)
        reducer = reduction.reducer
        for name in OF_TOWER & (reducer.required() | reducer.uses):
            check_shown(name, found, name in reducer.required())
        return found

    def install(self, model: Any, reduction: Any) -> None:
        tower, language = model.get_submodule(self.tower), model.get_submodule(self.language)
        tower.register_forward_pre_hook(enter_tower)
        tower.register_forward_hook(stamp, with_kwargs=True, always_call=True)
        self.let_show(model, reduction.reducer)
        model.register_forward_pre_hook(enter_model, with_kwargs=True)
        model.register_forward_hook(leave_model, always_call=True)
        language.register_forward_pre_hook(enter_language, with_kwargs=True)
        language.register_forward_hook(leave_language, always_call=True)
        mark(model, reduction)
        mark(language, reduction)
        for number, layer in enumerate(language.layers):
            if reduction.later and number >= min(reduction.later):
                mark(layer, reduction, number)
                layer.register_forward_pre_hook(enter_layer, with_kwargs=True)
            if reduction.reads_attention(number):
                show_attention(layer.self_attn, reduction, number)

    def let_show(self, model: Any, reducer: Reducer) -> None:
        """Let the tower show what the method reads of it."""
        wanted = reducer.required() | reducer.uses
        reads = wanted - self.missing_for(model, wanted).keys()
        asked = reads & ATTENTION.keys()
        showing = self.showing_all if reducer.averages_tower() else self.showing
        for projection in showing(model) if asked else ():
            projection.register_forward_hook(show_both if len(asked) == 2 else ATTENTION[min(asked)])
        for attention in self.receiving(model) if "received_attention" in reads else ():
            attention.register_forward_pre_hook(show_received, with_kwargs=True)

    def remove(self, model: Any) -> None:
        language = model.get_submodule(self.language)
        reduction: Any = patch_of(model)
        if reduction is not None:  # what Ctrl-C has left
            forget(reduction)
            stop_tower()
        for module in model.modules():
            take_off_hooks(module)
        for layer in language.layers:
            stop_showing(getattr(layer, "self_attn", None), language.config)
            unmark(layer)
        unmark(model)
        unmark(language)


def take_off_hooks(module: nn.Module) -> None:
    """Take our hooks off `module`, and nobody else's."""
    pre = [key for key, hook in module._forward_pre_hooks.items() if hook in PRE]
    post = [key for key, hook in module._forward_hooks.items() if hook in POST]
    for key in pre:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    for key in post:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)
        module._forward_hooks_always_called.pop(key, None)


def check_taken(reducer: Reducer, model: Any, encoded: Encoded, depth: int) -> None:
    """Raise where features are of other layers of the tower, of so many, than those whose attention ranks them."""
    reads = OF_TOWER & (reducer.required() | reducer.uses)
    own = numbers_of(getattr(model.config, "vision_feature_layer", None))
    taken, expected = (from_the_start(states, depth) for states in (encoded.taken, own))
    if reads and taken and expected and taken != expected:
        raise InvalidValueError(
            f"{reducer.name} reads the attention of the layer of the vision tower whose features are taken, which is "
            f"{list(own)} in the configuration, but vision_feature_layer={list(encoded.taken)} was asked for; set "
            "model.config.vision_feature_layer before patching instead"
        )


def check_shown(name: str, units: Sequence[Unit], required: bool) -> None:
    """Raise where the tower has not shown an entry of the very tokens that enter; if not `required`, only where it has
    shown that of others."""
    for unit in units:
        shown = getattr(unit.facts, name)
        wrong = required if shown is None else len(shown) != len(unit.places)
        if wrong:
            raise InvalidValueError(
                f"the vision tower has not shown the {name} of each of these tokens: it is reduced by a patch of its "
                "own, or was changed since; unpatch the tower, or patch the model again"
            )
