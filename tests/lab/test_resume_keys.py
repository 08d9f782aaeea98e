"""What `--resume` and `compare` tell apart: every input that figures depend on, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_models
import pytest
import torch
from safetensors.torch import save_file

from tokenreduce import Schedule, patch, save_patch
from tokenreduce.lab import environment
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.quality import loading, sharing
from tokenreduce.lab.quality.evaluation import Evaluation, classification, dense
from tokenreduce.lab.quality.loading import Head, Setup, load
from tokenreduce.lab.quality.sharing import Sharing
from tokenreduce.lab.shipped.fashion_vit import fashion_vit

ARMS = [Arm("random", r=4)]


class KeyFoundError(Exception):
    """Carries a key out of an evaluation, before anything is measured."""


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Callable[[Evaluation], str]:
    """The key that finished batches of an evaluation are kept by."""

    def stop(path: Path, team: Any, key: str) -> None:
        raise KeyFoundError(key)

    monkeypatch.setattr(sharing, "Ledger", stop)

    def key_of(evaluation: Evaluation) -> str:
        with pytest.raises(KeyFoundError) as caught:
            evaluation.measure(lambda fraction, what: None)
        return str(caught.value)

    return key_of


def setup(**changes: Any) -> Setup:
    return Setup(limit=4, sharing=Sharing(resume=Path("never.jsonl")), **changes)


def test_all_images(key: Callable[[Evaluation], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit both are as many."""
    monkeypatch.setattr(fashion_mnist, "find", lambda folder: fashion_mnist.SUBSET)
    few, many = (classification(ARMS, setup(), all_images=given) for given in (False, True))
    assert (few.settings["all_images"], many.settings["all_images"]) == (False, True)
    assert few.settings["images"] == many.settings["images"] and key(few) != key(many)
    assert key(few) == key(classification(ARMS, setup()))


def test_texts(key: Callable[[Evaluation], str], tmp_path: Path) -> None:
    """Also where a file has the same name and holds others."""
    file, seen = tmp_path / "texts.safetensors", []
    for shift in (0.0, 1.0, 1.0):
        save_file({"embeddings": torch.arange(640.0).view(10, 64) + shift}, file)
        ready = classification(ARMS, setup(), Head("zero-shot", text_embeddings=file))
        seen.append((key(ready), ready.settings["text_digest"]))
        assert ready.settings["text"] == str(file)
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1] and seen[1] == seen[2]


def test_labels_of_ade20k(key: Callable[[Evaluation], str], ade: Path, tmp_path: Path) -> None:
    model = f"hf:{dense_models.segmenter(tmp_path / 'model', 150)}"
    found = [
        dense("segmentation", ARMS, setup(model=model, data="ade20k", data_dir=ade, reduced_labels=reduced))
        for reduced in (False, True)
    ]
    assert [one.settings["reduced_labels"] for one in found] == [False, True]
    assert key(found[0]) != key(found[1])


def test_the_processor_of_a_model(key: Callable[[Evaluation], str], tmp_path: Path) -> None:
    """Images are as large and as bright as it says, and weights say nothing of that."""
    folder = dense_models.segmenter(tmp_path, 11)
    file = folder / "preprocessor_config.json"
    keys = []
    for mean in (0.5, 0.5, 0.4):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [mean] * 3}))
        keys.append(key(dense("segmentation", ARMS, setup(model=f"hf:{folder}", data="scenes"))))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(("room", "changed"), [(environment, "version"), (sharing, "place_of")])
def test_versions_and_devices(
    key: Callable[[Evaluation], str], monkeypatch: pytest.MonkeyPatch, room: Any, changed: str
) -> None:
    before = key(classification(ARMS, setup()))
    monkeypatch.setattr(room, changed, lambda of: "another")
    assert key(classification(ARMS, setup())) != before


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "COMPUTING", ("torch", "no_such_library"))
    assert environment.installed()["no_such_library"] is None and environment.installed()["torch"]
    assert sharing.place_of(fashion_vit(pretrained=False)) == "cpu"


def test_what_a_file_of_a_schedule_holds(tmp_path: Path) -> None:
    file, told = tmp_path / "schedule.json", []
    for share in (0.5, 0.6):
        save_patch(patch(fashion_vit(), "tome", schedule=Schedule.keep({3: share})), file)
        told.append(sharing.facts_of_arm(Arm("tome", schedule=str(file))))
    assert told[0] != told[1] and sharing.facts_of_arm(Arm("tome", r=4))[2] == ""


def test_texts_are_encoded_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def encode(*given: Any) -> torch.Tensor:
        asked.append(given)
        return torch.ones(10, 64)

    monkeypatch.setattr(loading, "text_embeddings", encode)
    loaded = load(Setup(limit=4), Head("zero-shot", text_model="a:b"))
    heads = [loaded.judge(arms).lanes[0].make_head for arms in ([], ARMS, ARMS)]
    assert asked == [(None, "a:b", fashion_mnist.CLASSES)] and heads[0] is heads[1] is heads[2]
