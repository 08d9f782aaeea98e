"""Tests marked `interpreted` run on the CPU, in a process where Triton interprets its kernels."""

from __future__ import annotations

import pytest
from interpreter import in_interpreter


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("interpreted") is None:
        return None
    pytest.importorskip("triton")
    names = pyfuncitem._fixtureinfo.argnames
    in_interpreter(pyfuncitem.function, **{name: pyfuncitem.funcargs[name] for name in names})
    return True
