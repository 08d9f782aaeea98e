"""Vision Mamba computed slowly, of all tokens and of what is left of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce import TokenMap
from tokenreduce.maps.walks import NOT_MISSED, Walk, gaps
from tokenreduce.models.vim_mixer import VimMixer
from tokenreduce.ops.selective_scan import selective_scan


def slow_mixer(of: VimMixer, u: Tensor) -> Tensor:
    """Each direction one token after the other, the backward one on the flipped sequence."""
    x, z = of.in_proj(u).chunk(2, -1)
    out = []
    for end in ("", "_b"):
        columns, gate = ((t.flip(1) if end else t) for t in (x, z))
        conv = getattr(of, f"conv1d{end}")
        columns = F.silu(conv(columns.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2))
        step, write, read = getattr(of, f"x_proj{end}")(columns).split([of.rank, of.states, of.states], -1)
        step = F.softplus(getattr(of, f"dt_proj{end}")(step))
        rate = -torch.exp(of.A_b_log if end else of.A_log)
        state, ys = torch.zeros(u.shape[0], of.inner, of.states, dtype=u.dtype), []
        for t in range(u.shape[1]):
            state = torch.exp(step[:, t, :, None] * rate) * state
            state = state + step[:, t, :, None] * write[:, t, None] * columns[:, t, :, None]
            ys.append((state * read[:, t, None]).sum(-1))
        y = (torch.stack(ys, 1) + getattr(of, f"D{end}") * columns) * F.silu(gate)
        out.append(y.flip(1) if end else y)
    return of.out_proj((out[0] + out[1]) / (2 if of.halved else 1))


def restored_mixer(of: VimMixer, u: Tensor, rank: Tensor, owners: Tensor, both: tuple[Walk, Walk], conv: str) -> Tensor:
    """What is left of a sequence through the mixer, slowly: restore all tokens, convolve, gather, scan what is left in
    the order of its places."""
    order = rank.argsort(1)

    def wide(index: Tensor, like: Tensor) -> Tensor:
        return index[..., None].expand(-1, -1, like.shape[2])

    x, z = of.in_proj(u).chunk(2, -1)
    out = 0
    for end, walk in zip(("", "_b"), both, strict=True):
        if conv == "compact":
            whole, place = x.gather(1, wide(order, x)), order.argsort(1)
        else:
            whole, place = x.gather(1, wide(owners, x)), rank
        if conv == "zeros":
            whole = whole * torch.zeros_like(owners).scatter(1, rank, 1)[..., None]
        whole = (whole.flip(1) if end else whole).transpose(1, 2)
        mixed = F.silu(getattr(of, f"conv1d{end}")(whole)[..., : whole.shape[2]].transpose(1, 2))
        left = (mixed.flip(1) if end else mixed).gather(1, wide(place, x))
        step, write, read = getattr(of, f"x_proj{end}")(left).split([of.rank, of.states, of.states], -1)
        step, decay = walk.steps(getattr(of, f"dt_proj{end}")(step), getattr(of, f"dt_proj{end}").bias)
        step = F.softplus(step) if decay is None else step
        step = step if walk.sizes is None else step * walk.sizes[..., None]
        decay = step if decay is None else decay
        rows = [t.gather(1, wide(order, t)) for t in (left, step, write, read, z, decay)]
        rate, skip = -torch.exp(of.A_b_log if end else of.A_log), getattr(of, f"D{end}")
        y = selective_scan(rows[0], rows[1], rate, *rows[2:4], skip, *rows[4:], reverse=bool(end))
        out = out + y.gather(1, wide(order.argsort(1), y))
    return of.out_proj(out / (2 if of.halved else 1))


class SlowVim:
    """Runs the layers of a `VisionMamba` on what is left of its tokens, whose places are kept in lists.

    Args:
        conv, gap: the rules of scans.
    """

    def __init__(self, model: torch.nn.Module, conv: str, gap: str) -> None:
        self.model, self.conv, self.gap = model, conv, gap

    def __call__(self, images: Tensor, maps: dict[int, TokenMap]) -> Tensor:
        """The stream `[class token | image tokens left]` after the last layer, with these maps after layers."""
        x, at = self.model.embed(images), self.model.class_place
        batch, whole = x.shape[:2]
        x = torch.cat([x[:, at : at + 1], x[:, :at], x[:, at + 1 :]], 1)
        own = [at, *(place for place in range(whole) if place != at)]
        self.rank = torch.tensor([own] * batch)
        self.owners = torch.tensor([[own.index(place) for place in range(whole)]] * batch)
        self.last = torch.zeros(2, batch, whole, self.model.layers[0].mixer.inner, dtype=x.dtype)
        sizes, self.sizes = None, None
        for number, layer in enumerate(self.model.layers):
            x = x + self.mixed(layer, layer.norm(x))
            if number in maps:
                x, sizes = maps[number].apply(x, sizes, 1), maps[number].sizes(sizes)
                self.sizes = F.pad(sizes, (1, 0), value=1.0) if self.gap == "size" else None
                self.follow(maps[number])
        return x

    def mixed(self, layer: torch.nn.Module, u: Tensor) -> Tensor:
        """The mixer; the steps of this layer are remembered at the places of the tokens."""
        both = tuple(Walk(None, None, *gaps(self.rank, self.rank.argsort(1), sign), self.gap) for sign in (1, -1))
        if self.gap in NOT_MISSED:
            both = (Walk(sizes=self.sizes),) * 2
        if self.gap == "frozen":
            both = tuple(
                Walk(None, None, walk.missing, walk.before, "frozen", self.frozen(direction))
                for direction, walk in enumerate(both)
            )
        seen: list[Tensor] = []
        projections = (layer.mixer.dt_proj, layer.mixer.dt_proj_b)
        handles = [m.register_forward_hook(lambda module, args, out: seen.append(F.softplus(out))) for m in projections]
        y = restored_mixer(layer.mixer, u, self.rank, self.owners, both, self.conv)
        for handle, step, last in zip(handles, seen, self.last, strict=True):
            handle.remove()
            last.scatter_(1, self.rank[..., None].expand_as(step), step)
        return y

    def frozen(self, direction: int) -> Tensor:
        """The sum of the last steps of what is missing before each row, place by place."""
        sums = torch.zeros(*self.rank.shape, self.last.shape[-1], dtype=self.last.dtype)
        for image, places in enumerate(self.rank.tolist()):
            waited = torch.zeros_like(sums[0, 0])
            for place in range(self.last.shape[2])[:: -1 if direction else 1]:
                if place in places:
                    sums[image, places.index(place)], waited = waited, torch.zeros_like(waited)
                else:
                    waited = waited + self.last[direction, image, place]
        return sums

    def follow(self, token_map: TokenMap) -> None:
        rep, dest = token_map.representatives(), token_map.dest_or_argmax()
        for image in range(len(rep)):
            stands = dict(enumerate(dest[image].tolist())) | {row: out for out, row in enumerate(rep[image].tolist())}
            owners = [stands[row - 1] + 1 if row else 0 for row in self.owners[image].tolist()]
            self.owners[image] = torch.tensor(owners)
        self.rank = torch.cat([self.rank[:, :1], self.rank[:, 1:].gather(1, rep)], 1)
