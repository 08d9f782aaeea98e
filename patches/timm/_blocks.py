"""`ReducedBlocks`: timm's blocks called as a whole, and why blocks of a changed model cannot be."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenreduce.forward.marks import ATTRIBUTE
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.stack import close, finish, open_run


class ReducedBlocks(nn.Sequential):
    """The blocks called as a whole (`forward_features`): tokens stay reduced between them."""

    def forward(self, x: Tensor) -> Tensor:
        mark: Any = getattr(self[0], ATTRIBUTE, None) if len(self) else None
        # model.blocks[6:](x): the blocks find out whether they may run apart from those before.
        if mark is None or mark.layer > 0:
            return super().forward(x)
        reduction = mark.reduction
        run = open_run(reduction, self.tokens(reduction, x), surrounded=True)
        if run is None:
            return super().forward(x)
        try:
            return self.finished(run, super().forward(x))
        finally:
            close(run)

    def tokens(self, reduction: Reduction, x: Tensor) -> Tensor:
        """The tokens `(B, N, C)` of what the first block receives."""
        return x

    def finished(self, run: Run, x: Tensor) -> Tensor:
        """What follows the blocks goes on with, from what the last one returns."""
        return finish(run, x, restore=run.reduction.restoring.ends)


def refuse_blocks(model: Any, reduced: type[nn.Sequential] = ReducedBlocks) -> list[str]:
    """Why the model's blocks cannot be called as a whole, if they cannot."""
    if type(model.blocks) in (nn.Sequential, reduced):
        return []
    return [f"its blocks are a {type(model.blocks).__name__}, not an nn.Sequential of blocks"]


def refuse_forward(model: Any, known: Any) -> list[str]:
    """Why the blocks may be called in another way than the class `known` of timm does, if they may."""
    reasons = []
    if type(model).forward_features is not known.forward_features:
        reasons.append(f"{type(model).__name__} has a forward_features of its own, which may treat tokens by position")
    if getattr(model, "grad_checkpointing", False):
        reasons.append("gradient checkpointing is on; call model.set_grad_checkpointing(False) first")
    return reasons
