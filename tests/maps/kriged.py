"""Kriging, cluster by cluster and in fp64: what `maps.kriging` and its kernel have to give."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.maps.kriging import NEAREST, REACH, RIDGE


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def beyond(now: Tensor, after: Tensor, before: Tensor, dest: Tensor, empty: Tensor | None = None) -> Tensor:
    """What members have changed by beyond their output, `(B, N, C)`, 0 for those that are alone in theirs."""
    out = torch.zeros(before.shape, dtype=torch.float64)
    for b in range(len(dest)):
        outputs, change = unit(after[b].double()), now[b].double() - after[b].double()
        filled = [j for j in range(len(outputs)) if empty is None or not empty[b, j]]
        for centre in filled:
            members = [i for i in range(dest.shape[1]) if dest[b, i] == centre]
            if len(members) < 2:
                continue
            far = {j: 1 - float(outputs[j] @ outputs[centre]) for j in filled if j != centre}
            near = [centre, *sorted(far, key=far.__getitem__)][:NEAREST]
            points = outputs[near]
            squares = (points[:, None] - points[None]).square().sum(-1)
            length = max(1e-6, REACH * float(squares.mean()))
            kernel = torch.exp(-squares / length)
            for i in members:
                mine = torch.exp(-(unit(before[b, i].double()) - points).square().sum(-1) / length)
                weights = torch.linalg.solve(
                    kernel + RIDGE * torch.eye(len(near), dtype=torch.float64), mine - kernel[0]
                )
                out[b, i] = weights @ (change[near] - change[centre])
    return out
