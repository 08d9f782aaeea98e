"""The short causal convolution of Mamba, one filter a channel, and SiLU; which rows its taps read can be chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional as F

from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.rows import take
from tokenreduce.ops.tracing import exporting, to_onnx


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, taps: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """`(B, L, E)`: SiLU of what K taps read of `x (B, L, E)`, in the type of `x`.

    Args:
        x: `(B, L, E)`.
        weight: `(E, K)`; its last column is of the token itself, the others of those before it.
        bias: `(E)`.
        taps: `(B, L, K)`, the row that each tap of each token reads, -1 for none; None: the K - 1 rows before it.
        reverse: without `taps`, the rows after it instead.
    """
    given = (x, weight, bias, taps, reverse)
    if to_onnx() or exporting():
        return conv_reference(*given)
    if is_compiling() or dispatch_modes():
        return conv_operator(*given)
    if is_tracing() or function_transform() is not None:
        return conv_reference(*given)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given):
        return CausalConv.apply(*given)
    return conv_now(*given)


def conv_now(x: Tensor, *rest: Any) -> Tensor:
    """The fastest kernel that takes `x`, else PyTorch's operators."""
    kernel = choose("causal_conv", x)
    return conv_reference(x, *rest) if kernel is None else kernel(x, *rest)


def gradients_now(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    """Gradients of `x`, `weight` and `bias`; an empty one for no bias."""
    kernel = choose("causal_conv_backward", x)
    if kernel is not None:
        return list(kernel(grad, x, weight, bias, *rest))
    tensors = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    with torch.enable_grad():
        out = conv_reference(*tensors, *rest)  # type: ignore[arg-type]
    found = torch.autograd.grad(out, [t for t in tensors if t is not None], grad)
    return [*found] if bias is not None else [*found, grad.new_empty(0)]


class CausalConv(torch.autograd.Function):
    """`conv_now` with its gradients."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        keep(ctx, given, None)
        return conv_now(*given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, taps = ctx.saved_tensors
        return present(gradients_now(grad, x, weight, bias, taps, ctx.reverse), bias)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the inputs for the gradients."""
    ctx.save_for_backward(*inputs[:4])
    ctx.reverse = inputs[4]


def present(found: list[Tensor], bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients for all five inputs, None for those that have none."""
    return found[0], found[1], None if bias is None else found[2], None, None


INPUTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? taps, bool reverse"


@torch.library.custom_op("tokenreduce::causal_conv", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def conv_operator(*given: Any) -> Tensor:
    """`causal_conv` as one operator, for whatever looks at operators."""
    return conv_now(*given)


@torch.library.custom_op(
    "tokenreduce::causal_conv_backward", mutates_args=(), schema=f"(Tensor grad, {INPUTS}) -> Tensor[]"
)
def backward_operator(*given: Any) -> list[Tensor]:
    """Its gradients."""
    return gradients_now(*given)


@conv_operator.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@backward_operator.register_fake
def _(grad: Tensor, *given: Any) -> list[Tensor]:
    return [grad.new_empty(0) if t is None else torch.empty_like(t).contiguous() for t in given[:3]]


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, taps = ctx.saved_tensors
    return present(backward_operator(grad, x, weight, bias, taps, ctx.reverse), bias)


conv_operator.register_autograd(_operator_gradients, setup_context=keep)


def conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None, taps: Tensor | None, reverse: bool) -> Tensor:
    """`causal_conv` by PyTorch's operators."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, weight, reach = x.to(wide), weight.to(wide), weight.shape[1] - 1
    offset = None if bias is None else bias.to(wide)
    if taps is None:
        columns = F.pad(rows.transpose(1, 2), (0, reach) if reverse else (reach, 0))
        kernel = (weight.flip(1) if reverse else weight)[:, None]
        mixed = F.conv1d(columns, kernel, offset, groups=x.shape[2]).transpose(1, 2)
    else:
        padded = F.pad(rows, (0, 0, 1, 0))  # the row of zeros in front is what a tap of -1 reads
        mixed = torch.zeros_like(rows) if offset is None else offset
        for tap, column in zip(taps.unbind(2), weight.unbind(1), strict=True):
            mixed = mixed + take(padded, tap + 1) * column
    return F.silu(mixed).to(x.dtype)
