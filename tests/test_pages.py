"""Every block of Python on a page of docs/ runs as it stands, one after the other, as a reader would type them.

Weights are random where a page asks for trained ones: tests do not download. What a page takes for granted (a model,
images) stands in `GIVEN` below; a new page needs nothing here if its blocks run as they are.
"""

from __future__ import annotations

import functools
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import prompting
import pytest
import timm
import torch
import transformers

import tokenreduce
from tokenreduce.lab.shipped.fashion_vit import fashion_vit
from tokenreduce.models.vim import vim_tiny
from tokenreduce.reducers import registry

DOCS = Path(__file__).parents[1] / "docs"
Given = dict[str, Any]
FAST = {"onnx.md": 2, "targets.md": 2}  # blocks of the model: exports take long


def blocks(page: Path) -> list[str]:
    """Also those within a list."""
    found = re.findall(r"^( *)```python\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


PAGES = [page for page in sorted(DOCS.glob("*.md")) if blocks(page)]


def calibrate(patched: pytest.MonkeyPatch) -> Given:
    """Two methods on random images, instead of all on many."""
    few = functools.partial(tokenreduce.calibrate, methods=("tome", "ward"), greedy=False)
    patched.setattr(tokenreduce, "calibrate", few)
    images = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    files = [f"{i}.png" for i in range(32)]
    return {
        "tokenreduce": tokenreduce,
        "model": fashion_vit(),
        "other": fashion_vit(),
        "images": images,
        "files": files,
    }


def gpu(patched: pytest.MonkeyPatch) -> Given:
    if not torch.cuda.is_available():
        pytest.skip("the page is for a GPU, and none is here")
    return {}


def state_space(patched: pytest.MonkeyPatch) -> Given:
    """A file as it was released."""
    torch.save({"model": vim_tiny().state_dict()}, "vim_t_midclstok_76p1acc.pth")
    return {}


def video(patched: pytest.MonkeyPatch) -> Given:
    config = transformers.VideoMAEConfig(
        num_hidden_layers=6, hidden_size=96, num_attention_heads=2, intermediate_size=384
    )
    made = classmethod(lambda cls, name: cls(config))
    patched.setattr(transformers.VideoMAEForVideoClassification, "from_pretrained", made)
    return {}


LMMS_EVAL = """
import sys, tokenreduce, transformers
model = transformers.LlavaForConditionalGeneration.from_pretrained("any")
assert tokenreduce.report(model).method == "divprune" and sys.argv[1:] == ["--tasks", "pope"]
"""


def vlm(patched: pytest.MonkeyPatch) -> Given:
    """A small LLaVA, and a processor that has read one prompt."""
    row = next(row for row in prompting.load_rows() if row.name == "llava")
    made = classmethod(lambda cls, name: prompting.new(row))
    patched.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", made)
    reader = functools.partial(lambda given, **said: given, row.inputs([(2, "a", 3)]))
    reader.batch_decode = lambda answers: answers.tolist()  # type: ignore[attr-defined]
    patched.setattr(transformers.AutoProcessor, "from_pretrained", classmethod(lambda cls, name: reader))
    # The script that patches what lmms-eval loads: a stand-in loads a model and looks whether it is.
    patched.setattr(transformers.LlavaForConditionalGeneration, "from_pretrained", made)
    patched.setattr(sys, "argv", ["patched.py", "LlavaForConditionalGeneration", "divprune", "0.1", "--tasks", "pope"])
    patched.syspath_prepend(Path.cwd())
    Path("lmms_eval.py").write_text(LMMS_EVAL)
    return {}


GIVEN: dict[str, Callable[[pytest.MonkeyPatch], Given]] = {
    "calibrate.md": calibrate,
    "gpu.md": gpu,
    "state-space.md": state_space,
    "video.md": video,
    "vlm.md": vlm,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, monkeypatch, tmp_path) -> None:
    tokenreduce.methods()  # all are registered before the copy is made
    create, known = timm.create_model, dict(registry._registry)
    small = {"depth": FAST[page.name]} if page.name in FAST else {}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kw: create(name, **kw, **small))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    vars(module).update(GIVEN.get(page.name, lambda patched: {})(monkeypatch))
    try:
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), vars(module))
    finally:
        registry._registry.clear()
        registry._registry.update(known)


def test_only_pages_that_are_there_are_prepared() -> None:
    names = {page.name for page in PAGES}
    assert GIVEN.keys() | FAST.keys() <= names and len(names) >= 13
