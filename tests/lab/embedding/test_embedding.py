"""Features of a collection by Ray: each record once, also where a worker or the process that leads is killed."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_pooling import yolos
from torch import nn

import tokenreduce
from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab import environment
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.inputs import fashion_input
from tokenreduce.lab.embedding import embedding
from tokenreduce.lab.embedding.cluster import connect
from tokenreduce.lab.embedding.embedding import embed, prepare
from tokenreduce.lab.embedding.listing import parts_of
from tokenreduce.lab.embedding.pooling import pooled
from tokenreduce.lab.embedding.store import Store
from tokenreduce.lab.shipped.fashion_vit import fashion_vit

ray = pytest.importorskip("ray", reason="embed is NOT TESTED: pip install 'tokenreduce[ray]'")
pq = pytest.importorskip("pyarrow.parquet")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests


LEADER = os.getpid()


@pytest.fixture(scope="module")
def runtime() -> Iterator[str]:
    """The address of a small cluster, which this process is connected to."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    context = ray.init(
        address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, and two that cannot be read: one is alone in the last part."""
    root = tmp_path_factory.mktemp("images")
    for number, image in enumerate(fashion_mnist.load("test", fashion_mnist.SUBSET)[0][:40]):
        Image.fromarray(image[0].numpy()).save(root / f"{number:02}.png")
    (root / "07.png").write_bytes(b"no picture")
    (root / "z").mkdir()
    (root / "z" / "last.jpg").write_bytes(b"")
    return root


def records(out: Path) -> dict[str, Any]:
    """Features by key, read as people read them; each key is there once."""
    table = pq.read_table(out).to_pydict()
    assert len(set(table["key"])) == len(table["key"])
    return dict(zip(table["key"], table["feature"], strict=True))


def expected(images: Path, model: nn.Module) -> dict[str, Any]:
    """The features one by one."""
    found = {}
    for path in images.glob("*.png"):
        if path.name != "07.png":
            with torch.inference_mode():
                states = model.forward_features(fashion_input(Image.open(path))[None])  # type: ignore[operator]
                found[path.name] = model.forward_head(states, pre_logits=True)[0].tolist()  # type: ignore[operator]
    return found


def check(out: Path, images: Path, model: nn.Module) -> None:
    found, wanted = records(out), expected(images, model)
    assert found.keys() == wanted.keys() and len(found) == 39
    for key, feature in wanted.items():
        np.testing.assert_allclose(found[key], feature, atol=1e-5)
    bad = [json.loads(line) for line in (out / "_bad.jsonl").read_text().splitlines()]
    assert [one["key"] for one in bad] == ["07.png", "z/last.jpg"]
    assert all(str(images / one["key"]) in one["reason"] for one in bad)
    assert not list(out.glob(".*"))


def die_once(module: nn.Module, args: Any, marker: Path) -> None:
    """A hook that kills its process in the second forward, the first time."""
    if marker.with_suffix(".once").exists() and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    marker.with_suffix(".once").touch()


def test_the_part_of_a_killed_worker_is_done_again(runtime: str, images: Path, tmp_path: Path) -> None:
    model: Any = tokenreduce.patch(fashion_vit(), "tome", r=9)
    marker = tmp_path / "killed"
    hook = model.norm.register_forward_pre_hook(functools.partial(die_once, marker=marker))
    marker.with_suffix(".once").touch()
    try:
        # Trying the model out in this process is the forward that must not count.
        with pytest.MonkeyPatch.context() as patched:
            name = "tokenreduce.lab.embedding.embedding.try_out"
            patched.setattr(name, lambda *arguments: ((1, 28, 28), 64))
            told: list[float] = []
            found = embed(images, model, tmp_path / "out", part_size=8, progress=lambda done, what: told.append(done))
    finally:
        hook.remove()
    assert marker.exists(), "no worker was killed"
    assert (found.records, found.parts, found.before, len(found.bad)) == (39, 6, 0, 2)
    assert told == sorted(told) and told[-1] == 1 and len(told) == 6
    check(tmp_path / "out", images, model)


def command_of(images: Path, out: Path) -> list[str]:
    command = ["embed", "--data", str(images), "--model", "fashion_vit", "--out", str(out), "--part-size", "2"]
    return [*command, "--method", "ward", "--flops", "0.6"]


def start(images: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tokenreduce", *command_of(images, out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def modified(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


def test_the_same_command_goes_on_where_it_was_killed(
    runtime: str, images: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    out = tmp_path / "features"
    with start(images, out, "--address", runtime) as job:
        while len(modified(out)) < 3:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.005)
        job.kill()
    (out / ".part-00000003.parquet.0.writing").write_bytes(b"half")
    time.sleep(1)  # workers of the process that was killed end
    before = modified(out)
    assert 3 <= len(before) < 21
    command = command_of(images, out)
    said = run(*command)
    assert "39 records in 21 parts" in said and "2 images cannot be read" in said and "07.png" in said
    check(out, images, tokenreduce.patch(fashion_vit(), "ward", flops=0.6))
    after = modified(out)
    assert before.items() <= after.items(), "parts were written again"
    schema = pq.read_schema(out / "part-00000000.parquet")
    kind, about = schema.field("feature").type, json.loads(schema.metadata[b"tokenreduce"])
    assert str(kind).startswith("fixed_size_list<") and kind.list_size == 64
    assert about["patch"]["method"] == "ward" and about["model"] == "fashion_vit"
    assert "21 of 21 parts were there" in run(*command)
    assert modified(out) == after
    with pytest.raises(InvalidValueError, match=r"holds features that were made otherwise \(patch: .*\); give another"):
        run(*command[:-1], "0.7")
    (out / "part-00000001.parquet").write_bytes((out / "part-00000003.parquet").read_bytes())
    with pytest.raises(InvalidValueError, match="was changed; begin anew"):
        run(*command)


@pytest.mark.full
def test_five_kills_at_random(images: Path, tmp_path: Path) -> None:
    """Of the process that leads, with a cluster of its own each time, and so of all its workers."""
    draw, out = random.Random(0), tmp_path / "out"
    for _ in range(5):
        with start(images, out, "--workers", "1") as job:
            time.sleep(draw.uniform(5, 40))
            job.kill()
    with start(images, out, "--workers", "1") as job:
        said = job.communicate(timeout=300)[0]
    assert job.returncode == 0, said
    check(out, images, tokenreduce.patch(fashion_vit(), "ward", flops=0.6))


def test_wrong_arguments_are_refused_in_a_sentence(images: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    def refused(sentence: str, *more: object, data: Path = images, kind: Any = InvalidValueError) -> None:
        with pytest.raises(kind, match=sentence):
            run("embed", "--data", data, "--model", "fashion_vit", "--out", tmp_path / "out", *more)
        assert not (tmp_path / "out").exists()

    (tmp_path / "empty").mkdir()
    refused("empty holds no images", data=tmp_path / "empty")
    refused("unknown pool 'max'", "--pool", "max")
    refused("unknown device 'tpu'", "--device", "tpu")
    refused("--flops needs --method", "--flops", 0.6, kind=InvalidTypeError)
    refused("are 2 choices; give one", "--method", "ward", "--flops", "0.6,0.7", kind=InvalidTypeError)
    refused("leave --flops out", "--schedule", "s.json", "--flops", 0.6, kind=InvalidTypeError)
    refused("the reachable minimum", "--method", "pool", "--flops", 0.05)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.parquet").write_bytes(b"")
    with pytest.raises(InvalidValueError, match="holds Parquet files of something else"):
        embed(images, "fashion_vit", tmp_path / "other")
    with pytest.raises(InvalidTypeError, match="flops needs a method to patch with"):
        embed(images, "fashion_vit", tmp_path / "out", flops=0.6)
    with pytest.raises(InvalidValueError, match="unknown device 'cuda:0'; valid: cpu, cuda"):
        embed(images, "fashion_vit", tmp_path / "out", device="cuda:0")
    for more in ({"image_size": 28}, {"pretrained": False}):
        with pytest.raises(InvalidTypeError, match="are for models by name; change the model that is given"):
            embed(images, fashion_vit(), tmp_path / "out", **more)  # type: ignore[arg-type]
    with pytest.raises(InvalidValueError, match="too many images of"):
        embed(images, "fashion_vit", tmp_path / "out", part_size=10**6)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("127.0.0.1:1", "nothing answers there"), ("nowhere", "give HOST:PORT"), ("h:70000", "nothing answers there")],
)
def test_a_wrong_address_is_told_at_once(address: str, sentence: str) -> None:
    with pytest.raises(InvalidValueError, match=sentence):
        connect(ray, address)


def test_a_model_of_transformers(runtime: str, images: Path, tmp_path: Path) -> None:
    """Its hooks of a forward cannot go to workers, which have to learn what the class can give."""
    model = yolos()
    embed(images, model, tmp_path / "out", pool="mean", part_size=64)
    with torch.inference_mode():
        wanted = pooled(model, model.transform()(Image.open(images / "00.png").convert("RGB"))[None], "mean")
    np.testing.assert_allclose(records(tmp_path / "out")["00.png"], wanted[0], atol=1e-5)
    with pytest.raises(
        InvalidValueError, match=r"^this Pretrained cannot be sent to workers \(cannot pickle .*by name"
    ):
        embed(images, model, tmp_path / "other", pool="mean", part_size=64)


def fail(module: nn.Module, args: Any) -> None:
    if os.getpid() != LEADER:
        raise KeyError("a fault of the model")


def test_what_fails_in_a_worker_is_said(runtime: str, images: Path, tmp_path: Path) -> None:
    model = fashion_vit()
    model.norm.register_forward_pre_hook(fail)  # type: ignore[union-attr]
    with pytest.raises(
        InvalidValueError, match=r"^a worker failed \(KeyError: 'a fault of the model'\); what is written"
    ):
        embed(images, model, tmp_path / "out", part_size=64)


def test_settings_say_versions_and_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path) -> None:
    """Features of two versions do not mix in one folder."""
    patched = (fashion_vit(), None, True, "features", "ward", {"flops": 0.6})
    before = prepare(*patched)[1]
    assert before["versions"].keys() >= {"tokenreduce", "torch", "timm"} and len(before["code"]) == 16
    monkeypatch.setattr(embedding, "digest_of_method", lambda name: f"other code of {name}")
    assert prepare(*patched)[1]["code"] == "other code of wa"
    monkeypatch.undo()
    store = Store(tmp_path / "out")
    store.begin(before, parts_of(images, 8))
    monkeypatch.setattr(environment, "version", lambda name: "99")
    after = prepare(*patched)[1]
    with pytest.raises(InvalidValueError, match=r"made otherwise \(versions: .*'torch': '99'"):
        store.begin(after, parts_of(images, 8))
