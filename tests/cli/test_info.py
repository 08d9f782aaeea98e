"""`tokenreduce info`: what is here, for reports of faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tokenreduce
from tokenreduce.lab import installation
from tokenreduce.ops.native import dispatch

FAULT = "no compiler was found"


def test_info_names_versions_kernels_and_families(run: Callable[..., str], tmp_path: Path) -> None:
    output = run("info", "--json", tmp_path / "info.json")
    found = json.loads((tmp_path / "info.json").read_text())
    assert found["libraries"]["torch"] == torch.__version__ in output
    assert found["libraries"]["tokenreduce"] == tokenreduce.__version__
    assert found["methods"] == tokenreduce.methods() and found["threads"] == torch.get_num_threads()
    for library, family in (("timm", "vit"), ("transformers", "dinov2"), ("scan", "vim"), ("vision_language", "llava")):
        assert family in found["families"][library]
    assert found["devices"][0] == "cpu" and set(found["kernels"]) == {"cpu", "triton", "cuda"}


def test_info_says_why_kernels_cannot_be_used_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "load", lambda: FAULT)
    monkeypatch.setattr(installation, "LIBRARIES", {"torch": "torch", "no_such_module": "surely-not-installed"})
    found = installation.installation()
    assert found["kernels"]["cpu"] == FAULT and found["libraries"]["surely-not-installed"] is None
