"""Sentences of the model card: how good the shipped models are."""

from __future__ import annotations

from typing import Any

from sentences import listed

Data = dict[str, Any]
CARD = "tokenreduce/lab/shipped/assets/MODEL_CARD.md"


SOURCE = " (`benchmarks/shipped_models.py`; these photographs had no part in training or any choice.)"


def classifier(found: Data) -> str:
    return f"Of the {found['images']:,} test photographs it gets **{found['top1']:.2%}** right.{SOURCE}"


def dense(segmenter: Data, detector: Data) -> str:
    return (
        f"On {segmenter['images']:,} scenes of the test photographs the segmenter has an mIoU of "
        f"**{segmenter['miou']:.2%}**, and the detector an AP50 of **{detector['ap50']:.2%}**.{SOURCE}"
    )


def answers(found: Data) -> str:
    kinds = [f"{kind} {exact:.1%}" for kind, exact in found["kinds"].items()]
    return (
        f"Of its answers to {found['questions']:,} questions about {found['images']:,} scenes of the test photographs "
        f"**{found['exact']:.1%}** are exact, all words right: {listed(kinds)}.{SOURCE}"
    )


def tables(read: dict[str, Data]) -> dict[tuple[str, str], str]:
    """(file, marker) -> sentence, as in `make_table.tables`."""
    models = read["shipped_models"]["models"]
    return {
        (CARD, "fashion_vit"): classifier(models["fashion_vit"]),
        (CARD, "fashion_vim"): classifier(models["fashion_vim"]),
        (CARD, "scenes"): dense(models["scene_segmenter"], models["scene_detector"]),
        (CARD, "scene_vlm"): answers(models["scene_vlm"]),
    }
