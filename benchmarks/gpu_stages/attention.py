"""Attention with sizes: ways of giving them, times backends; and the tiles of the library's own kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from gpu_stages.clock import first_call, graphed, microseconds
from gpu_stages.session import Facts, Session
from tokenreduce.ops.size_channels import with_channels

SECONDS, SWEEP_SECONDS = 40.0, 70.0
BACKENDS = {
    "default": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# batch, tokens, heads: DeiT-S, ViT-L, DINOv2-L at 518 px, before and after reducing
SHAPES = (
    (256, 197, 6),
    (32, 197, 6),
    (32, 197, 16),
    (32, 1370, 16),
    (1, 1370, 16),
    (256, 105, 6),
    (32, 822, 16),
    (1, 197, 6),
    (256, 197, 16),
)
TINY = ((1, 17, 2),)
# fields of `Tiles`: queries and keys a tile, keys in the last tiles, warps, stages; the library's own choice first
TILES = (
    (64, 128, 128, 4, 2),
    (64, 64, 64, 4, 2),
    (64, 64, 64, 4, 3),
    (64, 128, 32, 4, 2),
    (128, 64, 64, 4, 3),
)
SWEPT = ((32, 1370, 16), (256, 197, 6), (32, 197, 6), (32, 822, 16), (1, 1370, 16), (256, 105, 6))
HEAD = 64
SCALE = HEAD**-0.5


def run(session: Session) -> None:
    for shape in SHAPES if not session.tiny else TINY:
        inputs = made(session, *shape)
        for way, backend in itertools.product(("none", "mask", "channels"), BACKENDS):
            if (way == "mask" and backend == "flash") or (session.tiny and backend != "default"):
                continue
            call = partial(WAYS[way], *inputs)
            session.measure(lambda c=call, b=backend: timed(c, b), **named(shape), way=way, backend=backend)
        call = partial(triton_way, *inputs)
        session.measure(lambda c=call: timed(c, "default"), **named(shape), way="triton", backend="triton")


def sweep(session: Session) -> None:
    """The kernel's tiles, at the shapes that decide, after attention without sizes; each compiles once or twice."""
    shapes = SWEPT if not session.tiny else TINY
    made_once = [made(session, *shape) for shape in shapes]
    for shape, inputs in zip(shapes, made_once, strict=True):
        call = partial(without, *inputs)
        session.measure(lambda c=call: timed(c, "default", 5), **named(shape), tiles=["none"])
    for tiles in TILES if not session.tiny else TILES[:1]:
        for shape, inputs in zip(shapes, made_once, strict=True):
            call = partial(triton_way, *inputs, tiles=tiles)
            session.measure(lambda c=call: timed(c, "default", 5), **named(shape), tiles=list(tiles))


def named(shape: tuple[int, int, int]) -> Facts:
    return dict(zip(("batch", "tokens", "heads"), shape, strict=True))


def made(session: Session, batch: int, n: int, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of one fused output, and fp32 logarithms of sizes `(B, N)`."""
    torch.manual_seed(0)
    fused = torch.randn(batch, n, 3, heads, HEAD, device=session.device, dtype=session.dtype)
    q, k, v = fused.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v, torch.randint(1, 6, (batch, n), device=session.device).float().log()


def joined(out: Tensor) -> Tensor:
    """`(B, H, N, d)` as the projection takes it, `(B, N, H d)`."""
    return out.transpose(1, 2).flatten(2)


def without(q: Tensor, k: Tensor, v: Tensor, logs: Tensor) -> Tensor:
    return joined(sdpa(q, k, v))


def masked(q: Tensor, k: Tensor, v: Tensor, logs: Tensor) -> Tensor:
    return joined(sdpa(q, k, v, logs.to(q.dtype)[:, None, None]))


def channels(q: Tensor, k: Tensor, v: Tensor, logs: Tensor) -> Tensor:
    return joined(sdpa(*with_channels(q, k, v, logs[:, None, None], SCALE), scale=SCALE)[..., :HEAD])


def triton_way(q: Tensor, k: Tensor, v: Tensor, logs: Tensor, tiles: tuple[int, ...] | None = None) -> Tensor:
    """The library's own kernel; `tiles` as in `TILES`, None for its own choice."""
    from tokenreduce.ops.triton.attend import Tiles, attend, attend_in

    sizes = logs[:, None, None]
    return joined(attend(q, k, v, sizes, SCALE) if tiles is None else attend_in(Tiles(*tiles), q, k, v, sizes, SCALE))


WAYS: dict[str, Callable[..., Tensor]] = {"none": without, "mask": masked, "channels": channels}


def timed(call: partial[Tensor], backend: str, turns: int = 9) -> Facts:
    """Microseconds in a graph, seconds of the first call, whether it repeats, and the error against fp64."""
    chosen: Any = BACKENDS[backend]
    with torch.inference_mode(), nullcontext() if chosen is None else sdpa_kernel(chosen):
        out, first = first_call(call)
        repeats = torch.equal(out, call())
        us = microseconds(graphed(call), turns)
    wrong = error(out, *call.args, sizes=call.func is not without)
    return {"us": us, "first_s": first, "repeats": repeats, "error": wrong}


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, logs: Tensor, sizes: bool) -> float:
    """Relative to attention in fp64, of the first images."""
    few = slice(0, max(1, 4096 // q.shape[2] // q.shape[1]))
    logits = q[few].double() @ k[few].double().transpose(-1, -2) * SCALE
    if sizes:
        logits = logits + logs[few, None, None].double()
    exact = joined(logits.softmax(-1) @ v[few].double())
    return ((out[few].double() - exact).norm() / exact.norm()).item()
