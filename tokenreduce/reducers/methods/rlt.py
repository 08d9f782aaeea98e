"""RLT: drop what repeats in a video before the network sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap, keep_tokens
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens


@register
@dataclass(frozen=True)
class RLT(Reducer):
    """Drop the tubelets of a video that repeat the time step before, so that each token left stands for a run of them.

    Choudhury et al., "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization", NeurIPS 2024, arXiv
    2411.05222. For the pixels `(B, N, F, P)` of tubelets over F frames, in a grid `(T, H, W)`, the change of a tubelet
    is the mean of the absolute differences between its last frame and the first frame of the tubelet at the same place
    one time step before. Those that change by more than the threshold stay, and all of the first time step. A token
    stands for itself and for the dropped ones that follow it at its place: its size is the length of this run, which
    attention counts where `prop_attn` is on, and restoring copies it to the whole run.

    Consecutive time steps are compared, not each with the head of its run: what changes slowly is dropped throughout.
    What a threshold means depends on how the input is normalised; under a moving camera little repeats.

    Without a budget all images of a batch keep as many tokens as the one with the most changes; the others fill up with
    their next largest changes, where the original packs sequences of different lengths. With a budget (our definition)
    each image keeps its largest changes. The original's optional embedding of the run's length needs training and is
    left out. It runs once, before the first block unless `layers` or `schedule` name another.

    Args:
        threshold: the largest change that counts as a repetition, for normalised pixels; below 0 nothing repeats.
        inherit: a token's size is the length of its run; False: 1, as in the authors' code.
    """

    threshold: float = 0.1
    inherit: bool = True

    name: ClassVar[str] = "rlt"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2411.05222"
    year: ClassVar[int] = 2024
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = "its specification; rccchoudhury/rlt@69ec8b4, selections and lengths of runs equal"
    former: ClassVar[Mapping[str, Any]] = {"inherit": False}
    needs: ClassVar[frozenset[str]] = frozenset({"frames", "pixels"})
    placement: ClassVar[str] = "pre"
    shape: ClassVar[str] = "first"
    once: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    budgeted: ClassVar[str] = "drops the tubelets that change least; the threshold is not used"

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, -1)
        check_option("inherit", self.inherit, bool)

    def least_of(self, n: int, grid: tuple[int, ...] | None) -> int:
        """The tokens of one time step."""
        return self.least(n) if grid is None or len(grid) != 3 else -(-n // grid[0])

    def deciding_layers(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def decide(self, tokens: Tokens, state: Any = None) -> int:
        """The most changes of the batch's images: the one place where an image's result depends on the others."""
        change = changes(tokens)
        return tokens.count - change.shape[1] + int((change > self.threshold).sum(1).amax())

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        change = changes(tokens)
        batch, later = change.shape
        first, device = tokens.count - later, change.device
        if keep < first:
            raise InvalidValueError(f"rlt keeps all {first} tokens of the first time step, so not {keep}; keep more")
        largest = stable_order(change, 1, descending=True)[:, : keep - first].sort(dim=1).values
        kept = torch.cat([counting(first, device).expand(batch, -1), largest + first], 1)
        stays = torch.zeros_like(tokens.features[..., 0], dtype=torch.long).scatter(1, kept, 1)
        times = counting(tokens.count // first, device)
        # The last time step so far whose token stays. ONNX has no running maximum.
        steps = (stays.unflatten(1, (-1, first)) * times[:, None])[:, None]
        heads = (steps * (times <= times[:, None])[..., None]).amax(2) * first + counting(first, device)
        return keep_tokens(kept, (stays.cumsum(1) - 1).gather(1, heads.flatten(1)), self.inherit)

    def work(self, step: Step) -> int:
        return 0


def changes(tokens: Tokens) -> Tensor:
    """`(B, N - N / T)` in fp32: how much each tubelet of the time steps from the second on changes."""
    grid = tokens.grid
    if grid is None or len(grid) != 3 or grid[0] * grid[1] * grid[2] != tokens.count:
        raise InvalidValueError(
            f"rlt needs the tokens to be a full grid (T, H, W), but there are {tokens.count} in a grid {grid}; it "
            "reduces once only, and not a masked input: give one layer and all tokens, or use another method"
        )
    pixels = tokens.pixels.unflatten(1, (grid[0], -1))
    return (pixels[:, 1:, :, -1].float() - pixels[:, :-1, :, 0].float()).abs().mean(-1).flatten(1)
