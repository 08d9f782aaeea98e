"""benchmarks/quality.py, which makes the table of the README: its arithmetic, and all of it on a few images."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts import example, script

from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.quality.classification import ClassificationLane

KEYS = {"method", "budget", "options", "macs", "uncounted", "tokens_left", "flops_share", "top1"}
KEYS |= {"top1_change", "top1_change_interval"}
OF_TOME = [f"_of_tome{end}" for end in ("", "_interval", "_geometric", "_geometric_interval")]
KEYS |= {f"{name}_error{end}" for name in ("class", "token") for end in ("", "_interval", *OF_TOME)}


@pytest.fixture
def quality() -> Any:
    return script("quality")


def arm(method: str, budget: str, macs: int, seed: int, count: int = 40) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    row = {"method": method, "budget": budget, "options": {}, "macs": macs, "tokens_left": 9, "uncounted": {}}
    errors = {name: torch.rand(count, generator=generator).double() + 0.1 for name in ("class_error", "token_error")}
    return {"row": row, "top1": (torch.rand(count, generator=generator) < 0.6).double(), **errors}


def test_summary_against_one_draw_at_a_time(quality: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "DRAWS", 60)
    arms = [arm("evit", "flops=0.6", 55, 1), arm("tome", "flops=0.8", 80, 2), arm("tome", "flops=0.6", 60, 3)]
    full = {"row": {"macs": 100}, "top1": arm("", "", 0, 4)["top1"]}
    times = np.random.default_rng(0).multinomial(40, [1 / 40] * 40, 60)
    whole, evit, *tomes = quality.summarise(arms, full)
    top1 = sum(full["top1"].tolist()) / 40
    assert whole == {"method": "unpatched", "budget": None, "macs": 100, "flops_share": 1.0, "top1": top1}
    assert evit.keys() == KEYS and (evit["flops_share"], evit["tokens_left"]) == (0.55, 9)

    def resampled(values: torch.Tensor) -> list[float]:
        return [sum(often * value for often, value in zip(row, values.tolist(), strict=True)) / 40 for row in times]

    def middle(values: list[float]) -> Any:
        return pytest.approx(np.quantile(values, (0.025, 0.975)).tolist(), abs=1e-12)

    own, reference = arms[0], arms[2]
    change = (own["top1"] - full["top1"]).tolist()
    assert evit["top1"] == pytest.approx(sum(own["top1"].tolist()) / 40)
    assert evit["top1_change"] == pytest.approx(sum(change) / 40) and evit["top1_change"] != 0
    assert list(evit["top1_change_interval"]) == middle(resampled(own["top1"] - full["top1"]))
    for name in ("class_error", "token_error"):
        mine, theirs = resampled(own[name]), resampled(reference[name])
        assert evit[name] == pytest.approx(sum(own[name].tolist()) / 40)
        assert list(evit[f"{name}_interval"]) == middle(mine)
        assert evit[f"{name}_of_tome"] == pytest.approx(sum(own[name].tolist()) / sum(reference[name].tolist()))
        assert list(evit[f"{name}_of_tome_interval"]) == middle([a / b for a, b in zip(mine, theirs, strict=True)])
        logs = torch.tensor([math.log(a / b) for a, b in zip(own[name], reference[name], strict=True)])
        assert evit[f"{name}_of_tome_geometric"] == pytest.approx(math.exp(logs.mean()))
        found = [math.exp(mean) for mean in resampled(logs)]
        assert list(evit[f"{name}_of_tome_geometric_interval"]) == pytest.approx(middle(found).expected, abs=1e-6)
    for row in tomes:
        assert row["class_error_of_tome"] == 1 and list(row["token_error_of_tome_interval"]) == [1, 1]


def test_a_few_images_end_to_end(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    fashion_mnist.write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images[:5, 0])
    fashion_mnist.write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels[:5].byte())
    settings = {"BATCH": 3, "DRAWS": 50, "BUDGETS": (0.6, 0.1), "RUNS": tmp_path / "runs", "RESULTS": tmp_path}
    for name, value in settings.items():
        monkeypatch.setattr(quality, name, value)
    monkeypatch.setattr(sys, "argv", ["quality.py", "--data-dir", str(tmp_path), "--method", "tome,pool"])
    shown: list[str] = []
    show = ClassificationLane.show

    def spy(lane: ClassificationLane, *arguments: Any) -> Any:
        shown.append("unpatched" if lane.arm is None else str(lane.arm))
        return show(lane, *arguments)

    monkeypatch.setattr(ClassificationLane, "show", spy)
    quality.main()
    ran = ["unpatched", "unpatched", "tome at flops=0.6", "tome at flops=0.6", "pool at flops=0.6", "pool at flops=0.6"]
    assert shown == ran, "an arm that cannot be reached runs on nothing"
    first = (tmp_path / "quality.json").read_text()
    result = json.loads(first)
    assert (result["images"], result["draws"]) == (5, 50)
    full, *rows, refused, other = result["rows"]
    assert full["method"] == "unpatched" and full["flops_share"] == 1
    assert [(row["method"], row["budget"]) for row in rows] == [("tome", "flops=0.6"), ("pool", "flops=0.6")]
    assert all(row.keys() == KEYS for row in rows)
    assert all(row["flops_share"] == pytest.approx(0.6, abs=0.02) for row in rows)
    assert {row["budget"] for row in (refused, other)} == {"flops=0.1"}
    assert all("reachable minimum" in row["refused"] for row in (refused, other))

    files = sorted((tmp_path / "runs/quality").glob("*/*"))
    assert [path.name for path in files] == ["pool_0.1.npz", "pool_0.6.npz", "tome_0.1.npz", "tome_0.6.npz"], (
        "no partial file is left"
    )
    files[1].unlink()
    (tmp_path / "quality.json").unlink()
    shown.clear()
    quality.main()
    assert shown == ["unpatched", "unpatched", "pool at flops=0.6", "pool at flops=0.6"], "what is there is not redone"
    assert (tmp_path / "quality.json").read_text() == first
    assert capsys.readouterr().out.count("wrote") == 2
    shown.clear()
    monkeypatch.setattr(quality, "fingerprint", lambda settings: "other code")
    quality.main()
    assert len(shown) == 6, "what other code has measured is no row of this one"


def test_a_checkpoint_that_was_trained_is_read(quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `train_fashion.py` writes it today; and it does not take the place of the shipped model's results."""
    train = example("train_fashion")
    images, labels = fashion_mnist.load("test", fashion_mnist.SUBSET)
    monkeypatch.setattr(
        train,
        "split_photos",
        lambda folder, limit: {"train": (images[:8], labels[:8]), "val": (images[:8], labels[:8])},
    )
    monkeypatch.setattr(fashion_mnist, "find", lambda folder: tmp_path)
    sizes = ["--size", "width=20", "--size", "heads=2", "--size", "depth=2"]
    command = ["train_fashion.py", "--model", "fashion_vit", "--out", str(tmp_path), "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", [*command, "--phases", "4:1,2:1", *sizes])
    train.main()
    model = quality.load(tmp_path / "checkpoint.pt")
    assert len(model.blocks) == 2 and model.embed_dim == 20 and model.pos_embed.shape[1] == 197
    monkeypatch.setattr(sys, "argv", ["quality.py", "--data-dir", "a", "--checkpoint", "b"])
    with pytest.raises(SystemExit):
        quality.parse()
