"""`TokenMap`: how N image tokens became M, as data. Prefix and suffix tokens are never part of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.ops import products
from tokenreduce.ops.constants import counting
from tokenreduce.ops.merging import merge_fused, merge_rows
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import between, scatter_rows, scatter_sums, summing, take, with_protected


@dataclass(eq=False)
class TokenMap:
    """How N image tokens became M, in one of two encodings of the share matrix G `(B, M, N)`.

    With sizes s, the new tokens are `Y = diag(1 / G s) G diag(s) X` and the new sizes `G s`; without division
    `Y = G X`.

    Integer encoding: `dest (B, N)` holds for every token its output, also for a dropped one (the output that stands for
    it when restoring); `weight (B, N)` its share, 1 when None, 0 for a dropped token.
    Dense encoding: `share (B, M, N)`, for many-to-many maps.

    Args:
        count: M, a plain integer.
        size_weight: `(B, N)`, where sizes add differently from features; None: as `weight`.
        rep: `(B, M)`, the member that represents each output (its position, its bias rows).
        sources: `(B, N - M)`, the tokens that represent no output; saves work when `rep` and `sources` are both known.
        drops: every token that is no representative is dropped. Then sizes do not add up unless `size_weight` lets
            them, and applying an integer map is a gather of `rep`.
        fused: all sources join the last output and every token counts as it did.
        gain: `(B, M)`, a factor on each output (norm-preserving merges, unnormalised sums).
        divide: False adds shares of features as they are, whatever their sizes (propagation).
        undo: `(B, N, M)`, an explicit restore matrix where the method's own is not the transpose of G.
        grid: the output's `(H, W)` if it still is one.
        ascending: `rep` is known to ascend.
        middles: `(B, M, 2)`, the mean grid position of each output, where the plan found it anyway.
    """

    count: int
    dest: Tensor | None = None
    weight: Tensor | None = None
    share: Tensor | None = None
    size_weight: Tensor | None = None
    rep: Tensor | None = None
    sources: Tensor | None = None
    drops: bool = False
    fused: bool = False
    gain: Tensor | None = None
    divide: bool = True
    undo: Tensor | None = None
    grid: tuple[int, ...] | None = None
    ascending: bool = False
    middles: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.dest is None) == (self.share is None):
            raise InvalidTypeError("a TokenMap needs exactly one of dest (B, N) and share (B, M, N)")
        if self.share is not None and self.share.shape[1] != self.count:
            raise InvalidValueError(f"share has {self.share.shape[1]} rows but count is {self.count}")
        if self.drops and self.rep is None:
            raise InvalidTypeError("a TokenMap that drops tokens needs rep (B, M), the tokens that stay")

    @property
    def entered(self) -> int:
        """N, the number of image tokens before."""
        return self.dest.shape[1] if self.dest is not None else self.share.shape[2]  # type: ignore[union-attr]

    @property
    def batch(self) -> int:
        """B, the number of images."""
        return self.dest.shape[0] if self.dest is not None else self.share.shape[0]  # type: ignore[union-attr]

    def merge(
        self, x: Tensor, sizes: Tensor | None = None, prefix: int = 0, suffix: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`apply` and `sizes` at once, and the attention bias of the new sizes if the kernel computed it anyway (else
        None)."""
        means = self.gain is None and self.divide and not self.drops
        if means and self.share is None and products.keeps(x) and products.suits(x, self.entered):
            return self._merge_by_product(x, sizes, prefix, suffix)
        if means and self.rep is not None and self.sources is not None:
            mass = self._mass(sizes)
            if self.fused and mass is not None:
                merged = merge_fused(x, self.rep, self.sources, mass, sizes, prefix, suffix)
                if merged is not None:
                    return merged
            merged = merge_rows(x, self.dest, self.rep, self.sources, mass, prefix, suffix)
            if merged is not None:
                own_sizes = self.weight is None and self.size_weight is None
                return merged if own_sizes else (merged[0], self.sizes(sizes), None)
        return self.apply(x, sizes, prefix, suffix), self.sizes(sizes), None

    def apply(self, x: Tensor, sizes: Tensor | None = None, prefix: int = 0, suffix: int = 0) -> Tensor:
        """New tokens `(B, prefix + M + suffix, C)` from `x (B, prefix + N + suffix, C)` and sizes `(B, N)` (None: all
        1).

        Protected tokens pass through unchanged. Sums run in fp32 for half-precision inputs.
        """
        if self.dest is None or self.rep is None or not self.divide:
            image = self._apply_generic(between(x, prefix, suffix), sizes)
            return torch.cat([x[:, :prefix], image, x[:, x.shape[1] - suffix :]], 1) if prefix or suffix else image
        out = take(x, with_protected(self.rep, prefix, x.shape[1] - suffix, suffix))
        if not self.drops:
            out = self._add_sources(x, out, sizes, prefix)
        if self.gain is not None:
            scaled = out[:, prefix : prefix + self.count] * self.gain[..., None].to(out.dtype)
            out = torch.cat([out[:, :prefix], scaled, out[:, prefix + self.count :]], 1)
        return out

    def sizes(self, sizes: Tensor | None = None) -> Tensor:
        """New sizes `(B, M)` in fp32 from sizes `(B, N)` (None: all 1)."""
        like = self.dest if self.dest is not None else self.share
        if sizes is None and self.drops and self.size_weight is not None:
            return self._sums(self.size_weight)
        if sizes is None:
            sizes = torch.ones(like.shape[0], self.entered, dtype=torch.float32, device=like.device)  # type: ignore[union-attr]
        if self.drops and self.size_weight is None:
            return sizes.gather(1, self.rep)  # type: ignore[arg-type]
        if self.size_weight is None and self.share is not None:
            return torch.einsum("bmn,bn->bm", self.share.float(), sizes)
        weight = self.size_weight if self.size_weight is not None else self.weight
        return self._sums(sizes if weight is None else sizes * weight)

    def restore(self, y: Tensor, prefix: int = 0, suffix: int = 0) -> Tensor:
        """Tokens `(B, prefix + N + suffix, C)` in the order before: each takes what its outputs `y` hold now."""
        if self.dest is not None and self.undo is None:
            return take(y, with_protected(self.dest, prefix, prefix + self.count, suffix))
        reduced = summing(y[:, prefix : prefix + self.count])
        image = (self.undo_matrix().to(reduced.dtype) @ reduced).to(y.dtype)
        return torch.cat([y[:, :prefix], image, y[:, prefix + self.count :]], 1)

    def compose(self, then: TokenMap) -> TokenMap:
        """The map that does this one and `then` the other: destinations, shares and restoring compose exactly.

        `size_weight`, `gain` and a missing division act between the two steps and are left out.
        """
        if self.count != then.entered:
            raise InvalidValueError(
                f"cannot compose: the first map leaves {self.count} tokens, the next takes {then.entered}"
            )
        if self.dest is None or then.dest is None or self.undo is not None or then.undo is not None:
            return TokenMap(
                then.count,
                share=then.dense() @ self.dense(),
                undo=self.undo_matrix() @ then.undo_matrix(),
                divide=self.divide or then.divide,
                grid=then.grid,
            )
        weights = [self.weight, None if then.weight is None else then.weight.gather(1, self.dest)]
        known = [w for w in weights if w is not None]
        rep = None if self.rep is None or then.rep is None else self.rep.gather(1, then.rep)
        return TokenMap(
            then.count,
            dest=then.dest.gather(1, self.dest),
            weight=None if not known else known[0] if len(known) == 1 else known[0] * known[1],
            rep=rep,
            drops=self.drops and then.drops and rep is not None,
            grid=then.grid,
        )

    def dense(self) -> Tensor:
        """The share matrix G `(B, M, N)` in fp32."""
        share = self.share  # which a subclass may have to make
        if share is not None:
            return share.float()
        one_hot = self._one_hot()
        return one_hot if self.weight is None else one_hot * self.weight[:, None, :].float()

    def undo_matrix(self) -> Tensor:
        """The restore matrix `(B, N, M)` in fp32; its rows sum to 1."""
        undo = self.undo
        if undo is not None:
            return undo.float()
        if self.dest is not None:
            return self._one_hot().transpose(1, 2)
        share = self.dense().transpose(1, 2)
        total = share.sum(-1, keepdim=True)
        return torch.where(total > 0, share / total.clamp_min(1e-12), torch.ones_like(share) / self.count)

    def dest_or_argmax(self) -> Tensor:
        """`(B, N)`: the output of each token, or the one that takes most of it."""
        return self.dest if self.dest is not None else self.share.argmax(1)  # type: ignore[union-attr]

    def representatives(self) -> Tensor:
        """`(B, M)`: the token that represents each output; where the map names none, the first of those that give it
        most."""
        if self.rep is not None:
            return self.rep
        return (self._one_hot() if self.share is None else self.share).argmax(2)

    def _one_hot(self) -> Tensor:
        outputs = counting(self.count, self.dest.device)  # type: ignore[union-attr]
        return (self.dest[:, None, :] == outputs[None, :, None]).float()  # type: ignore[index]

    def membership(self, mass: Tensor | None) -> Tensor:
        """`(B, N, M)`: the `mass (B, N)` of each token (None: 1) at its output, of an integer map."""
        return products.one_hot(self.dest, self.count, mass)  # type: ignore[arg-type]

    def _merge_by_product(
        self, x: Tensor, sizes: Tensor | None, prefix: int, suffix: int
    ) -> tuple[Tensor, Tensor, None]:
        """`merge` of a map of means in few launches; an output without mass is 0."""
        end = x.shape[1] - suffix
        merged, total = products.means(x[:, prefix:end], self.membership(self._mass(sizes)))
        merged = merged.to(x.dtype)
        out = torch.cat([x[:, :prefix], merged, x[:, end:]], 1) if prefix or suffix else merged
        return out, total if self.weight is None and self.size_weight is None else self.sizes(sizes), None

    def _apply_generic(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """Without a known representative: scatter the integer encoding, multiply the dense one."""
        if not self.divide:
            sizes = None
        if self.share is not None:
            share = self.dense() if sizes is None else self.dense() * sizes[:, None, :]
            total, summed = share.sum(-1), share.to(summing(x).dtype) @ summing(x)
        else:
            mass = self._mass(sizes)
            mass = torch.ones_like(self.dest, dtype=torch.float32) if mass is None else mass  # type: ignore[arg-type]
            rows = summing(x) * mass[..., None]
            empty = rows.new_zeros(x.shape[0], self.count, x.shape[-1])
            summed = scatter_rows(empty, self.dest, rows)  # type: ignore[arg-type]
            total = scatter_sums(mass.new_zeros(x.shape[0], self.count), self.dest, mass)  # type: ignore[arg-type]
        if self.divide:
            summed = summed / total.clamp_min(1e-12)[..., None]
        return (summed if self.gain is None else summed * self.gain[..., None]).to(x.dtype)

    def _add_sources(self, x: Tensor, out: Tensor, sizes: Tensor | None, prefix: int) -> Tensor:
        """Move each representative towards its other members: `y = x_rep + sum_i w_i (x_i - x_rep) / sum w`.

        Equal to the weighted mean, and exact where all members are equal.
        """
        assert self.dest is not None and self.rep is not None
        sources = self.sources if self.sources is not None else self._find_sources()
        dest = self.dest.gather(1, sources)
        mass = self._mass(sizes)
        if mass is None:
            ones = torch.ones_like(dest, dtype=torch.float32)
            total = scatter_sums(ones.new_ones(dest.shape[0], self.count), dest, ones)
            ratio = 1 / total.gather(1, dest)
        else:
            moved = mass.gather(1, sources)
            total = scatter_sums(mass.gather(1, self.rep), dest, moved)
            ratio = moved / total.gather(1, dest).clamp_min(1e-12)
        target = dest + prefix
        delta = summing(take(x, sources + prefix) - take(out, target)) * ratio[..., None]
        total_out = summing(out)
        return scatter_rows(total_out, target, delta.to(total_out.dtype)).to(x.dtype)

    def _sums(self, grown: Tensor) -> Tensor:
        """What each output gets of `grown (B, N)`."""
        if products.on_gpu(grown) and self.entered > products.FEW and self.rep is not None and self.sources is not None:
            # The matrix of what moves is smaller than that of all tokens.
            moved = self.dest.gather(1, self.sources)  # type: ignore[union-attr]
            return scatter_sums(grown.gather(1, self.rep), moved, grown.gather(1, self.sources))
        if products.on_gpu(grown):
            return products.one_hot(self.dest_or_argmax(), self.count, grown, grown.dtype).sum(1)
        return scatter_sums(grown.new_zeros(grown.shape[0], self.count), self.dest_or_argmax(), grown)

    def _mass(self, sizes: Tensor | None) -> Tensor | None:
        if self.weight is None or sizes is None:
            return self.weight if sizes is None else sizes
        return self.weight * sizes

    def _find_sources(self) -> Tensor:
        is_rep = torch.zeros_like(self.dest).scatter(1, self.rep, 1)  # type: ignore[arg-type]
        return stable_order(is_rep, 1)[:, : self.entered - self.count]


def identity(batch: int, count: int, device: torch.device | str | None = None) -> TokenMap:
    """The map that keeps every token where it is."""
    index = torch.arange(count, device=device).expand(batch, -1)
    return TokenMap(count, dest=index, rep=index, drops=True)


def keep_tokens(kept: Tensor, dest: Tensor, inherit: bool = False) -> TokenMap:
    """The pruning map that keeps `kept (B, M)` in that order; `dest (B, N)` says who stands for a dropped one and, with
    `inherit`, takes over its size. Else the size is lost, and with it the attention that went there."""
    count = kept.shape[1]
    ranks = counting(count, kept.device).expand_as(kept)
    dest = dest.scatter(1, kept, ranks)
    weight = torch.zeros_like(dest, dtype=torch.float32).scatter(1, kept, 1.0)
    sizes = torch.ones_like(weight) if inherit else None
    return TokenMap(count, dest=dest, weight=weight, size_weight=sizes, rep=kept, drops=True)
