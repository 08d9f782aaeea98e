"""How many near-duplicates a token has: PiToMe's energy (Tran et al., NeurIPS 2024, arXiv 2405.16148)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.ops.constants import counting
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.reducers.parts.cosine import normalised

FORMS = ("paper", "code")


def energy(metric: Tensor, margin: float, alpha: float = 1.0, form: str = "paper") -> Tensor:
    """N times the energy of each token, `(B, N)` summed in fp64, from cosines c of `metric (B, N, d)` in fp32.

    Args:
        margin: cosines from here on count as near-duplicates: as c ("paper") or c - margin ("code").
        alpha: weight of what lies below: `alpha (exp(c - margin) - 1)`.
        form: one of `FORMS`.
    """
    compiled = choose("pitome_energy", metric)
    if compiled is not None:
        return compiled(metric, margin, alpha, form == "code")
    unit = normalised(metric)
    index = counting(metric.shape[1], metric.device)
    # Rounding must not decide between equals: a token's cosine with itself is 1, or 0 for a zero vector, and the
    # two cosines of a pair are one number.
    own = unit.square().sum(-1, keepdim=True).round()
    product = unit @ unit.transpose(1, 2)
    cosine = torch.where(index == index[:, None], own, (product + product.transpose(1, 2)) / 2)
    above = cosine if form == "paper" else cosine - margin
    # In fp64 the sum of so many fp32 numbers is exact, so that equal energies come out equal.
    return torch.where(cosine >= margin, above, alpha * (cosine - margin).expm1()).sum(-1, dtype=torch.float64)
