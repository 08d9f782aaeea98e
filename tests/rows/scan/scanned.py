from functools import partial

import torch
from backbones import Backbone, Inputs
from torch import Tensor, nn

from tokenreduce.maps.walks import Walk
from tokenreduce.models.scanned import ScanBlock, ScanModel
from tokenreduce.ops.causal_conv import causal_conv
from tokenreduce.ops.selective_scan import selective_scan

STATES, TAPS = 4, 3


class ToyMixer(nn.Module):
    """Two directions of the same weights, with time steps and what is written and read by projections of its own."""

    taps = TAPS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(width, TAPS) * 0.5)
        self.step, self.written = nn.Linear(width, width), nn.Linear(width, 2 * STATES)
        self.rates = nn.Parameter(torch.rand(width, STATES))
        self.out_proj = nn.Linear(width, width)
        self.macs = 2 * width * (4 * STATES + TAPS)

    def step_projections(self) -> list[nn.Module]:
        return [self.step]

    def forward(self, u: Tensor, walks: tuple[Walk, Walk] | None = None) -> Tensor:
        step, shown = self.step(u).to(u.dtype), self.written(u).to(u.dtype)
        ahead, back = walks or (Walk(), Walk())
        return self.out_proj(self.scan(u, step, shown, ahead, False) + self.scan(u, step, shown, back, True))

    def scan(self, u: Tensor, step: Tensor, shown: Tensor, walk: Walk, reverse: bool) -> Tensor:
        x = causal_conv(u, self.filter, taps=walk.taps, reverse=reverse)
        step, decay = walk.steps(step, self.step.bias)
        write, read = shown.chunk(2, -1)
        rates = -self.rates.exp()
        return selective_scan(
            x, step, rates, write, read, None, None, decay,
            softplus=decay is None, order=walk.order, scale=walk.sizes, reverse=reverse,
        )  # fmt: skip


class ToyModel(ScanModel):
    """A user's own model, as the protocol says."""

    def __init__(self, class_token: str = "", width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.class_token, self.grid, self.num_features = class_token, (8, 8), width
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(ScanBlock(nn.LayerNorm(width), ToyMixer(width)) for _ in range(depth))
        self.head = nn.Linear(width, 7)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        if self.class_token:
            place = x.shape[1] // 2 if self.class_token == "middle" else 0
            x = torch.cat([x[:, :place], self.token.expand(len(x), -1, -1), x[:, place:]], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.class_row(x) if self.class_token else x.mean(1))


class AllTokens(nn.Module):
    """A model around it whose tokens are read in raster order."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ToyModel()

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone.patches(images).flatten(2).transpose(1, 2)
        for layer in self.backbone.layers:
            x = layer(x)
        return x


def collect(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [model(**inputs)]


def make_rows() -> list[Backbone]:
    row = partial(Backbone, last="layers.3.mixer.step", silence=("mixer.out_proj",), argument="images", scans="first")
    return [
        row("scan_own", ToyModel, prefix=0, reads="tokens"),
        row("scan_own_first", partial(ToyModel, "first")),
        row("scan_own_middle", partial(ToyModel, "middle"), scans="middle"),
        row(
            "scan_own_tokens",
            AllTokens,
            last="backbone.layers.3.mixer.step",
            prefix=0,
            collect=collect,
            reads="tokens",
        ),
    ]
