"""Every implementation against the reference on the same device, and against itself, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpu_stages.cases import Case, arm_of, model_of
from gpu_stages.choices import choices
from gpu_stages.clock import graphed, wait
from gpu_stages.operators import Tensors, operators
from gpu_stages.scans import scans
from gpu_stages.session import Facts, Session
from tokenreduce.lab.lanes import patched_lane, unpatched_lane
from tokenreduce.ops.native import dispatch

SECONDS = 40.0
DTYPES = (torch.float16, torch.float32, torch.bfloat16)
# batch, tokens, channels, removed
SHAPES = ((32, 196, 384, 13), (1, 1369, 1024, 57), (2, 197, 768, 98), (1, 5, 64, 1), (2, 4097, 384, 1000))
TINY = ((2, 17, 64, 5), (1, 5, 64, 1))
SCANNED, TINY_SCANNED = (2, 197, 384), (2, 9, 40)  # batch, tokens, channels


def run(session: Session) -> None:
    tested = choices(session)[1:]
    for choice in ["reference", *tested]:
        session.measure(lambda choice=choice: whole_model(session, choice), choice=choice, operator="DeiT-S with tome")
    for dtype in (torch.float64, session.dtype):  # each compiles four kernels
        scanned = TINY_SCANNED if session.tiny else SCANNED
        compare(session, tested, scans(session.device, dtype, *scanned), scanned, dtype, False)
    for dtype in DTYPES:
        for shape in SHAPES if not session.tiny else TINY:
            for ties in (False, True):
                calls = operators(session.device, dtype, *shape, ties) if not session.late() else {}
                compare(session, tested, calls, shape, dtype, ties)


def compare(
    session: Session, tested: list[str], calls: dict[str, Callable[[], Tensors]], shape: tuple[int, ...],
    dtype: torch.dtype, ties: bool,
) -> None:  # fmt: skip
    for name, call in calls.items():
        with dispatch.using("reference"), torch.inference_mode():
            right = call()
        for choice in tested:

            def found(choice: str = choice, call=call, right: Tensors = right) -> Facts:  # type: ignore[no-untyped-def]
                with dispatch.using(choice), torch.inference_mode():
                    return difference(call(), call(), right)

            key = {"choice": choice, "operator": name, "shape": list(shape), "dtype": str(dtype)[6:], "ties": ties}
            session.measure(found, **key)


def difference(one: Tensors, again: Tensors, right: Tensors) -> Facts:
    """`same`: the share of indices that are the reference's; `error`: of numbers, relative; `repeats`: bit by bit."""
    wait()
    same = [(a == b).double().mean().item() for a, b in zip(one, right, strict=True) if not a.is_floating_point()]
    errors = [relative(a, b) for a, b in zip(one, right, strict=True) if a.is_floating_point()]
    return {
        "same": min(same, default=None),
        "error": max(errors, default=None),
        "repeats": all(torch.equal(a, b) for a, b in zip(one, again, strict=True)),
        "finite": all(bool(a.isfinite().all()) for a in one),
    }


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def whole_model(session: Session, choice: str) -> Facts:
    """Logits of a patched model against those of the reference, again, and out of a graph."""
    case = Case("deit_small_patch16_224", 224, 8)
    net, images = model_of(session, case)
    base = unpatched_lane(net, images)
    with torch.inference_mode():
        with dispatch.using("reference"):
            right = patched_lane(base, arm_of(session, case, "tome"))(images)
        with dispatch.using(choice):
            model, kept = patched_lane(base, arm_of(session, case, "tome")), []
            one, again = model(images), model(images)
            replay = graphed(lambda: kept.append(model(images)))
            replay()
            wait()
        graph = kept[-1]
    return {
        "error": relative(one, right),
        "repeats": torch.equal(one, again),
        "graph_equals_eager": torch.equal(graph, one),
    }
