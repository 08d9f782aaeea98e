from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import choosing
import pytest
import timm  # noqa: F401  adapters load only when their library is there
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)
settings.register_profile("every run anew", deadline=None, max_examples=60)
# What CI takes: whether a change lands must not depend on luck. Runs by hand go on finding new examples.
settings.register_profile("same every time", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "every run anew"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command of the command line and gives its output on a wide terminal; its errors are raised."""
    from typer.testing import CliRunner

    from tokenreduce.cli.app import app

    def invoke(*arguments: object) -> str:
        monkeypatch.setattr("tokenreduce.cli.output.console.width", 200)
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return invoke


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[nn.Module, float]], None]:
    """A clock that stands still, except that each forward of a model takes the seconds it is given here."""
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    def set_seconds(taken: Mapping[nn.Module, float]) -> None:
        for model, seconds in taken.items():
            model.register_forward_hook(lambda module, args, out, seconds=seconds: advance(seconds))
        monkeypatch.setattr(time, "perf_counter", lambda: now)

    return set_seconds


def pytest_configure(config: pytest.Config) -> None:
    choosing.full_product = "full" in config.option.markexpr.replace("not full", "")
