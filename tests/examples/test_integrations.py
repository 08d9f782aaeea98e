"""The examples for other libraries, with random or shipped weights: they run, reduce, and leave the library's own work
as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from PIL import Image
from scripts import example

import tokenreduce


def test_pipelines_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    module = example("transformers_pipeline")
    for task, width in (("image-classification", 2), ("image-feature-extraction", 192)):
        found = module.main(["--task", task])
        assert found["whole"].shape == found["fewer"].shape == (4, width)
        assert found["report"].flops_share == pytest.approx(0.6, abs=0.02)
        assert 0 < (found["whole"] - found["fewer"]).norm() / found["whole"].norm() < 0.5
    # What the pipeline said is what the patched model says by itself.
    name = module.save_small_vit(str(tmp_path))
    model = tokenreduce.patch(module.AutoModel.from_pretrained(name).eval(), "ward", flops=0.6)
    pixels = module.AutoImageProcessor.from_pretrained(name)(module.noise(4), return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(found["fewer"], model(**pixels).last_hidden_state[:, 0], atol=1e-4)


def test_trainer_of_transformers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")
    found = example("transformers_trainer").main(["--images", "1000", "--epochs", "2"])
    assert found["share"] == pytest.approx(0.6, abs=0.03)
    assert found["patched"] > found["untrained"] + 0.1  # ten classes: it has learned something
    assert abs(found["patched"] - found["unpatched"]) < 0.1


SCRIPT = """
import json, sys
from timm.models import create_model, load_checkpoint
import torch
name, checkpoint, out = sys.argv[1:]
model = create_model(name, pretrained=False, num_classes=2)
load_checkpoint(model, checkpoint)  # as timm's own script does, after the model is made
with torch.no_grad():
    torch.save(model.eval()(torch.ones(1, 3, 160, 160)), out)
"""


@pytest.mark.parametrize("method", ["ward", "none"])
def test_a_script_of_timm(method: str, tmp_path: Path) -> None:
    """A script with validate.py's own calls; that file is not in timm's wheel."""
    script, weights, out = tmp_path / "script.py", tmp_path / "weights.pth", tmp_path / "out.pt"
    script.write_text(SCRIPT)
    model = timm.create_model("test_vit", num_classes=2).eval()
    torch.save(model.state_dict(), weights)
    create = timm.create_model
    [made] = example("timm_validate").main(["--method", method, str(script), "test_vit", str(weights), str(out)])
    if method != "none":
        assert tokenreduce.report(made).flops_share == pytest.approx(0.6, abs=0.02)
        tokenreduce.patch(model, method, flops=0.6)
    with torch.no_grad():
        assert torch.allclose(torch.load(out), model(torch.ones(1, 3, 160, 160)), atol=1e-5)
    assert timm.create_model is timm.models.create_model is create  # and all is as it was


def test_a_registered_model_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second way, of the docstring."""
    text = example("timm_validate").__doc__.partition("does the same:\n")[2]
    code = "\n".join(line.removeprefix("    ") for line in text.splitlines())
    module = ModuleType("registers")
    vars(module).update(timm=timm, tokenreduce=tokenreduce)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # timm looks it up
    exec(code.replace("deit_small_patch16_224", "test_vit"), vars(module))
    model = timm.create_model("deit_small_ward", num_classes=3).eval()
    assert model(torch.ones(1, 3, 160, 160)).shape == (1, 3)
    assert tokenreduce.report(model).flops_share == pytest.approx(0.6, abs=0.02)


def test_zero_shot_with_open_clip(tmp_path: Path) -> None:
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    module = example("open_clip_zero_shot")
    found = module.main(["--classes", "cat", "dog", "cup"])
    assert found["whole"].shape == found["fewer"].shape == (8, 3)
    assert found["report"].flops_share == pytest.approx(0.6, abs=0.02)
    assert torch.allclose(found["fewer"].sum(-1), torch.ones(8)) and not torch.equal(found["fewer"], found["whole"])
    Image.new("L", (50, 40), 99).save(tmp_path / "grey.png")
    assert module.main(["--images", str(tmp_path / "grey.png")])["fewer"].shape == (1, 4)


def test_lightning() -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    found = example("lightning_module").main(["--images", "128"])
    assert found["whole"] > 0.8 and abs(found["fewer"] - found["whole"]) < 0.05
    assert found["trained"] > 0.8 and abs(found["restored"] - found["trained"]) < 0.05
    assert found["report"].flops_share == pytest.approx(0.6, abs=0.02)


def test_accelerate() -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    found = example("accelerate_loop").main(["--images", "101"])  # in batches of 64: the last is not full
    assert found["whole"] > 0.8 and abs(found["fewer"] - found["whole"]) < 0.05 and found["trained"] > 0.8
    assert found["report"].flops_share == pytest.approx(0.6, abs=0.02)
