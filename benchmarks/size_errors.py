"""Errors of attention with sizes in channels and with sizes as a mask, against fp64 -> results/size_errors.json.

python benchmarks/size_errors.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tokenreduce.lab.environment import environment
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.sized_attention import size_mask, using

RESULTS = Path(__file__).parent / "results/size_errors.json"
CASES = [(torch.float16, 64), (torch.bfloat16, 64), *((torch.float32, width) for width in (32, 64, 72, 80, 128))]
TOKENS = (65, 130, 197, 400)
SEEDS, LARGEST = 5, 1000.0  # sizes go from 1 to the largest, as many small as large


def attention(choice: str, q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    with using(choice):
        return scaled_dot_product_attention(q, k, v, attn_mask=size_mask(size_bias(sizes, 1, 0), q))


def squared_errors(dtype: torch.dtype, width: int, n: int, seed: int) -> dict[str, Tensor]:
    """Of every output number; the first token is protected."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, width, generator=generator).to(dtype) for _ in range(3))
    sizes = (torch.rand(2, n - 1, generator=generator) * torch.tensor(LARGEST).log()).exp().round()
    logits = q.double() @ k.double().transpose(-1, -2) * width**-0.5 + pad(sizes.double().log(), (1, 0))[:, None, None]
    exact = logits.softmax(-1) @ v.double()
    return {c: (attention(c, q, k, v, sizes).double() - exact).square().flatten() for c in ("channels", "mask")}


def measure(dtype: torch.dtype, width: int) -> dict[str, Any]:
    """Root mean squares over all inputs."""
    found = [squared_errors(dtype, width, n, seed) for n in TOKENS for seed in range(SEEDS)]
    means = {c: torch.cat([one[c] for one in found]).mean().sqrt().item() for c in ("channels", "mask")}
    return {"dtype": str(dtype).removeprefix("torch."), "head_width": width, **means}


def main() -> None:
    rows = [measure(*case) for case in CASES]
    for row in rows:
        print(row)
    content = {"device": "cpu", "environment": environment(), "tokens": TOKENS, "largest_size": LARGEST, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
