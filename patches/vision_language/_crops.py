"""What LLaVA-NeXT and LLaVA-OneVision share: an image is the whole of it and then its crops, row by row, each with the
end of a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreduce.forward.language.units import Unit

from ._adapter import VisionLanguageAdapter


class CropsAdapter(VisionLanguageAdapter):
    tower = "vision_tower"
    within = True

    def lacks(self, model: Any) -> dict[str, str]:
        lacks = dict.fromkeys(("grid", "positions"), "its images are several grids one after the other")
        return lacks | {"class_attention": "its vision tower does not see how the crops of an image are put together"}

    def leaving(self, model: Any, units: list[Unit], parts: Sequence[Any]) -> list[Unit]:
        words = [(part != model.image_newline.to(part)).any(-1) for part in parts]
        pairs = zip(units, words, strict=False)
        return [unit._replace(places=unit.places[word.to(unit.places.device)]) for unit, word in pairs]
