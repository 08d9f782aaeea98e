"""The selective scan of Mamba: a recurrence over tokens whose step, input and output depend on each token.

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces (arXiv 2312.00752). Exported programs hold
the operator `tokenreduce::selective_scan`: import this module before loading one elsewhere. Graphs of ONNX hold plain
operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional as F

from tokenreduce.ops.modes import dispatch_modes, function_transform, is_tracing
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.rows import take
from tokenreduce.ops.tracing import to_onnx


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    decay_dt: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    softplus: bool = False,
    order: Tensor | None = None,
    scale: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """`(B, L, E)`: the outputs of a state `h (E, N)` that walks over L tokens.

    At each token, `h = exp(decay_dt A) h + dt B x`, then `y = h C + D x`, gated by `y SiLU(z)` where z is given. The
    state and all arithmetic are fp32 (fp64 for fp64 tokens), whatever the type of the tokens.

    Args:
        x: `(B, L, E)`, the tokens' values.
        dt: `(B, L, E)`, the time step of each; positive, unless `softplus` makes it so.
        A: `(E, N)`, negative.
        B: `(B, L, N)`, what a token writes.
        C: `(B, L, N)`, what it reads.
        D: `(E)`, the part of each value that skips the state.
        z: `(B, L, E)`, the gate before SiLU.
        decay_dt: `(B, L, E)`, positive: how long the state decays before each token; None: `dt`. Longer than `dt` where
            tokens are missing in between.
        dt_bias: `(E)`, added to `dt`.
        softplus: whether the step is `softplus(dt + dt_bias)`.
        order: `(B, L)`, the row that each step of the walk visits; None: the rows as they stand.
        scale: `(B, L)`, fp32, how many steps each row takes at once; its step is multiplied. Has no gradient.
        reverse: walk from the last step to the first.
    """
    given = (x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale, softplus, reverse)
    if to_onnx():
        return scan_by_doubling(*given)
    if is_compiling() or dispatch_modes():
        return scan_operator(*given)
    if is_tracing() or function_transform() is not None:
        return scan_loop(*given)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in given):
        return Scan.apply(*given)
    return scan_now(*given)


def scan_now(x: Tensor, *rest: Any) -> Tensor:
    """The fastest kernel that takes `x`, else the loop."""
    kernel = choose("selective_scan", x)
    return scan_loop(x, *rest) if kernel is None else kernel(x, *rest)


def gradients_now(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    """Gradients of the nine tensors from `x` to `dt_bias`; empty ones for those that are None."""
    kernel = choose("selective_scan_backward", x)
    if kernel is not None:
        return list(kernel(grad, x, *rest))
    tensors = [None if t is None else t.detach().requires_grad_() for t in (x, *rest[:8])]
    with torch.enable_grad():
        out = scan_loop(*tensors, *rest[8:])  # type: ignore[arg-type]
    found = iter(torch.autograd.grad(out, [t for t in tensors if t is not None], grad))
    return [grad.new_empty(0) if t is None else next(found) for t in tensors]


class Scan(torch.autograd.Function):
    """`scan_now` with its gradients; states are computed again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        keep(ctx, given, None)
        return scan_now(*given)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, order, scale = ctx.saved_tensors
        return present(gradients_now(grad, *tensors, order, scale, *ctx.flags), tensors)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save the inputs for the gradients."""
    ctx.save_for_backward(*inputs[:11])
    ctx.flags = inputs[11:]


def present(found: list[Tensor], tensors: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients for all thirteen inputs, None for those that have none."""
    wanted = [None if t is None else g for g, t in zip(found, tensors, strict=True)]
    return *wanted, None, None, None, None


INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? decay_dt, Tensor? dt_bias, "
    "Tensor? order, Tensor? scale, bool softplus, bool reverse"
)


@torch.library.custom_op("tokenreduce::selective_scan", mutates_args=(), schema=f"({INPUTS}) -> Tensor")
def scan_operator(*given: Any) -> Tensor:
    """`selective_scan` as one operator, for whatever looks at operators."""
    return scan_now(*given)


@torch.library.custom_op(
    "tokenreduce::selective_scan_backward", mutates_args=(), schema=f"(Tensor grad, {INPUTS}) -> Tensor[]"
)
def backward_operator(*given: Any) -> list[Tensor]:
    """Its gradients."""
    return gradients_now(*given)


@scan_operator.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@backward_operator.register_fake
def _(grad: Tensor, *given: Any) -> list[Tensor]:
    return [grad.new_empty(0) if t is None else torch.empty_like(t).contiguous() for t in given[:9]]


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, order, scale = ctx.saved_tensors
    return present(backward_operator(grad, *tensors, order, scale, *ctx.flags), tensors)


scan_operator.register_autograd(_operator_gradients, setup_context=keep)


def scan_loop(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    decay_dt: Tensor | None,
    dt_bias: Tensor | None,
    order: Tensor | None,
    scale: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> Tensor:
    """`selective_scan`, one step of PyTorch a token."""
    value, step, decay, write, read = walked(x, dt, B, C, decay_dt, dt_bias, order, scale, softplus)
    rate, length = A.to(value.dtype), x.shape[1]
    state = value.new_zeros(x.shape[0], *A.shape)
    outputs: list[Tensor] = [value] * length
    for t in reversed(range(length)) if reverse else range(length):
        written = (step[:, t] * value[:, t])[..., None] * write[:, t, None]
        state = torch.exp(decay[:, t, :, None] * rate) * state + written
        outputs[t] = (state * read[:, t, None]).sum(-1)
    y = torch.stack(outputs, 1) if outputs else value
    return finished(y, x, D, z, order)


def scan_by_doubling(x: Tensor, *rest: Any) -> Tensor:
    """`selective_scan` in log2 L steps on all states at once: few operators, but L states in memory."""
    dt, A, B, C, D, z, decay_dt, dt_bias, order, scale, softplus, reverse = rest
    value, step, decay, write, read = walked(x, dt, B, C, decay_dt, dt_bias, order, scale, softplus)
    if reverse:
        value, step, decay, write, read = (t.flip(1) for t in (value, step, decay, write, read))
    kept = torch.exp(decay[..., None] * A.to(value.dtype))
    state = (step * value)[..., None] * write[:, :, None]
    span = 1
    while span < x.shape[1]:
        # Each state takes in that of `span` steps before, which holds the `span` steps up to there.
        state = torch.cat([state[:, :span], state[:, span:] + kept[:, span:] * state[:, :-span]], 1)
        kept = torch.cat([kept[:, :span], kept[:, span:] * kept[:, :-span]], 1)
        span *= 2
    y = (state * read[:, :, None]).sum(-1)
    return finished(y.flip(1) if reverse else y, x, D, z, order)


def walked(
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    decay_dt: Tensor | None,
    dt_bias: Tensor | None,
    order: Tensor | None,
    scale: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """Values, steps, decays, B and C in the order of the walk, in fp32 or fp64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide)
    step = F.softplus(step) if softplus else step
    step = step if scale is None else step * scale.to(wide)[..., None]
    decay = step if decay_dt is None else decay_dt.to(wide)
    rows = x.to(wide), step, decay, B.to(wide), C.to(wide)
    return rows if order is None else tuple(take(t, order) for t in rows)


def finished(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None, order: Tensor | None) -> Tensor:
    """What the walk gave, back in the order of the rows, with skip and gate, in the type of `x`."""
    if order is not None:
        y = torch.zeros_like(y).scatter(1, order[..., None].expand_as(y), y)
    y = y if D is None else y + D.to(y.dtype) * x.to(y.dtype)
    y = y if z is None else y * F.silu(z.to(y.dtype))
    return y.to(x.dtype)
