"""What the card can do: copying, products of the models' shapes, the cost of a launch."""

from __future__ import annotations

import torch

from gpu_stages.clock import graphed, microseconds
from gpu_stages.session import Facts, Session

SECONDS = 15.0
PRODUCTS = ((50432, 384, 1152), (50432, 384, 1536), (6304, 1024, 4096), (8192, 8192, 8192))


def run(session: Session) -> None:
    session.measure(lambda: copying(session), what="copy")
    for size in PRODUCTS if not session.tiny else ((64, 32, 16),):
        session.measure(lambda size=size: product(session, *size), what="product", size=list(size))
    session.measure(lambda: launch(session), what="launch")


def copying(session: Session) -> Facts:
    count = 1 << (10 if session.tiny else 30)
    a = torch.randint(0, 255, (count,), device=session.device, dtype=torch.uint8)
    b = torch.empty_like(a)
    us = microseconds(lambda: b.copy_(a))
    return {"us": us, "terabytes_per_second": 2 * count / us / 1e6}


def product(session: Session, m: int, k: int, n: int) -> Facts:
    x = torch.randn(m, k, device=session.device, dtype=session.dtype)
    w = torch.randn(n, k, device=session.device, dtype=session.dtype)
    us = microseconds(lambda: x @ w.T)
    return {"us": us, "teraflops": 2 * m * k * n / us / 1e6}


def launch(session: Session) -> Facts:
    one = torch.zeros(1, device=session.device)

    def twenty() -> None:
        for _ in range(20):
            one.add_(1)

    return {"eager_us": microseconds(twenty) / 20, "graph_us": microseconds(graphed(twenty)) / 20}
