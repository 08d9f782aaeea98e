"""`tokenreduce eval` of classification, end to end on the shipped model and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_rows import ROW, read
from PIL import Image

from tokenreduce.errors import InvalidTypeError, InvalidValueError


def test_eval(run: Callable[..., str], tmp_path: Path) -> None:
    output = run("eval", "--method", "tome,random", "--r", "5,9", "--limit", 12, "--json", tmp_path / "eval.json")
    rows, settings = read(tmp_path / "eval.json")
    assert settings["images"] == 12 and settings["model"] == "fashion_vit" and settings["head"] == "trained"
    assert [(row["method"], row["budget"], row["tokens_left"]) for row in rows] == [
        ("unpatched", None, 196),
        ("tome", "r=5", 136),
        ("tome", "r=9", 88),
        ("random", "r=5", 136),
        ("random", "r=9", 88),
    ]
    assert all(row.keys() == ROW for row in rows)
    assert "token error" in output and "1 - cosine" in output


def test_eval_passes_options_on(run: Callable[..., str], tmp_path: Path) -> None:
    run("eval", "--method", "random", "--option", "seed=3", "--r", 9, "--limit", 4, "--json", tmp_path / "a.json")
    run("eval", "--method", "random", "--r", 9, "--limit", 4, "--json", tmp_path / "b.json")
    seeded, plain = (read(tmp_path / name)[0][1] for name in ("a.json", "b.json"))
    assert seeded["token_error"] != plain["token_error"]
    assert seeded["options"] == {"seed": 3} and plain["options"] == {}


def test_eval_of_a_folder_with_neighbours(run: Callable[..., str], tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for shade, name in ((40, "dark"), (220, "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (64, 48), (shade, shade + i, shade)).save(tmp_path / split / name / f"{i}.png")
    choice = ("--model", "vit_tiny_patch16_224", "--no-pretrained", "--data", tmp_path, "--workers", 0)
    run("eval", *choice, "--head", "knn", "--method", "random", "--r", 4, "--json", tmp_path / "e.json")
    rows, settings = read(tmp_path / "e.json")
    assert settings["images"] == 2
    assert rows[0]["top1"] == rows[1]["top1"] == 1.0
    with pytest.raises(InvalidValueError, match=r"has 1000 classes, .* has 2: the labels do not fit"):
        run("eval", *choice, "--method", "random", "--r", 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--head", "linear", "--r", "4"], "unknown head 'linear'; valid: knn, none, trained, zero-shot"),
        (["--head", "zero-shot", "--r", "4"], "give --text-embeddings FILE"),
        (["--method", "tme", "--r", "4"], "unknown method 'tme'"),
        (["--method", "", "--r", "4"], "unknown method ''"),
        (["--method", "pool,random", "--flops", "0.05"], "the reachable minimum"),
        (["--data", "imagenet", "--r", "4"], "give --data-dir"),
        (["--model", "resnet18", "--no-pretrained", "--r", "4"], "holds no backbone that tokenreduce knows"),
    ],
)
def test_eval_refuses_with_a_sentence(run: Callable[..., str], arguments: list[str], sentence: str) -> None:
    with pytest.raises(InvalidValueError, match=sentence):
        run("eval", *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--gallery", "x"], "--gallery is for --head knn, and the head here is trained; give that, or leave"),
        (["--gallery-size", "9"], "--gallery-size is for --head knn, and the head here is trained"),
        (["--head", "none", "--text-model", "a:b"], "--text-model is for --head zero-shot, and the head here is none"),
        (["--text-embeddings", "x"], "--text-embeddings is for --head zero-shot, and the head"),
        (
            ["--head", "zero-shot", "--text-embeddings", "x", "--text-model", "a:b"],
            "--text-model and --text-embeddings both say what classes",
        ),
    ],
)
def test_what_a_head_does_not_use(run: Callable[..., str], arguments: list[str], sentence: str) -> None:
    with pytest.raises(InvalidTypeError, match=sentence):
        run("eval", "--r", "4", *arguments)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--all-images"], "--all-images is for fashion-mnist, and the data here are {}; leave"),
        (["--data-dir", "."], "{} does not use it"),
    ],
)
def test_what_a_folder_does_not_use(run: Callable[..., str], tmp_path: Path, option: list[str], said: str) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    with pytest.raises((InvalidTypeError, InvalidValueError), match=said.format(tmp_path)):
        run("eval", "--r", "4", "--data", tmp_path, *option)
