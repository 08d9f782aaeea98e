"""`tokenreduce.models.scanned.ScanModel`: models of scans that are their users' own."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenreduce.budget.geometry import Costs, Geometry
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.models.scanned import CLASS_TOKENS, ScanBlock, ScanModel

from ..shared.adapter import Reads
from ..shared.layered import LayeredAdapter
from ..shared.scanned import ScannedAdapter, ScannedLayer
from ..shared.weights import is_convolution, matrix_size

NO_STEPS = "a mixer has no step_projections()"


class ReducedScanBlock(ScannedLayer, ScanBlock):
    """`ScanBlock` on what is left of the tokens."""

    def mixed(self, run: Run | Slicing, x: Tensor, *args: Any) -> Tensor:
        taps: Any = self.mixer.taps
        return self.line(x, run.walks(x, taps))


class OwnScans(ScannedAdapter):
    """Adapter for models that follow the protocol of `ScanModel`."""

    reduced: ClassVar = {ScanBlock: ReducedScanBlock}

    name = "scanned"
    family = "tokenreduce ScanModel (your own model of scans, see tokenreduce.models.scanned)"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, ScanModel)

    def step_projections(self, layer: Any) -> Sequence[nn.Module]:
        mixer: Any = getattr(layer, "mixer", None)
        return mixer.step_projections() if hasattr(mixer, "step_projections") else ()

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        return super().captures(model, layer) if hasattr(getattr(layer, "mixer", None), "out_proj") else {}

    def lacks(self, model: Any) -> dict[str, str]:
        found = super().lacks(model)
        if not all(self.captures(model, layer) for layer in self.layers(model)):
            found["scan_output"] = "a mixer has no out_proj"
        return found if self.shows_steps(model) else found | {"time_step": NO_STEPS}

    def scan_refusals(self, model: Any) -> dict[str, str]:
        return {} if self.shows_steps(model) else {"frozen": NO_STEPS}

    def shows_steps(self, model: Any) -> bool:
        """Whether all mixers show their time steps."""
        return all(self.step_projections(layer) for layer in self.layers(model))

    def refuse_parts(self, model: Any, layers: Sequence[Any]) -> list[str]:
        reasons = [f"it has no {name}" for name in ("grid", "num_features") if not hasattr(model, name)]
        if model.class_token not in CLASS_TOKENS:
            reasons.append(f"its class_token is {model.class_token!r}; valid: {', '.join(map(repr, CLASS_TOKENS))}")
        for number, layer in enumerate(layers):
            mixer = layer.mixer
            if not hasattr(mixer, "taps"):
                reasons.append(f"mixer {number} does not say how many taps its convolution has")
            elif len(signature(mixer.forward).parameters) < 2:
                reasons.append(f"mixer {number} takes no walks; give its forward a second parameter")
        return reasons[:3] or LayeredAdapter.refuse_parts(self, model, layers)

    def geometry(self, model: Any) -> Geometry:
        class_tokens = int(model.class_token != "")
        return self.scanned(model, model_costs(model), class_tokens, model.class_token or "first")

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        return "protected" if model.class_token and not outer else "tokens"


def model_costs(model: Any) -> Costs:
    """Costs read off the modules, and what mixers say of their scans. A convolution outside the layers is taken for the
    patch embedding, which runs on every token."""
    layers = [sum(matrix_size(m) for m in layer.modules()) + getattr(layer.mixer, "macs", 0) for layer in model.layers]
    inside = {id(m) for layer in model.layers for m in layer.modules()}
    outside = [m for m in model.modules() if id(m) not in inside]
    per_token = sum(matrix_size(m) for m in outside if is_convolution(m))
    fixed = sum(matrix_size(m) for m in outside if not is_convolution(m))
    none = (0,) * len(layers)
    return Costs(fixed, per_token, tuple(layers), none, none)


ADAPTER = OwnScans()
