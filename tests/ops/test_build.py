"""Building kernels: which compiler is called, where the result is kept, and what is remembered of a failure."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenreduce.errors import InvalidValueError
from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import build, dispatch


def tool(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENREDUCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cxx_is_split_like_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap, real = tool(tmp_path / "wrap", 'exec "$@"'), tool(tmp_path / "my g++", "exit 0")
    monkeypatch.setenv("CXX", f"{wrap} '{real}' -pipe")
    assert build.compiler() == [str(wrap), str(real), "-pipe"]
    monkeypatch.setenv("CXX", str(real))
    assert build.compiler() == [str(real)], "a path with a space that is a file is one word"
    monkeypatch.setenv("CXX", "no-such-tool g++")
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler \(no-such-tool g\+\+\); install one or set CXX"):
        build.compiler()
    monkeypatch.setenv("CXX", "g++ 'open")
    with pytest.raises(build.BuildError, match=r"CXX is .* cannot be split into words"):
        build.compiler()
    monkeypatch.setenv("TOKENREDUCE_CXXFLAGS", "-O1 'open")
    with pytest.raises(build.BuildError, match=r"TOKENREDUCE_CXXFLAGS is .* cannot be split into words"):
        build.flags()


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_cxx_is_unset(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    expected = build.compiler()
    monkeypatch.setenv("CXX", value)
    assert build.compiler() == expected


def test_a_wrapped_compiler_gets_the_compilers_arguments(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrapper writes what it is called with and makes the file that is asked for."""
    log = tmp_path / "log"
    wrap = tool(tmp_path / "wrap", f'echo "$@" >> {log}\nwhile [ "$1" != -o ]; do shift; done\ntouch "$2"')
    monkeypatch.setenv("CXX", f"{wrap} g++")
    build.build(build.library(), build.compile_library)
    assert build.library().exists()
    calls = log.read_text().splitlines()
    assert len(calls) == len(build.sources()) + 1 and all(call.startswith("g++ -O3") for call in calls)


def test_a_failing_compile_is_said_once_and_remembered_for_its_key(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("CXX", str(tool(tmp_path / "bad", f"echo call >> {log}; echo no such flag; exit 1")))
    code = "import logging; logging.basicConfig(); from tokenreduce.ops.native import dispatch; print(dispatch.load())"
    outputs, calls = [], []
    for _ in range(2):
        outputs.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True))
        calls.append(len(log.read_text().splitlines()))
    # One failure may stop the others before they start.
    assert 1 <= calls[0] <= len(build.sources()) and calls[1] == calls[0], "the second process calls no compiler"
    assert all("no such flag" in done.stdout for done in outputs)
    assert "could not be compiled" in outputs[0].stderr and "no such flag" in outputs[0].stderr
    assert not outputs[1].stderr and "`tokenreduce kernels --build` tries again" in outputs[1].stdout

    monkeypatch.setenv("TOKENREDUCE_CXXFLAGS", "-O1")  # another key
    with pytest.raises(build.CompileError):
        build.build(build.library(), build.compile_library)
    again = len(log.read_text().splitlines())
    assert again > calls[1], "another key"
    build.forget(build.library())
    with pytest.raises(build.CompileError):
        build.build(build.library(), build.compile_library)
    assert len(log.read_text().splitlines()) > again


@pytest.mark.parametrize("line", ["echo No space left on device; exit 1", "kill -9 $$"])
def test_what_may_pass_is_not_remembered(
    line: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tool(tmp_path / "bad", line)))
    with pytest.raises(build.BuildError):
        build.build(build.library(), build.compile_library)
    assert not build.failure(build.library()).exists()


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_folder_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "TOKENREDUCE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert dispatch.load.__wrapped__() == (
        "the user has no home folder to keep compiled kernels in; set TOKENREDUCE_CACHE"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_an_entry_runs_a_patched_model() -> None:
    code = (
        "import timm, torch, tokenreduce\n"
        "model = timm.create_model('deit_tiny_patch16_224', img_size=32, depth=2).eval()\n"
        "tokenreduce.patch(model, 'tome', r=1)\n"
        "import os; os.setuid(54321)\n"
        "print(model(torch.zeros(1, 3, 32, 32)).shape)"
    )
    hidden = ("HOME", "XDG_CACHE_HOME", "TOKENREDUCE_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept, check=False)
    assert done.returncode == 0, done.stderr
    assert "[1, 1000]" in done.stdout


@pytest.mark.parametrize("variable", ["TOKENREDUCE_KERNELS", "TOKENREDUCE_ATTENTION"])
def test_empty_variables_are_unset_and_wrong_ones_are_told_on_first_use(variable: str) -> None:
    code = (
        "import torch, tokenreduce\n"
        "from tokenreduce.ops import sized_attention\n"
        "from tokenreduce.ops.native import dispatch\n"
        "try:\n"
        "    dispatch.choose('merge_apply', torch.zeros(1, 4, 4))\n"
        "    sized_attention.size_mask(torch.zeros(1, 1, 1, 4), torch.zeros(1, 4, 4))\n"
        "except tokenreduce.TokenReduceError as error:\n"
        "    print(error)\n"
    )

    def output(value: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env={**os.environ, variable: value},
        )  # fmt: skip
        return done.stdout.strip()

    assert output("") == ""
    assert output("refrence").startswith(f"unknown {variable} 'refrence'; valid: ")


def test_choices_made_in_a_process_take_the_place_of_a_wrong_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_chosen", "refrence")
    monkeypatch.setattr(sized_attention, "_chosen", "maks")
    for module in (dispatch, sized_attention):
        with pytest.raises(InvalidValueError, match="unknown TOKENREDUCE_"):
            module.check()
    with dispatch.using("reference"):
        assert dispatch.choose("merge_apply", torch.zeros(1, 4, 4)) is None
