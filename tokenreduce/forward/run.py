"""`Run`: one forward of a reduced model. Born in the first block, gone at the end, never stored on a module;
`forward.stack` holds the runs of a thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.budget.phase import working
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.layer_tokens import LayerTokens
from tokenreduce.forward.records import Record
from tokenreduce.forward.reduction import Reduction
from tokenreduce.forward.shown import Attend, Shown, Video, without_history
from tokenreduce.forward.state import TokenState
from tokenreduce.forward.taps import Taps
from tokenreduce.maps.ordering import in_order
from tokenreduce.maps.restoring import Around, looks_back, restore_tokens
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.beside import beside, pays
from tokenreduce.ops.modes import without_autocast, without_gradients
from tokenreduce.ops.native.dispatch import choose


class Run(TokenState):
    """One forward: reduces in the layers of the schedule, restores where all tokens are needed.

    Args:
        reduction, entered, grid, valid: see `TokenState`.
        taps: layers whose output other code collects.
        surrounded: code of ours calls all layers, and restores and closes at the end.
        video: what the tokens were made of, where the method asks for pixels.
        depth: layers that the model has now, where they are fewer than those that were patched.
    """

    def __init__(
        self,
        reduction: Reduction,
        entered: int,
        grid: tuple[int, ...] | None,
        taps: frozenset[int] = frozenset(),
        valid: Tensor | None = None,
        surrounded: bool = False,
        video: Video | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(reduction, entered, grid, valid)
        self.depth = reduction.geometry.depth if depth is None else depth
        self.surrounded, self.taps = surrounded, Taps(taps)
        self.planned = None if reduction.adaptive else reduction.counts(entered)
        self.planned_to_enter = () if self.planned is None else reduction.entering(entered, self.planned)
        self.counts: list[int] = []  # image tokens left after each layer so far
        self.next_layer = 0
        self.given: Tensor | None = None  # what the last layer returned, as tokens
        self.watch: Any = None  # of the model: once it is gone, the run is dropped
        self.history: list[tuple[int, TokenMap]] = []  # all maps with their layers
        restoring = reduction.restoring
        between = bool(taps or reduction.full_layers) and looks_back(restoring.between)
        self.keeps_around = between or (restoring.ends and looks_back(restoring.at_end))
        self.fast = reduction.reducer.fast()
        self.shown = Shown(by_head=self.fast.averages_keys and self.valid is None, video=video)
        self.kernel: Any = None
        self.ahead: Callable[[], TokenMap] | None = None  # gives the map of this layer, planned beside its attention
        self.method_state: Any = None

    def begin(self, x: Tensor) -> None:
        """Make the method's state of the tokens that enter the first block, and choose its kernel."""
        reducer = self.reduction.reducer
        # A kernel that does all has an order of outputs of its own.
        alone = self.planned is not None and self.valid is None and self.scan is None
        if self.fast.kernel and alone and not torch.is_grad_enabled():
            self.kernel = choose(self.fast.kernel, x)
            if self.kernel is not None and reducer.plans_ahead() and pays(x):
                self.shown.when_keys = self.plan_ahead
        if reducer.has_state:
            with working("reducer"), torch.no_grad(), without_autocast(x.device):
                self.method_state = reducer.begin(self._tokens(0, x))

    def plan_ahead(self, keys: Tensor) -> None:
        """Start planning of `keys (B, H, prefix + N + suffix, d)` beside the attention that follows."""
        if self.may_reduce(self.next_layer):
            reducer, shape = self.reduction.reducer, self.reduction.geometry
            keep = self.planned[self.next_layer]  # type: ignore[index]
            plan = partial(self.fast.ahead, reducer, keys, keep, shape.prefix, shape.suffix)  # type: ignore[misc, arg-type]
            self.ahead = beside(keys.device, plan)

    def show_attention(self, attend: Attend) -> None:
        """Say how the current layer makes of queries and keys, as hooks see them, what its attention uses."""
        self.shown.attend = attend

    def may_reduce(self, layer: int) -> bool:
        """Whether the schedule, or the method in the place of one, removes something in this layer."""
        if self.planned is None:
            return layer in self.reduction.deciding_layers
        return self.planned[layer] < self.planned_to_enter[layer]

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """The tokens to go on with, when a layer receives `x`."""
        if layer == 0:
            x = self.blank(x)
        elif x is not self.given:
            self.check_given(layer, x)
        waiting = self.taps.stop_waiting()
        if self.maps and layer in self.reduction.full_layers:
            x = self.restore(x) if waiting is None else x  # what was handed out has all tokens already
            self.restart()
        elif waiting is not None:
            shape = self.reduction.geometry
            x = self.taps.take_back(waiting, x, self.maps, shape.prefix, shape.suffix, self.restore)
        return x

    def check_given(self, layer: int, x: Tensor) -> None:
        """Raise if images or tokens have left, joined or been cut on the way from one layer to the next."""
        if self.given is None or torch.jit.is_tracing() or x.shape == self.given.shape:
            return
        raise InvalidValueError(
            f"block {layer} of a reduced model was given {tuple(x.shape)}, but block {layer - 1} returned "
            f"{tuple(self.given.shape)}: what is known of the tokens belongs to these images in this order, so that "
            "none may leave or join between blocks; run each group of images through all blocks, or call "
            "tokenreduce.unpatch(model)"
        )

    def reduce(self, layer: int, x: Tensor, placement: str) -> Tensor:
        """Reduce `x (B, prefix + N + suffix, C)` if the schedule says so at this layer and placement."""
        if self.reduction.reducer.placement != placement or not self.may_reduce(layer):
            return x
        before = x
        with working("reducer"):
            at_once = self.kernel is not None and not x.requires_grad
            token_map, x = self._merge_at_once(layer, x) if at_once else self._plan_and_apply(layer, x)
        if token_map is None:
            return x
        self.maps.append(token_map)
        self.history.append((layer, token_map))
        if self.keeps_around:
            empty = None if self.valid is None or self.sizes is None else self.sizes == 0
            self.around.append(Around(before, x, empty))
        return x

    def leave(self, layer: int, x: Tensor, everything: bool = False) -> Tensor:
        """What the layer returns: all tokens if the layer is tapped or `everything` is asked for."""
        self.shown.clear()
        self.next_layer = layer + 1
        self.counts.append(self.reduction.image_tokens(x))
        if self.maps and (everything or layer in self.taps.layers):
            x = self.taps.hand_out(self.restore(x, at_end=layer not in self.taps.layers), x)
        self.given = x
        return x

    def restore(self, x: Tensor, at_end: bool = False) -> Tensor:
        """All tokens again, in the order in which they entered: for a map, or for what follows the last layer."""
        restoring, shape = self.reduction.restoring, self.reduction.geometry
        mode = restoring.at_end if at_end else restoring.between
        with working("restore"), without_autocast(x.device):
            return restore_tokens(mode, x, self.maps, self.around, shape.prefix, shape.suffix)

    def record(self) -> Record:
        """What `report` shows of this forward; grows with it."""
        return Record(self.entered, self.counts, self.history, self.first_sizes)

    def _tokens(self, layer: int, x: Tensor) -> LayerTokens:
        return LayerTokens(self, self.shown, layer, without_history(x))

    def _merge_at_once(self, layer: int, x: Tensor) -> tuple[TokenMap, Tensor]:
        """By the method's own kernel; everything that is not needed for that is left out, see `LayerTokens`."""
        if self.ahead is not None:
            return self._merge_planned(x)
        shape, sizes, keys = self.reduction.geometry, self.sizes, self.shown.get("mean_keys")
        keep = self.planned[layer]  # type: ignore[index]
        merged = self.fast.merge(  # type: ignore[misc]
            self.reduction.reducer, self.kernel, x, keys, sizes, keep, shape.prefix, shape.suffix
        )
        token_map, x, self.sizes, self.bias = merged
        self.places.follow(token_map, sizes)
        return token_map, x

    def _merge_planned(self, x: Tensor) -> tuple[TokenMap, Tensor]:
        """By the map that was planned ahead."""
        shape, sizes = self.reduction.geometry, self.sizes
        token_map, self.ahead = self.ahead(), None  # type: ignore[misc]
        x, self.sizes, self.bias = token_map.merge(x, sizes, shape.prefix, shape.suffix)
        self.places.follow(token_map, sizes)
        return token_map, x

    def _plan_and_apply(self, layer: int, x: Tensor) -> tuple[TokenMap | None, Tensor]:
        """None: the method keeps all tokens."""
        shape, reducer = self.reduction.geometry, self.reduction.reducer
        with without_autocast(x.device):
            with without_gradients():
                tokens = self._tokens(layer, x)
                keep = reducer.decide(tokens, self.method_state) if self.planned is None else self.planned[layer]
                if keep >= tokens.count:
                    return None, x
                token_map = reducer.plan(tokens, keep, self.method_state)
                token_map = self._in_order(token_map)
                self.places.follow(token_map, self.sizes)
            if self.sizes is None and token_map.drops and token_map.size_weight is None:  # sizes stay 1
                x = token_map.apply(x, None, shape.prefix, shape.suffix)
            else:
                x, self.sizes, bias = token_map.merge(x, self.sizes, shape.prefix, shape.suffix)
                self.bias = bias if self.valid is None else None
        return token_map, x

    def _in_order(self, token_map: TokenMap) -> TokenMap:
        """The map with its outputs in the order in which the model scans them, if it does."""
        if self.scan is None:
            return token_map
        token_map = in_order(token_map)
        self.scan.follow(token_map, self.shown.steps)
        return token_map
