"""`Shown`: what the layer that runs now has shown of its attention, for the reducer to read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError

# Queries, keys and additive logits as the attention of the current layer uses them, from those that hooks saw.
Attend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
# A video (B, C, frames, height, width), and the sides of the tubelets of which its tokens are made.
Video = tuple[Tensor, tuple[int, ...]]


def averaged(keys: Tensor) -> Tensor:
    """`mean_keys (B, N, d)` of keys `(B, H, N, d)`; those that are a mean already stay."""
    return keys.float().mean(1) if keys.ndim == 4 else keys


def without_history(value: Tensor) -> Tensor:
    """`value` for a plan, which has no gradient; detached in a trace, too, which does not know in which mode it was
    made and would be another one if it were made without gradients."""
    return value.detach() if value.requires_grad or torch.jit.is_tracing() else value


class Shown:
    """Filled by hooks and by restated attentions while a layer runs; emptied when it ends.

    Args:
        by_head: the method's kernel averages the keys itself: `mean_keys` holds them with their heads.
        video: what the tokens were made of, where the method asks for pixels.
    """

    def __init__(self, by_head: bool = False, video: Video | None = None) -> None:
        self.by_head, self.video = by_head, video
        self.entries: dict[str, Tensor] = {}  # of all tokens, protected ones included
        self.steps: list[Tensor] = []  # time steps (B, L, E) of the layer's scans, one for each direction
        self.attend: Attend | None = None
        self.when_keys: Callable[[Tensor], None] | None = None  # told as soon as `mean_keys` are there

    def add(self, name: str, value: Tensor) -> None:
        """Keep the entry `name`, `(B, H, N, d)` of all tokens."""
        self.entries[name] = without_history(value)

    def add_mean_keys(self, keys: Tensor) -> None:
        """Keep `mean_keys` of keys `(B, H, N, d)`, or the keys for a kernel that averages them.

        On a GPU the mean waits until it is read (`averaged`), as some methods seldom do; on a CPU the keys are still at
        hand.
        """
        keys = without_history(keys)
        self.entries["mean_keys"] = keys if self.by_head or keys.is_cuda else averaged(keys)
        if self.when_keys is not None:
            self.when_keys(self.entries["mean_keys"])

    def add_time_step(self, step: Tensor) -> None:
        """Keep the time steps `(B, L, E)` of a direction; `time_step` is their mean."""
        self.steps.append(without_history(step))
        self.entries["time_step"] = self.steps[0] if len(self.steps) == 1 else sum(self.steps) / len(self.steps)  # type: ignore[assignment]

    def get(self, name: str) -> Tensor:
        """The entry `name`.

        Raises: ValueError where the layer has shown none.
        """
        if name not in self.entries:
            raise InvalidValueError(
                f"{name} is not available here (available: {', '.join(self.entries) or 'features only'}): a layer's "
                "attention was replaced, or its hooks removed; after changing a model's attention, patch again"
            )
        return self.entries[name]

    def clear(self) -> None:
        """Forget the layer that has ended."""
        if self.entries:
            self.entries, self.steps = {}, []
        self.attend = None
