"""What the adapters of transformers' models share: layers in a `PreTrainedModel`, which is never swapped itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from tokenreduce.budget.geometry import Geometry
from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.reduction import Reduction

from ..shared.adapter import Reads
from ..shared.layered import LayeredAdapter, ReducedLayer
from ..shared.masks import valid_keys
from ..shared.weights import layered_costs
from ._collector import collected_layers

# What transformers calls models that read a place for each of the input's patches.
DENSE_HEADS = (
    "ForMaskedImageModeling",
    "ForPreTraining",
    "ForSemanticSegmentation",
    "ForUniversalSegmentation",
    "ForDepthEstimation",
    "ForPoseEstimation",
)
TAKES_A_BIAS = ("sdpa", "eager")  # attention implementations to which additive logits can be handed


class PretrainedLayer(ReducedLayer):
    """`ReducedLayer` of transformers: hidden states that are collected have all tokens, masks may hide padding."""

    def collected(self, reduction: Reduction) -> frozenset[int]:
        return collected_layers(reduction.geometry.depth)

    def valid(
        self, reduction: Reduction, x: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor | None:
        check_implementation(implementation(self))
        return None if attention_mask is None else valid_keys(attention_mask, x)


def implementation(module: Any) -> str:
    """The attention implementation that the attention inside `module` uses."""
    configs = (m.config for m in module.modules() if hasattr(m, "config"))
    return getattr(next(configs, None), "_attn_implementation", "eager")


def check_implementation(name: str) -> None:
    if name not in TAKES_A_BIAS:
        raise InvalidValueError(
            f"the attention implementation {name!r} takes no additive logits, in which sizes of tokens go in; "
            f'call model.set_attn_implementation("sdpa"), or one of {", ".join(TAKES_A_BIAS)}'
        )


class HuggingFaceAdapter(LayeredAdapter):
    """An adapter for one model type of transformers; subclasses say where its parts are.

    `models`: the classes that hold embeddings and layers; `layers_at`: the path to the layers in them; `attention` and
    `projections`: the paths to the attention in a layer, and to its projections; `reads_class_token`: the classes of
    heads that read protected tokens only.
    """

    models: ClassVar[tuple[type[nn.Module], ...]]
    layers_at: ClassVar[str] = "layers"
    attention: ClassVar[str] = "attention"
    projections: ClassVar[dict[str, str]] = {"queries": "q_proj", "keys": "k_proj", "values": "v_proj"}
    reads_class_token: ClassVar[tuple[type[nn.Module], ...]] = ()
    class_tokens: ClassVar[int] = 1
    follows_origin: ClassVar[bool] = False

    @property
    def family(self) -> str:  # type: ignore[override]
        return f"transformers {', '.join(model.__name__ for model in self.models)}"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, self.models)

    def layers(self, model: Any) -> Sequence[Any]:
        return model.get_submodule(self.layers_at)

    def captures(self, model: Any, layer: Any) -> dict[str, tuple[nn.Module, str]]:
        attention = layer.get_submodule(self.attention)
        found = {name: (attention.get_submodule(path), name) for name, path in self.projections.items()}
        return found | {"mean_keys": (found["keys"][0], "mean_keys")}

    def embedding(self, model: Any) -> nn.Module:
        """The convolution that makes tokens of an image."""
        return next(m for m in model.embeddings.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))

    def grid_capture(self, model: Any) -> tuple[nn.Module, str] | None:
        return self.embedding(model), "grid"

    def video_capture(self, model: Any) -> tuple[nn.Module, str]:
        return self.embedding(model), "video"

    def refusals(self, model: Any) -> list[str]:
        reasons = super().refusals(model)
        layers = self.layers(model)
        used = implementation(layers[0]) if len(layers) else "eager"
        if used not in TAKES_A_BIAS:
            reasons.append(
                f'its attention implementation is {used!r}; call model.set_attn_implementation("sdpa") first'
            )
        if any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
            reasons.append("gradient checkpointing is on; call model.gradient_checkpointing_disable() first")
        return reasons

    def lacks(self, model: Any) -> dict[str, str]:
        missing = {}
        if not self.class_tokens:
            missing["class_attention"] = "the model has no class token"
        if len(self.grid(model)) != 2:
            missing |= dict.fromkeys(("grid", "positions"), "the model's tokens are a grid of time, height and width")
        return missing

    def prefix(self, model: Any) -> int:
        """Protected tokens before the image tokens."""
        return self.class_tokens

    def suffix(self, model: Any) -> int:
        """Protected tokens after the image tokens."""
        return 0

    def grid(self, model: Any) -> tuple[int, ...]:
        """The grid of an image of the configured size."""
        size, patch = (pair(getattr(model.config, name)) for name in ("image_size", "patch_size"))
        return size[0] // patch[0], size[1] // patch[1]

    def geometry(self, model: Any) -> Geometry:
        layers, config = self.layers(model), model.config
        heads, width = config.num_attention_heads, config.hidden_size
        head_dim = getattr(config, "head_dim", None) or width // heads
        return Geometry(
            depth=len(layers),
            prefix=self.prefix(model),
            suffix=self.suffix(model),
            class_tokens=self.class_tokens,
            grid=self.grid(model),
            width=width,
            heads=heads,
            head_dim=head_dim,
            costs=layered_costs(model, layers, self.attention, self.embedding(model), heads * head_dim),
            follows_origin=self.follows_origin,
        )

    def pools(self, model: Any) -> bool:
        """Whether the model itself pools image tokens."""
        return False

    def reads(self, model: Any, outer: Sequence[nn.Module]) -> Reads:
        names = [type(module).__name__ for module in outer if isinstance(module, PreTrainedModel)]
        if any(head in name for head in DENSE_HEADS for name in names):
            return "all"
        pools = self.pools(model) or any(not isinstance(module, self.reads_class_token) for module in outer)
        return "tokens" if pools else "protected"

    def language_model(self, outer: Sequence[nn.Module]) -> nn.Module | None:
        models: Iterator[Any] = (module for module in outer if isinstance(module, PreTrainedModel))
        return next((m for m in models if m.can_generate() or hasattr(m, "language_model")), None)


def pair(value: Any) -> tuple[int, int]:
    """Height and width from a number or a pair of them."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
