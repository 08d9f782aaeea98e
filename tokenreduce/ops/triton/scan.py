"""The selective scan and its gradients: one program an image and a block of channels walks over the tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from triton import jit
from triton import language as tl

from tokenreduce.ops.triton.launching import operator, start
from tokenreduce.ops.triton.rounding import cdiv, next_power_of_2
from tokenreduce.ops.triton.tensors import in_a_row

CELLS = 512  # numbers of the state in a program


@operator
def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    decay_dt: Tensor | None, dt_bias: Tensor | None, order: Tensor | None, scale: Tensor | None,
    softplus: bool, reverse: bool,
) -> Tensor:  # fmt: skip
    """`ops.selective_scan.selective_scan`."""
    x, dt, B, C, A = (*(in_a_row(t) for t in (x, dt, B, C)), A.contiguous())
    z, decay_dt, order, scale = (None if t is None else in_a_row(t) for t in (z, decay_dt, order, scale))
    batch, length, width = x.shape
    states, block = shape_of_state(A)
    out = torch.empty(batch, length, width, dtype=x.dtype, device=x.device)
    start(_scan, x)[(cdiv(width, block), batch)](
        *tensors(x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale), out,
        *strides(x, dt, B, C, z, decay_dt, order, scale), length, width, A.shape[1],
        **flags(x, D, z, decay_dt, dt_bias, order, scale, softplus, reverse), STATES=states, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return out


@operator
def selective_scan_backward(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    decay_dt: Tensor | None, dt_bias: Tensor | None, order: Tensor | None, scale: Tensor | None,
    softplus: bool, reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the nine tensors from `x` to `dt_bias`, empty ones for those that are None. Always in the same
    order: sums over channels and images are made after the kernel."""
    grad, x, dt, B, C, A = (*(in_a_row(t) for t in (grad, x, dt, B, C)), A.contiguous())
    z, decay_dt, order, scale = (None if t is None else in_a_row(t) for t in (z, decay_dt, order, scale))
    batch, length, width = x.shape
    states, block = shape_of_state(A)
    blocks = cdiv(width, block)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=wide, device=x.device)

    by_row = [empty(batch, length, width) for _ in range(2)]
    by_row += [empty(*(() if t is None else (batch, length, width))) for t in (z, decay_dt)]
    dA, dD = empty(batch, width, A.shape[1]), empty(batch, width)
    dB, dC = (empty(batch, blocks, length, A.shape[1]) for _ in range(2))
    kept = empty(batch, blocks, length, block * states)
    start(_scan_backward, x)[(blocks, batch)](
        grad, *tensors(x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale), kept, *by_row, dA, dB, dC, dD,
        *grad.stride()[:2], *strides(x, dt, B, C, z, decay_dt, order, scale), length, width, A.shape[1],
        **flags(x, D, z, decay_dt, dt_bias, order, scale, softplus, reverse), STATES=states, BLOCK=block, num_warps=1,
    )  # fmt: skip
    dx, ddt, dz, ddecay = by_row
    found = [dx, ddt, dA.sum(0), dB.sum(1), dC.sum(1), dD.sum(0), dz, ddecay, ddt.sum((0, 1))]
    like = [x, dt, A, B, C, D, z, decay_dt, dt_bias]
    return tuple(  # type: ignore[return-value]
        empty(0) if t is None else g.to(t.dtype) for g, t in zip(found, like, strict=True)
    )


def shape_of_state(A: Tensor) -> tuple[int, int]:
    """States and channels of a program."""
    states = next_power_of_2(A.shape[1])
    return states, max(1, min(CELLS // states, next_power_of_2(A.shape[0])))


def tensors(x: Tensor, *rest: Tensor | None) -> list[Tensor]:
    """A kernel needs a tensor in place of each None, and does not read it."""
    return [x, *(x if t is None else t for t in rest)]


def strides(*given: Tensor | None) -> list[int]:
    """Those of images and rows."""
    return [stride for t in given for stride in ((0, 0) if t is None else t.stride()[:2])]


def flags(
    x: Tensor, D: Tensor | None, z: Tensor | None, decay_dt: Tensor | None, dt_bias: Tensor | None,
    order: Tensor | None, scale: Tensor | None, softplus: bool, reverse: bool,
) -> dict[str, bool]:  # fmt: skip
    return {
        "SKIP": D is not None, "GATE": z is not None, "DECAY": decay_dt is not None, "BIAS": dt_bias is not None,
        "ORDER": order is not None, "SCALE": scale is not None, "SOFTPLUS": softplus, "REVERSE": reverse,
        "WIDE": x.dtype == torch.float64,
    }  # fmt: skip


@jit
def _softplus(x):
    e = tl.exp(x)
    more = 1 + e
    # Kahan's log1p: what rounding took from 1 + e is given back.
    log1p = tl.where(more == 1, e, tl.log(more) * (e / tl.where(more == 1, 1.0, more - 1)))
    return tl.where(x > 20, x, log1p)


@jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@jit
def _scan(
    x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale, out, x_image, x_row, dt_image, dt_row, b_image, b_row,
    c_image, c_row, z_image, z_row, decay_image, decay_row, order_image, order_row, scale_image, scale_row,
    length, width, depth,
    SKIP: tl.constexpr, GATE: tl.constexpr, DECAY: tl.constexpr, BIAS: tl.constexpr, ORDER: tl.constexpr,
    SCALE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    wide: tl.constexpr = tl.float64 if WIDE else tl.float32
    image = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    inside, real = channel < width, state < depth
    cell = channel[:, None] * depth + state[None, :]
    rate = tl.load(A + cell, mask=inside[:, None] & real[None, :], other=0.0).to(wide)
    h = tl.zeros([BLOCK, STATES], wide)
    for i in range(length):
        row = length - 1 - i if REVERSE else i
        if ORDER:
            row = tl.load(order + image * order_image + row)
        value = tl.load(x + image * x_image + row * x_row + channel, mask=inside, other=0.0).to(wide)
        step = tl.load(dt + image * dt_image + row * dt_row + channel, mask=inside, other=0.0).to(wide)
        write = tl.load(B + image * b_image + row * b_row + state, mask=real, other=0.0).to(wide)
        read = tl.load(C + image * c_image + row * c_row + state, mask=real, other=0.0).to(wide)
        if BIAS:
            step += tl.load(dt_bias + channel, mask=inside, other=0.0).to(wide)
        if SOFTPLUS:
            step = _softplus(step)
        if SCALE:
            step *= tl.load(scale + image * scale_image + row * scale_row).to(wide)
        decay = step
        if DECAY:
            at = image * decay_image + row * decay_row + channel
            decay = tl.load(decay_dt + at, mask=inside, other=0.0).to(wide)
        h = tl.exp(decay[:, None] * rate) * h + (step * value)[:, None] * write[None, :]
        y = tl.sum(h * read[None, :], 1)
        if SKIP:
            y += tl.load(D + channel, mask=inside, other=0.0).to(wide) * value
        if GATE:
            gate = tl.load(z + image * z_image + row * z_row + channel, mask=inside, other=0.0).to(wide)
            y = y * gate * _sigmoid(gate)
        tl.store(out + (image * length + row) * width + channel, y, mask=inside)


@jit
def _scan_backward(
    grad, x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale, kept, dx, ddt, dz, ddecay, dA, dB, dC, dD,
    grad_image, grad_row, x_image, x_row, dt_image, dt_row, b_image, b_row,
    c_image, c_row, z_image, z_row, decay_image, decay_row, order_image, order_row, scale_image, scale_row,
    length, width, depth,
    SKIP: tl.constexpr, GATE: tl.constexpr, DECAY: tl.constexpr, BIAS: tl.constexpr, ORDER: tl.constexpr,
    SCALE: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, WIDE: tl.constexpr, STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """First the walk, whose states are kept, then the same way back."""
    wide: tl.constexpr = tl.float64 if WIDE else tl.float32
    image = tl.program_id(1).to(tl.int64)
    channel, state = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    inside, real = channel < width, state < depth
    cell = channel[:, None] * depth + state[None, :]
    rate = tl.load(A + cell, mask=inside[:, None] & real[None, :], other=0.0).to(wide)
    bias, skip = tl.zeros([BLOCK], wide), tl.zeros([BLOCK], wide)
    if BIAS:
        bias += tl.load(dt_bias + channel, mask=inside, other=0.0).to(wide)
    if SKIP:
        skip += tl.load(D + channel, mask=inside, other=0.0).to(wide)
    # A state of a token is a block of its own.
    program = image * tl.num_programs(0) + tl.program_id(0)
    kept += program * length * (BLOCK * STATES) + tl.arange(0, BLOCK)[:, None] * STATES + state[None, :]
    h = tl.zeros([BLOCK, STATES], wide)
    for i in range(length):
        row = length - 1 - i if REVERSE else i
        if ORDER:
            row = tl.load(order + image * order_image + row)
        value = tl.load(x + image * x_image + row * x_row + channel, mask=inside, other=0.0).to(wide)
        step = tl.load(dt + image * dt_image + row * dt_row + channel, mask=inside, other=0.0).to(wide) + bias
        write = tl.load(B + image * b_image + row * b_row + state, mask=real, other=0.0).to(wide)
        if SOFTPLUS:
            step = _softplus(step)
        if SCALE:
            step *= tl.load(scale + image * scale_image + row * scale_row).to(wide)
        decay = step
        if DECAY:
            at = image * decay_image + row * decay_row + channel
            decay = tl.load(decay_dt + at, mask=inside, other=0.0).to(wide)
        h = tl.exp(decay[:, None] * rate) * h + (step * value)[:, None] * write[None, :]
        tl.store(kept + i * (BLOCK * STATES), h)
    tl.debug_barrier()  # all threads have stored what is read now
    dh = tl.zeros([BLOCK, STATES], wide)
    sum_rate = tl.zeros([BLOCK, STATES], wide)
    sum_skip = tl.zeros([BLOCK], wide)
    for back in range(length):
        i = length - 1 - back
        row = back if REVERSE else i
        if ORDER:
            row = tl.load(order + image * order_image + row)
        value = tl.load(x + image * x_image + row * x_row + channel, mask=inside, other=0.0).to(wide)
        raw = tl.load(dt + image * dt_image + row * dt_row + channel, mask=inside, other=0.0).to(wide) + bias
        write = tl.load(B + image * b_image + row * b_row + state, mask=real, other=0.0).to(wide)
        read = tl.load(C + image * c_image + row * c_row + state, mask=real, other=0.0).to(wide)
        g = tl.load(grad + image * grad_image + row * grad_row + channel, mask=inside, other=0.0).to(wide)
        step = raw
        if SOFTPLUS:
            step = _softplus(raw)
        if SCALE:
            many = tl.load(scale + image * scale_image + row * scale_row).to(wide)
            step *= many
        decay = step
        if DECAY:
            at = image * decay_image + row * decay_row + channel
            decay = tl.load(decay_dt + at, mask=inside, other=0.0).to(wide)
        h = tl.load(kept + i * (BLOCK * STATES))
        before = tl.load(kept + tl.maximum(i - 1, 0) * (BLOCK * STATES))
        before = tl.where(i > 0, before, 0.0)
        here = (image * length + row) * width + channel
        if GATE:
            gate = tl.load(z + image * z_image + row * z_row + channel, mask=inside, other=0.0).to(wide)
            share = _sigmoid(gate)
            y = tl.sum(h * read[None, :], 1) + skip * value
            tl.store(dz + here, g * y * share * (1 + gate * (1 - share)), mask=inside)
            g = g * gate * share
        dh += g[:, None] * read[None, :]
        shrunk = tl.exp(decay[:, None] * rate)
        exponent = dh * before * shrunk
        written = tl.sum(dh * write[None, :], 1)
        dstep = written * value
        longer = tl.sum(exponent * rate, 1)
        if DECAY:
            tl.store(ddecay + here, longer, mask=inside)
        else:
            dstep += longer
        if SOFTPLUS:
            dstep = dstep * _sigmoid(raw)
        if SCALE:
            dstep *= many
        tl.store(dx + here, written * step + g * skip, mask=inside)
        tl.store(ddt + here, dstep, mask=inside)
        of_row = (program * length + row) * depth + state
        tl.store(dB + of_row, tl.sum(tl.where(inside[:, None], dh * (step * value)[:, None], 0.0), 0), mask=real)
        tl.store(dC + of_row, tl.sum(tl.where(inside[:, None], g[:, None] * h, 0.0), 0), mask=real)
        sum_rate += exponent * decay[:, None]
        sum_skip += g * value
        dh = dh * shrunk
    tl.store(dA + image * width * depth + cell, sum_rate, mask=inside[:, None] & real[None, :])
    tl.store(dD + image * width + channel, sum_skip, mask=inside)
