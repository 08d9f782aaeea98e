"""Tests marked `interpreted` run on the CPU, in a process where Triton interprets its kernels."""

from __future__ import annotations

import pytest
from interpreter import by_name, in_interpreter


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("interpreted") is None:
        return None
    pytest.importorskip("triton")
    names = pyfuncitem._fixtureinfo.argnames
    where = pyfuncitem.module.__name__, pyfuncitem.function.__name__
    in_interpreter(by_name, *where, {name: pyfuncitem.funcargs[name] for name in names})
    return True
