"""How features become logits: the trained head, k nearest neighbours (DINO), text embeddings (CLIP).

A head is made for each model (`MakeHead`): the patched model encodes the gallery too, as it would where it is deployed.
It costs a pass over the gallery for each method and budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.pretrained import FAILURES, Pretrained, first_line

# From what the head reads (the output of timm's `forward_features`) and the features (B, C) before the head to logits.
Classify = Callable[[Tensor, Tensor], Tensor]
MakeHead = Callable[[Any], Classify]


def trained(model: Any) -> Classify:
    """The head that the model was trained with."""
    if isinstance(model, Pretrained):
        return lambda out, features: out  # its forward has the head in it
    return lambda out, features: model.forward_head(out)


def whole_forward(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the head reads, the features `(B, C)` before it, and all tokens `(B, prefix + N + suffix, C)`, of a model
    that gives all tokens back. What the head reads is its logits already where the model cannot be taken apart."""
    if isinstance(model, Pretrained):
        return model.whole(images)
    out = model.forward_features(images)
    return out, model.forward_head(out, pre_logits=True), out


@dataclass(frozen=True)
class NearestNeighbours:
    """Weighted vote of the nearest gallery images, the protocol of DINO (Caron et al., ICCV 2021, arXiv 2104.14294).

    Cosine similarity of the features before the head; each of the `k` nearest votes for its class with weight
    exp(similarity / temperature).

    Args:
        gallery: batches of images and labels, iterated over once for each model.
        classes: number of classes.
    """

    gallery: Iterable[tuple[Tensor, Tensor]]
    classes: int
    k: int = 20
    temperature: float = 0.07

    def __call__(self, model: Any) -> Classify:
        known, labels = self.encode(model)
        return lambda out, features: vote(features, known, labels, self.classes, self.k, self.temperature)

    @torch.inference_mode()
    def encode(self, model: Any) -> tuple[Tensor, Tensor]:
        """Features `(G, C)` and labels `(G,)` of the gallery."""
        device = next(model.parameters()).device
        pairs = [(features_of(model, images.to(device)), labels.to(device)) for images, labels in self.gallery]
        features, labels = zip(*pairs, strict=True)
        return torch.cat(features), torch.cat(labels)


def features_of(model: Any, images: Tensor) -> Tensor:
    """The features `(B, C)` before the head."""
    if isinstance(model, Pretrained):
        return model.whole(images)[1]
    return model.forward_head(model.forward_features(images), pre_logits=True)


def vote(queries: Tensor, gallery: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Votes `(B, classes)` of the `k` gallery rows `(G, C)` most similar to each of `queries (B, C)`."""
    similarity = F.normalize(queries.float(), dim=-1) @ F.normalize(gallery.float(), dim=-1).T
    nearest = similarity.topk(min(k, len(gallery)), dim=1)
    votes = similarity.new_zeros(len(queries), classes)
    return votes.scatter_add(1, labels[nearest.indices], (nearest.values / temperature).exp())


@dataclass(frozen=True)
class ZeroShot:
    """Cosine similarity of image features to the text embedding of each class, `text (K, d)`.

    The image features are the model's output where its head is the projection into the space of the texts (d outputs,
    as in timm's CLIP towers), else the features before the head, where these have d channels.
    """

    text: Tensor

    def __call__(self, model: Any) -> Classify:
        if isinstance(model, Pretrained):
            raise InvalidValueError("zero-shot takes timm's and OpenCLIP's image towers, not models of transformers")
        width = self.text.shape[1]
        text = F.normalize(self.text.to(next(model.parameters()).device).float(), dim=-1)
        if width == model.num_classes:
            return lambda out, features: F.normalize(model.forward_head(out).float(), dim=-1) @ text.T
        if width == model.num_features:
            return lambda out, features: F.normalize(features.float(), dim=-1) @ text.T
        raise InvalidValueError(
            f"the text embeddings have {width} channels, but the model's head gives {model.num_classes} and its "
            f"features have {model.num_features}; zero-shot needs the image and the text tower of the same model"
        )


def text_embeddings(file: Path | None, text_model: str | None, class_names: Sequence[str]) -> Tensor:
    """Text embeddings `(classes, d)`, read from the safetensors `file` or made by open_clip's `text_model`.

    Raises: ValueError if neither is possible, or the file does not hold one embedding for each class.
    """
    if file is not None:
        tensors = read_tensors(file)
        text = tensors.get("embeddings")
        if text is None or text.ndim != 2 or len(text) != len(class_names):
            found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
            raise InvalidValueError(
                f"{file} holds {found}; zero-shot needs a tensor 'embeddings' of shape ({len(class_names)}, d), "
                "one row a class"
            )
        return text
    if text_model is not None and find_spec("open_clip") is not None:
        return open_clip_embeddings(text_model, class_names)
    raise InvalidValueError(
        "zero-shot needs the classes as text embeddings: give --text-embeddings FILE (safetensors, with a tensor "
        f"'embeddings' of shape ({len(class_names)}, d)), or install open_clip_torch and give --text-model "
        "NAME:PRETRAINED, such as ViT-B-16:openai" + ("; it is not installed" if text_model is not None else "")
    )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise InvalidValueError(
            f"--text-embeddings {file} cannot be read ({first_line(error)}); give a safetensors file with a tensor "
            "'embeddings', one row a class"
        ) from None


def open_clip_embeddings(text_model: str, class_names: Sequence[str]) -> Tensor:
    """Embeddings of the classes' names in OpenAI's 80 sentences; ImageNet folders are named after their photographs."""
    import open_clip

    name, _, pretrained = text_model.partition(":")
    if not pretrained:
        raise InvalidValueError(f"--text-model is {text_model!r}; give NAME:PRETRAINED, such as ViT-B-16:openai")
    hub = name in ("hf-hub", "local-dir")
    name, weights = (text_model, None) if hub else (name, pretrained)
    try:
        model = open_clip.create_model(name, pretrained=weights).eval()
        tokenizer = open_clip.get_tokenizer(name)
    except (*FAILURES, AssertionError) as error:
        raise InvalidValueError(
            f"open_clip cannot load --text-model {text_model} ({first_line(error)}); open_clip.list_pretrained() lists "
            "what NAME:PRETRAINED may be"
        ) from None
    is_imagenet = len(class_names) == 1000 and all(n[:1] == "n" and n[1:].isdigit() for n in class_names)
    words = open_clip.IMAGENET_CLASSNAMES if is_imagenet else class_names
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    return open_clip.build_zero_shot_classifier(model, tokenizer, words, templates).T
