"""`ClassAttention`: what the attention of class tokens is computed from, for kernels that do so on their way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenreduce.ops.attention import class_rows, kernel_of_rows


@dataclass(frozen=True)
class ClassAttention:
    """The attention of the first `class_tokens` tokens to the image tokens; called, it is computed.

    Args:
        queries, keys: `(B, H, N, d)` of all tokens, protected ones included.
        bias: the additive logits, see `ops.attention`.
        image: where the image tokens stand.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    class_tokens: int
    image: slice

    def __call__(self) -> Tensor:
        """`(B, image tokens)` in fp32, mean over heads and class tokens."""
        return class_rows(self.queries, self.keys, self.bias, self.class_tokens)[:, self.image]

    def parts(self) -> tuple[Tensor, Tensor, Tensor | None, int, int] | None:
        """Queries, keys, bias, class tokens, and how many tokens stand before the image tokens, for a kernel that does
        what `class_rows` does; None where that one does not run."""
        if kernel_of_rows(self.queries, self.keys, self.bias) is None:
            return None
        return self.queries, self.keys, self.bias, self.class_tokens, self.image.start
