"""`advise`: whether reducing tokens pays for a model and an input, from break-even counts that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.lanes import unpatched_lane
from tokenreduce.lab.speed.advising_gpu import answer_on_gpu
from tokenreduce.lab.speed.break_even import Curve, nearest_curve
from tokenreduce.lab.speed.command import bench_command
from tokenreduce.ops.native import dispatch
from tokenreduce.ops.size_channels import attended_type
from tokenreduce.patching.compatibility import compatible
from tokenreduce.patching.finding import find_backbone, reduction_of
from tokenreduce.patching.verbs import patch, report

METHODS = ("ward", "tome")  # those measured; where both pay, the first is advised, which loses less on a real model
FLOPS = 0.6  # the budget that was measured
NEEDS_ALL = "only models whose layers all take reduced tokens were measured, and some layers of this one need all"
HEADLINES = {True: "reduction pays", False: "reduction does not pay", None: "whether reduction pays is not known"}


@dataclass(frozen=True)
class Advice:
    """Whether to reduce, with what, and why; `str()` says what to run.

    `pays` is None if no measurement covers this case. `tokens` are the image tokens of one image that enter the first
    layer. `break_even_tokens` is the smallest count from which reducing pays at batch 1 on a CPU; None if no measured
    count pays, or no measurement applies. `expected_speedup` is that of batch 1, on a GPU that of a graph of the
    nearest batch; None if it was not measured. `check` is the command that measures it on this machine.
    """

    pays: bool | None
    method: str
    flops: float
    tokens: int
    width: int
    batch_size: int
    device: str
    break_even_tokens: int | None
    expected_speedup: float | None
    reason: str
    check: str

    @property
    def run(self) -> str:
        """The call that reduces as advised."""
        return f'tokenreduce.patch(model, "{self.method}", flops={self.flops})'

    def __str__(self) -> str:
        faster = "" if self.expected_speedup is None else f", about {self.expected_speedup:.2f} x with {self.method}"
        what = "the model as it is" if self.pays is False else self.run
        lines = [
            f"{HEADLINES[self.pays]}{faster}: {self.reason}",
            f"  {'try' if self.pays is None else 'run':<5}  {what}",
            f"  check  {self.check}",
        ]
        return "\n".join(lines)


def advise(model: nn.Module, input: Tensor) -> Advice:
    """Say whether reducing tokens makes `model` faster on `input`, from the figures of docs/speed.md.

    A patched copy of the model runs on the first image, to count its real tokens; `model` stays as it is. If it is
    patched already, the answer is about the unpatched model. On a CPU the figures are of batch 1. They are taken as a
    lower bound for larger batches: a "yes" holds for them, a "no" becomes "not known". On a GPU they are those of the
    nearest model and batch, in half precision and as a CUDA graph, of docs/gpu.md. On other devices the answer is
    always "not known".

    Args:
        model: a vision transformer of a known family, or a module that holds exactly one and takes `input` alone.
        input: a batch of the size, device and dtype that the model will run on: `(B, C, H, W)`, or for a video
            `(B, C, T, H, W)` or `(B, T, C, H, W)`.

    Raises:
        ValueError: if `tokenreduce.patch` refuses the model, for the same reason.
        TypeError: if the input is no such tensor.
    """
    find_backbone(model)
    _check(input)
    lane = unpatched_lane(model, input)
    fits = compatible(lane)
    fitting = [method for method in METHODS if method in fits] or METHODS[:1]  # patch says why none does
    tokens = _tokens(lane, input[:1], fitting[0])
    geometry = reduction_of(lane).geometry
    if geometry.needs_all:
        answer = _unknown(fitting[0], NEEDS_ALL)
    elif input.is_cuda:
        case = geometry.width, tokens, len(input)
        answer = answer_on_gpu(fitting, *case, attended_type(input), str(input.device))
    else:
        answer = _on_cpu(fitting, geometry.width, tokens, input)
    return Advice(
        flops=FLOPS,
        tokens=tokens,
        width=geometry.width,
        batch_size=len(input),
        device=str(input.device),
        check=bench_command(model, input, answer["method"], FLOPS),
        **answer,
    )


def _check(input: object) -> None:
    if isinstance(input, Tensor) and input.is_floating_point() and input.ndim in (4, 5) and len(input):
        return
    given = f"{input.dtype} {tuple(input.shape)}" if isinstance(input, Tensor) else f"a {type(input).__name__}"
    raise InvalidTypeError(
        f"input is {given}; give a batch of images (B, C, H, W) or of videos as the model takes it, floating point and "
        "not empty, such as torch.randn(1, 3, 224, 224)"
    )


def _tokens(lane: nn.Module, image: Tensor, method: str) -> int:
    """Image tokens that enter the first layer: patches `lane` and runs it once."""
    patch(lane, method, flops=FLOPS)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):  # compiled code records nothing
        lane(image)
    return report(lane).input_tokens


def _on_cpu(fitting: Sequence[str], width: int, tokens: int, input: Tensor) -> dict[str, Any]:
    curves = [curve for method in fitting if (curve := nearest_curve(width, method)) is not None]
    unmeasured = _unmeasured(input, width, curves)
    return _unknown(fitting[0], unmeasured) if unmeasured else _answer(curves, tokens, input)


def _unmeasured(input: Tensor, width: int, curves: list[Curve]) -> str:
    """Why no measurement covers this case; empty if one does."""
    if input.device.type != "cpu":
        return f"no device of the kind was measured, and the input is on {input.device}"
    if input.dtype != torch.float32:
        return f"on a CPU only float32 was measured, and the input is {str(input.dtype).removeprefix('torch.')}"
    return "" if curves else f"no backbone of about width {width} was measured"


def _unknown(method: str, reason: str) -> dict[str, Any]:
    return {"pays": None, "method": method, "break_even_tokens": None, "expected_speedup": None, "reason": reason}


def _answer(curves: list[Curve], tokens: int, input: Tensor) -> dict[str, Any]:
    """The answer for the first method that pays, or for the first method if none does."""
    curve = next((curve for curve in curves if curve.pays(tokens)), curves[0])
    pays = curve.pays(tokens)
    if len(input) > 1 and pays is False:
        pays = None  # a batch spreads the costs of calls over more tokens
    return {
        "pays": pays,
        "method": curve.method,
        "break_even_tokens": curve.break_even,
        "expected_speedup": curve.speedup_at(tokens),
        "reason": _reason(curve, tokens, input),
    }


def _reason(curve: Curve, tokens: int, input: Tensor) -> str:
    if curve.break_even is None:
        known = f"there is no break-even up to {curve.tokens[-1]}, the most that were measured"
    elif curve.pays(tokens) is None:
        known = f"{curve.tokens[0]}, the fewest that were measured, pay"
    else:
        known = f"the break-even is {curve.break_even}"
    sentence = f"it has {tokens} image tokens, and at width {curve.width}, batch 1 and on a CPU {known}"
    if len(input) > 1:
        sentence += f"; batch {len(input)} was not measured, and batch 1 is a lower bound for it"
    if dispatch.why_not("merge_apply", input):
        sentence += "; that was with compiled kernels, which do not run here, so expect less"
    return sentence
