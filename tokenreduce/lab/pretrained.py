"""Models of transformers for `eval`, `bench` and `visualize`: by name, called with images alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from textwrap import shorten
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokenreduce.errors import InvalidValueError

PREFIX = "hf:"
LONGEST = 300  # characters of another library's error
FAILURES = (OSError, ValueError, RuntimeError, ImportError, AttributeError, KeyError, TypeError)  # of models by name


class Pretrained(nn.Module):
    """A model of transformers that takes images `(B, C, H, W)`, or clips `(B, T, C, H, W)`, and returns one tensor.

    Args:
        model: the model, such as `ViTForImageClassification`.
        processor: the image processor that belongs to its weights; None normalises as for ImageNet.
    """

    def __init__(self, model: Any, processor: Any = None) -> None:
        super().__init__()
        self.model, self.processor = model, processor

    def forward(self, images: Tensor) -> Tensor:
        """The logits; without these the last hidden state; without both the first tensor that the model returns."""
        out = self.model(images)
        named = (out.get(name) for name in ("logits", "last_hidden_state"))
        found = next((value for value in named if value is not None), None)
        return found if found is not None else next(_tensors(out.values()))

    @property
    def num_classes(self) -> int:
        """Outputs of the trained head; 0 if it has no head."""
        return self.model.config.num_labels if hasattr(self.model, "classifier") else 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        config = self.model.config
        config = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
        size = getattr(config, "image_size", None)
        if self.model.main_input_name != "pixel_values" or size is None:
            name = type(self.model).__name__
            raise InvalidValueError(
                f"{name} does not take images of one fixed size, or needs other inputs too; it cannot run here"
            )
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        frames = (config.num_frames,) if hasattr(config, "num_frames") else ()
        return (*frames, getattr(config, "num_channels", 3), height, width)

    def whole(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, features `(B, C)` and all tokens of the last layer, in one forward.

        Features are what the classifier reads. A model without a classifier gives its pooled output, or else its class
        token, as features and as logits.
        """
        if self.num_classes == 0:
            out = self.model(images, output_hidden_states=True)
            pooled = out.get("pooler_output")
            features = out.last_hidden_state[:, 0] if pooled is None else pooled
            return features, features, out.hidden_states[-1]
        read: list[Tensor] = []
        handle = self.model.classifier.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        try:
            out = self.model(images, output_hidden_states=True)
        finally:
            handle.remove()
        return out.logits, read[-1], out.hidden_states[-1]

    def transform(self, whole: bool = False) -> Callable[[Image.Image], Tensor]:
        """From an image to the model's input, as its processor makes it; `whole` crops nothing from a square."""
        if self.processor is not None and not whole:
            return partial(_processed, self.processor, {})  # no lambda: processes that read images get it pickled
        height, width = self.input_shape[-2:]
        if self.processor is not None:
            size = {"do_resize": True, "size": {"height": height, "width": width}, "do_center_crop": False}
            return partial(_processed, self.processor, size)
        from timm.data import create_transform

        return create_transform((height, width), crop_pct=1.0 if whole else None)


def introduce(model: nn.Module) -> None:
    """Make a model of transformers that came from another process known in this one. transformers learns which outputs
    a class can give when one is made, and gives None for hidden states until then."""
    if isinstance(model, Pretrained):
        with torch.device("meta"):
            type(model.model)(model.model.config)


def _processed(processor: Any, more: dict[str, Any], image: Image.Image) -> Tensor:
    return processor(images=image, return_tensors="pt", **more)["pixel_values"][0]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def load_pretrained(name: str, pretrained: bool, image_size: int | None = None) -> Pretrained:
    """The model that `name` stands for on the hub or in a folder, of the class that its configuration names.

    Weights are float32, whatever their file holds: the library's figures are, and some families fail in half precision
    on a CPU. `image_size` changes the configuration, so that weights for another size may not fit.

    Raises: ValueError if transformers is missing, or finds no such model.
    """
    try:
        import transformers
    except ImportError:
        raise InvalidValueError(
            f"hf:{name} needs transformers, which is not installed: pip install 'tokenreduce[transformers]'"
        ) from None
    transformers.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if image_size is not None:  # some configurations take numbers alone, and others pairs
            pair = isinstance(getattr(config, "image_size", None), (list, tuple))
            size: Any = [image_size] * 2 if pair else image_size
            config = transformers.AutoConfig.from_pretrained(name, image_size=size)
        kind = getattr(transformers, next(iter(config.architectures or ()), "AutoModel"))
        single: dict[str, Any] = {"config": config, "dtype": torch.float32}
        model = kind.from_pretrained(name, **single) if pretrained else _untrained(kind, config).float()
    except FAILURES as error:
        raise cannot_load(name, error, image_size) from None
    return Pretrained(model.eval(), _processor(name, image_size))


def cannot_load(name: str, error: Exception, image_size: int | None = None) -> InvalidValueError:
    """The error for a model of transformers that cannot be loaded, with this size if one is given, and what to do."""
    advice = "check the name or the folder"
    if image_size is not None:
        name, advice = f"{name} with --image-size {image_size}", "leave that out: its weights may fit one size alone"
    if isinstance(error, AttributeError):
        advice = "its configuration asks for what this version of transformers does not have: install another version"
    elif isinstance(error, ImportError):
        advice = "install what is missing"
    return InvalidValueError(f"transformers cannot load {name!r}: {first_line(error)}; {advice}")


def first_line(error: Exception) -> str:
    """The first line of an error's text that is not blank, with the next where that ends in a colon, cut where it is
    long: some list all that they know. The error's kind where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shorten(" ".join(lines[: 1 + lines[0].endswith(":")]), LONGEST, placeholder=" ...")


def _untrained(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)


def _processor(name: str, image_size: int | None) -> Any:
    """The image processor that is stored with the weights, if any; it scales whole pictures to a size that is given."""
    import transformers

    square = {"height": image_size, "width": image_size}
    sized = {} if image_size is None else {"size": square, "crop_size": square}
    try:
        return transformers.AutoImageProcessor.from_pretrained(name, **sized)
    except (OSError, ValueError, ImportError):
        return None
