"""`compatible`: which methods fit a model, and why the others do not."""

from __future__ import annotations

from torch import nn

from tokenreduce.patching.finding import around, candidates, find_backbone, need_module
from tokenreduce.patching.fitting import misfit
from tokenreduce.patching.language import fitting_methods
from tokenreduce.reducers.registry import lookup, methods


class Compatibility(list[str]):
    """The methods that fit a model; `refused` maps every other method to the reason. `language` are those that fit with
    `keep=`, before the language model, where there is one."""

    def __init__(self, fitting: list[str], refused: dict[str, str], language: list[str] | None = None) -> None:
        super().__init__(fitting)
        self.refused, self.language = refused, language or []

    @property
    def reasons(self) -> str:
        """Why methods do not fit, each reason once with the methods that it is for; what is so for all stands alone."""
        named: dict[str, list[str]] = {}
        for name, why in self.refused.items():
            named.setdefault(why, []).append(name)
        shortest = min(named, key=len, default="")
        if all(why.startswith(shortest) for why in named):
            return shortest
        return "; ".join(f"{', '.join(names)}: {why}" for why, names in named.items())

    def __repr__(self) -> str:
        lines = [f"fits: {', '.join(self) or 'nothing'}"] + [
            f"  not {name}: {why}" for name, why in self.refused.items()
        ]
        if self.language:
            lines.append(f"with keep=, before the language model: {', '.join(self.language)}")
        return "\n".join(lines)


def compatible(model: nn.Module) -> Compatibility:
    """The methods that fit `model`, as a list; its attribute `refused` says why the others do not.

    Raises: ValueError if no family knows the model, or several parts of it are backbones.
    """
    parts = candidates(need_module(model))
    language = [name for _, part, a in parts if a.place == "language" for name in fitting_methods(part, a)]
    if language and all(a.place == "language" for _, _, a in parts):
        return Compatibility([], dict.fromkeys(methods(), "its vision tower is of no known family"), language)
    holder, backbone, adapter = find_backbone(model)
    outer = around(model, holder)
    reasons = {name: misfit(lookup(name)(), backbone, adapter, outer) for name in methods()}
    fitting, refused = [n for n, why in reasons.items() if not why], {n: why for n, why in reasons.items() if why}
    return Compatibility(fitting, refused, language)
