"""`ScanModel` and `ScanBlock`: the protocol by which a state-space model of your own can be reduced."""

from __future__ import annotations

from torch import Tensor, nn

from tokenreduce.maps.walks import Walk

CLASS_TOKENS = ("", "first", "middle")


class ScanBlock(nn.Module):
    """`x + mixer(norm(x))`, the only kind of layer that a `ScanModel` may have.

    Args:
        norm: of tokens `(B, L, C)`.
        mixer: of normed tokens; see `ScanModel` for what it must have.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module) -> None:
        super().__init__()
        self.norm, self.mixer = norm, mixer

    def forward(self, x: Tensor) -> Tensor:
        """`(B, L, C)` from the stream `x (B, L, C)`."""
        return self.line(x, None)

    def line(self, x: Tensor, walks: tuple[Walk, Walk] | None) -> Tensor:
        """The same of what is left of the tokens, over which scans walk so."""
        return x + self.mixer(self.norm(x), walks)


class ScanModel(nn.Module):
    """A base for your own model of scans along the tokens in raster order, in one direction or in two.

    How to use it: derive your model from this class, make its `layers` an `nn.ModuleList` of `ScanBlock(norm, mixer)`,
    and set `grid`, `num_features` and `class_token`; its forward embeds an image, inserts the class token where
    `class_token` says, and calls one layer after the other on `(B, L, C)`. Afterwards it reads the class token at
    `class_row(x)`, or the mean of all tokens. The mixer takes `(u, walks=None)`; `walks` is None for tokens as they
    stand, or the pair of `Walk`s of the directions there and back over the rows that are left. Give `walk.taps` to
    `causal_conv`, `walk.order` and, as `scale`, `walk.sizes` to `selective_scan`, and pass steps before softplus
    through `walk.steps`, whose second result, if it is not None, is `decay_dt` for steps that have been through
    softplus. Then
    `tokenreduce.patch(model, ...)` does the rest. `tokenreduce.models.vim_mixer.VimMixer` is a mixer of this kind.

    What a mixer must have besides: `taps`, how many tokens its convolution reads, 1 for none. What it may have:
    `out_proj`, a module whose input is `scan_output`; `step_projections()`, the modules that give time steps before
    softplus, for methods that read `time_step` and for `scan_gap="frozen"`; `macs`, the multiply-adds a token of its
    scans and convolutions, which no matrix shows.

    Attributes:
        layers: the blocks.
        grid: (H, W) of the image tokens of an input of the default size.
        num_features: C.
        class_token: "first", in the "middle" (N // 2 of N image tokens stand before it), or "" for none.
    """

    class_token: str = ""
    grid: tuple[int, int]
    num_features: int
    layers: nn.ModuleList

    def class_row(self, x: Tensor) -> Tensor:
        """`(B, C)`, the class token of `x (B, L, C)` after the last layer, however many tokens are left."""
        return x[:, (x.shape[1] - 1) // 2 if self.class_token == "middle" else 0]
