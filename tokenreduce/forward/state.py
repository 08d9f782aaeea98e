"""`TokenState`: sizes, maps and places of the tokens of one forward, and what attention needs of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.scan_state import ScanState
from tokenreduce.maps.grid_walks import GridWalks
from tokenreduce.maps.places import Places
from tokenreduce.maps.restoring import Around
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.maps.walks import Walk
from tokenreduce.ops.merging import size_bias
from tokenreduce.ops.rows import with_protected
from tokenreduce.ops.sized_attention import size_mask


class TokenState:
    """What is known of the tokens between two layers. Blocks only receive `x`, so it travels beside it.

    Args:
        reduction: the patch.
        entered: image tokens that enter the first layer.
        grid: their grid, or None where there is none.
        valid: `(B, prefix + N + suffix)`, False for tokens that only pad: they get size 0, and so no attention.
    """

    def __init__(
        self, reduction: Reduction, entered: int, grid: tuple[int, ...] | None, valid: Tensor | None = None
    ) -> None:
        self.reduction, self.entered, self.grid = reduction, entered, grid
        self.protected = reduction.geometry.protected
        self.valid = None if valid is None else valid.float()
        start = reduction.geometry.prefix
        self.first_sizes = None if self.valid is None else self.valid[:, start : start + entered]
        self.restart()

    def restart(self) -> None:
        """The state of tokens that are all there, at the beginning and after restoring within the model."""
        reads = self.reduction.reducer.read_between()
        follows = frozenset({"origin"}) if self.reduction.geometry.follows_origin else frozenset()
        self.sizes = self.first_sizes
        self.bias: Tensor | None = None
        self.maps: list[TokenMap] = []  # since all tokens were there
        self.around: list[Around] = []
        follows |= {"positions"} if self.reduction.geometry.ordered and self.grid is not None else frozenset()
        self.places = Places(self.entered, self.grid, reads | follows)
        shape = self.reduction.geometry
        middle = shape.ordered == "middle"
        self.scan = ScanState(self.reduction.scan, self.entered, shape.prefix, middle) if shape.ordered else None

    def attention_bias(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """Additive logits `(B, 1, 1, N)`, log size of each key, 0 for protected tokens; None while all sizes are 1.

        Without a `dtype` they are for attention over `x`, which may take them as channels: see `size_mask`.
        """
        if self.sizes is None or not (self.reduction.prop_attn or self.valid is not None):
            return None
        if self.bias is None:
            self.bias = self._size_logits(self.sizes)
        if dtype is None:
            return size_mask(self.bias, x)
        return self.bias if self.bias.dtype == dtype else self.bias.to(dtype)

    def _size_logits(self, sizes: Tensor) -> Tensor:
        shape = self.reduction.geometry
        sizes = sizes if self.reduction.prop_attn else (sizes > 0).float()
        if self.valid is None:
            return size_bias(sizes, shape.prefix, shape.suffix)
        protected = self.valid.log()
        after = protected[:, protected.shape[1] - shape.suffix :]
        return torch.cat([protected[:, : shape.prefix], sizes.log(), after], 1)[:, None, None, :]

    def rows(self, table: Tensor, x: Tensor) -> Tensor:
        """The rows of a table of the input's image tokens, `(N, D)`, `(H, N, D)` or `(B, H, N, D)`, that belong to the
        tokens of `x`: those of their representatives, `(B, 1 or H, M, D)`. The table itself before any reduction."""
        if not self.maps:
            return table
        origin = self.places.origin(x.shape[0], x.device)
        if table.ndim == 2:
            return table[origin][:, None]
        if table.ndim == 3:
            return table[:, origin].transpose(0, 1)
        index = origin[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[-1])
        return table.expand(origin.shape[0], -1, -1, -1).gather(2, index)

    def pairs(self, table: Tensor, x: Tensor) -> Tensor:
        """The entries of a table of all the input's tokens in pairs, `(1 or B, H, N, N)`, protected ones included, that
        belong to the tokens of `x`: `(B, H, M, M)`. The table itself before any reduction."""
        if not self.maps:
            return table
        shape = self.reduction.geometry
        origin = self.places.origin(x.shape[0], x.device)
        tokens = with_protected(origin, shape.prefix, shape.prefix + self.entered, shape.suffix)
        if table.shape[0] == 1:
            return table[0][:, tokens[:, :, None], tokens[:, None, :]].transpose(0, 1)
        rows = table.gather(2, tokens[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3]))
        return rows.gather(3, tokens[:, None, None, :].expand(*rows.shape[:3], -1))

    def walks(self, x: Tensor, taps: int) -> tuple[Walk, Walk] | None:
        """How the scans of a state-space model walk over the rows of `x`, whose convolution has so many taps; None: row
        by row."""
        return None if self.scan is None else self.scan.walks(x.shape[0], x.device, taps, self.sizes)

    def grid_walks(self, x: Tensor, whole: GridWalks) -> GridWalks:
        """How scans along a grid walk over the rows of `x`, from the walks over the `whole` grid."""
        return whole if self.scan is None else self.scan.grid_walks(whole, self.sizes)

    def blank(self, x: Tensor) -> Tensor:
        """`x` with zeros in the place of padding, so that what it held decides nothing."""
        return x if self.valid is None else x.masked_fill(self.valid[..., None] == 0, 0)
