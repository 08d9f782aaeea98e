"""`LayeredAdapter` and `ReducedLayer`: what families share whose model is a list of layers, each with an attention and
an MLP line.

A family restates the two residual lines of its layers and nothing else; attention, norms and MLPs stay the library's
own modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.marks import Mark, Path, mark, parts_stand, patch_of, unmark
from tokenreduce.forward.noted import collected
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.run import Run
from tokenreduce.forward.slicing import Slicing
from tokenreduce.forward.stack import join, leave

from .adapter import READS, Adapter
from .classes import Classes, become, refuse_classes, swap, swap_back
from .hooks import add_hook, captured_by_hooks, has_hooks, remove_hooks
from .standing import (
    AGAIN,
    check_embedding,
    count_layers,
    in_the_way,
    keep_hold,
    mark_layer,
    replaced_forward,
    shared_parts,
)


class ReducedLayer:
    """The forward of a layer with the reduction around and between its two lines; goes in front of the layer's class.

    `run` is the forward's `Run`, or a `Slicing`: what they share is `attention_bias`, `rows` and `pairs`.
    """

    _tokenreduce: Mark

    def attention_line(self, run: Run, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention and its residual, with the arguments that the layer was called with."""
        raise NotImplementedError  # every family has its own

    def mlp_line(self, x: Tensor) -> Tensor:
        """MLP and its residual."""
        raise NotImplementedError  # every family has its own

    def second_line(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`mlp_line` of a layer whose MLP reads arguments of the layer, too."""
        return self.mlp_line(x)

    def collected(self, reduction: Reduction) -> frozenset[int]:
        """The layers whose outputs other code collects in this forward."""
        return collected(reduction)

    def valid(self, reduction: Reduction, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        """`(B, prefix + N + suffix)`, False for padding; None where nothing is padded. Raises for masks that cannot be
        honoured."""
        return None

    def __prepare_scriptable__(self) -> NoReturn:
        raise InvalidValueError(
            "torch.jit.script cannot compile a reduced model, whose layers take arguments of any number; use "
            "torch.export.export or torch.compile, or call tokenreduce.unpatch(model) first"
        )

    def forward(self, *arguments: Any, **kwargs: Any) -> Any:
        reduction, layer, _ = self._tokenreduce
        x, *args = arguments
        run = join(reduction, layer, x, self.collected, lambda: self.valid(reduction, x, *args, **kwargs))
        if run is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        keep_hold(self, reduction)  # type: ignore[arg-type]
        x = run.reduce(layer, run.enter(layer, x), "pre")
        x = self.attention_line(run, x, *args, **kwargs)
        x = self.second_line(run.reduce(layer, x, "mid"), *args, **kwargs)
        return leave(run, layer, run.reduce(layer, x, "post"))


class LayeredAdapter(Adapter):
    """An adapter for models that are a list of layers.

    `reduced`: what stands for each class of layers; `attentions`: what stands for each class of the attentions whose
    forward is restated, `restated`; `containers`: what stands for the classes of what `surrounds` the layers.
    """

    reduced: ClassVar[Classes]
    attentions: ClassVar[Classes] = {}
    containers: ClassVar[Classes] = {}

    def layers(self, model: Any) -> Sequence[Any]:
        """The layers, first to last."""
        raise NotImplementedError  # every family has its own

    def restated(self, layer: Any, wanted: frozenset[str] | None = None) -> Sequence[nn.Module]:
        """The attentions in a layer whose class is swapped, too, where a method reads the `wanted` entries."""
        return ()

    def watched(self, layer: Any) -> Sequence[nn.Module]:
        """What else in a layer the patch relies on."""
        return ()

    def surrounds(self, model: Any) -> Sequence[nn.Module]:
        """The modules around the layers whose class is swapped, too."""
        return ()

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        """The modules of a layer that show keys, queries and values: the module and the hook, by entry of `Tokens`."""
        raise NotImplementedError  # every family has its own

    def grid_capture(self, model: Any) -> tuple[nn.Module, str] | None:
        """The module that shows the grid of an input, and the hook."""
        return None

    def video_capture(self, model: Any) -> tuple[nn.Module, str]:
        """The module that shows a video whose tubelets are the tokens, and the hook."""
        raise NotImplementedError  # only models of videos have one

    def refusals(self, model: Any) -> list[str]:
        layers = self.layers(model)
        if len(layers) == 0:
            return ["it has no layers"]
        reasons = refuse_classes("blocks are of class", layers, self.reduced)
        reasons = reasons or shared_parts((f"block {i}", layer) for i, layer in enumerate(layers))
        reasons = reasons or self.refuse_parts(model, layers)
        if any(replaced_forward(module) is not None for layer in layers for module in layer.modules()):
            reasons.append("a forward method was replaced on its blocks by another tool; undo that first")
        return reasons

    def refuse_parts(self, model: Any, layers: Sequence[Any]) -> list[str]:
        """Why the parts of the layers cannot be restated or read."""
        try:
            restated = [
                (f"the attention of block {i}", a) for i, part in enumerate(layers) for a in self.restated(part)
            ]
            shown = [(i, self.captures(model, layer).values()) for i, layer in enumerate(layers)]
        except AttributeError as error:
            return [f"the parts of its attention are not those of the family ({error})"]
        reasons = self.refuse_attentions([attention for _, attention in restated])
        parts = {(i, id(module)): module for i, found in shown for module, _ in found}
        named = [*restated, *((f"a projection of block {i}", module) for (i, _), module in parts.items())]
        return reasons or shared_parts(iter(named))

    def refuse_attentions(self, attentions: Sequence[nn.Module]) -> list[str]:
        """Why these attentions cannot be restated."""
        return refuse_classes("attention is", attentions, self.attentions)

    def install(self, model: Any, reduction: Reduction) -> None:
        grid = self.grid_capture(model)
        if grid is not None:
            add_hook(grid[0], reduction, grid[1])
        if self.videos and "pixels" in captured_by_hooks(reduction, self.lacks(model)):
            module, hook = self.video_capture(model)
            add_hook(module, reduction, hook)
        for index, layer in enumerate(self.layers(model)):
            self.hold(model, layer, reduction, index)
        for module in self.surrounds(model):
            mark(module, reduction)
        swap(self.surrounds(model), self.containers)
        mark(model, reduction, parts=self.embedding_paths(model, reduction))
        if reduction.owner is not None:
            reduction.owner.touched.add(module for module in model.modules() if patch_of(module) is reduction)

    def embedding_paths(self, model: Any, reduction: Reduction) -> tuple[Path, ...]:
        """The paths to the modules before the layers that the patch relies on."""
        inside = {id(module) for layer in self.layers(model) for module in layer.modules()}
        named = ((name, m) for name, m in model.named_modules() if name and id(m) not in inside)
        return tuple(tuple(name.split(".")) for name, m in named if patch_of(m) is reduction and has_hooks(m))

    def hold(self, model: Any, layer: Any, reduction: Reduction, index: int) -> None:
        """Take hold of a layer and of what is inside it, whatever was held there before."""
        wanted = captured_by_hooks(reduction, self.lacks(model))
        for module in layer.modules():
            remove_hooks(module)
        self.watch(model, layer, reduction, wanted)
        restated = self.restated(layer, wanted)
        for module in (*restated, *self.watched(layer)):
            mark(module, reduction)
        swap(restated, self.attentions)
        swap([layer], self.reduced)
        mark_layer(layer, reduction, index)
        if reduction.owner is not None:
            reduction.owner.touched.add(module for module in layer.modules() if patch_of(module) is reduction)

    def watch(self, model: Any, layer: Any, reduction: Reduction, wanted: frozenset[str]) -> None:
        """Add the hooks that show what is `wanted` of a layer."""
        for entry, (module, hook) in self.captures(model, layer).items():
            if entry in wanted:
                add_hook(module, reduction, hook)

    def remove(self, model: Any) -> None:
        """Undo `install`, also on what has left the model since."""
        originals, reduction = self.originals(), patch_of(model)
        owner = None if reduction is None else reduction.owner
        left = [] if owner is None else [module for module in owner.touched if patch_of(module) is reduction]
        for module in (*model.modules(), *left):
            if type(module) in originals:
                become(module, originals[type(module)])
            remove_hooks(module)

    def originals(self) -> dict[type[nn.Module], type[nn.Module]]:
        """The library's class of each that stands for one."""
        swapped = (*self.reduced.items(), *self.attentions.items(), *self.containers.items())
        return {ours: original for original, ours in swapped if ours is not original}

    def stuck(self, model: Any) -> list[str]:
        return in_the_way(model, self.originals())

    def depth_now(self, model: Any, reduction: Reduction) -> int:
        depth = count_layers(self.layers(model), reduction)
        if not parts_stand(model):
            check_embedding(model, reduction)
        if any(type(module) in self.containers for module in self.surrounds(model)):
            raise InvalidValueError(f"what calls the blocks was replaced after the model was patched; {AGAIN}")
        owner = reduction.owner
        now = "" if owner is None else self.reads(model, ())
        asked = reduction.requested.get("restore", "auto")
        if owner is not None and now != owner.reads and (not isinstance(asked, bool) or "all" in (now, owner.reads)):
            raise InvalidValueError(
                f"what follows the blocks was changed after the model was patched: it read {READS[owner.reads]} then "
                f"and reads {READS[now]} now; {AGAIN}"
            )
        return depth

    def stands(self, model: Any, layer: int) -> bool:
        return parts_stand(self.layers(model)[layer])

    @contextmanager
    def sliced(self, model: Any, counts: tuple[int, ...], placement: str) -> Iterator[nn.Module]:
        geometry, layers = self.geometry(model), self.layers(model)
        if geometry.needs_all:
            raise InvalidValueError("there is no free-slicing limit where some layers need all tokens")
        if any(type(layer) not in self.reduced for layer in layers):
            raise InvalidValueError("the free-slicing limit is measured on the unpatched model; unpatch it first")
        slicing = Slicing(geometry, counts, placement)
        restated = [attention for layer in layers for attention in self.restated(layer, frozenset())]
        try:
            for index, layer in enumerate(layers):
                mark(layer, slicing, index)
            for attention in restated:
                mark(attention, slicing)
            swap(layers, self.reduced)
            swap(restated, self.attentions)
            yield model
        finally:
            swap_back(restated, self.attentions)
            swap_back(layers, self.reduced)
            for module in (*layers, *restated):
                unmark(module)
