"""Code of a user, for mypy --strict against the installed wheel: names have types, and a wrong use is seen.

Were py.typed missing from the wheel, nothing would be seen, and the comments that excuse wrong lines would be errors.
"""

import torch
from torch import nn

import tokenreduce


def shrink(model: nn.Module) -> nn.Module:
    print(tokenreduce.report(tokenreduce.patch(model, "tome", flops=0.6)).flops_share)
    return tokenreduce.unpatch(model)


def halve(features: torch.Tensor) -> torch.Tensor:
    token_map: tokenreduce.TokenMap = tokenreduce.plan(features, "ward", keep=features.shape[1] // 2)
    merged, _sizes = tokenreduce.apply(token_map, features)
    return tokenreduce.restore(token_map, merged)


names: list[str] = tokenreduce.methods()
print(tokenreduce.methods().nothing)  # type: ignore[attr-defined]
tokenreduce.patch("no model", "tome", flops=0.6)  # type: ignore[type-var]
schedule: tokenreduce.Schedule = tokenreduce.Schedule.keep({3: 0.7})
