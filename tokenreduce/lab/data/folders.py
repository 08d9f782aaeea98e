"""Images for `eval` in the form a model expects: Fashion-MNIST, ImageNet, any folder of class folders or of images, and
photographs that pip installs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.lab.data import fashion_mnist, photographs
from tokenreduce.lab.data.class_folders import Batches, FolderImages, Listing, Tolerant, list_folder, more, sort_out
from tokenreduce.lab.data.class_names import number_folders
from tokenreduce.lab.data.decoding import looking, refuse_unturned
from tokenreduce.lab.data.inputs import image_transform, input_side, takes_fashion
from tokenreduce.lab.data.plain_folders import NO_LABEL, is_plain, list_plain
from tokenreduce.lab.data.samples import thin

SPLITS = {"test": ("val", "validation", "valid", "test"), "train": ("train", "training")}
IN_MEMORY = ("fashion-mnist", photographs.NAME)


@dataclass(frozen=True)
class Data:
    """Map-style `images` of (tensor `(C, H, W)`, label).

    Args:
        class_names: in label order; none where images have no labels, and then each label is `NO_LABEL`.
        remarks: how folders became classes, and which files are no images, in sentences.
        left_out: why images could not be read, a sentence each; filled while batches are read.
    """

    name: str
    images: Any
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    left_out: dict[str, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether nothing is to be read and decoded any more."""
        return self.name in IN_MEMORY

    def batches(self, batch_size: int, workers: int = 0) -> Batches:
        """Batches of images `(B, C, H, W)` and labels `(B,)`, in order, without the images that cannot be read."""
        loader = DataLoader(Tolerant(self.images), batch_size, num_workers=workers, collate_fn=sort_out)
        return Batches(loader, self.left_out)


@looking()
def load_data(
    name: str,
    model: Any,
    *,
    data_dir: Path | None = None,
    split: str = "test",
    all_images: bool = False,
    limit: int | None = None,
    by_name: bool = True,
    upright: bool = True,
    labels: bool = True,
) -> Data:
    """The images called `name`: "fashion-mnist", "imagenet" (in `data_dir`), "photographs", or a folder.

    A folder holds one folder a class, or images alone, which then have no labels.

    Args:
        model: a timm model or a `Pretrained` of transformers; its configuration decides size, crop, interpolation and
            normalisation.
        data_dir: where ImageNet, or the files of Fashion-MNIST, lie.
        split: "test" or "train"; folders are searched for a subfolder of that meaning, see `SPLITS`.
        all_images: all 10,000 test images of Fashion-MNIST instead of the 2,000 that ship with the library; so does a
            given `data_dir`.
        limit: use so many images, spread evenly over the data; of photographs so many squares are cut.
        by_name: class folders with the names of the model's classes get their numbers.
        upright: pictures in folders are turned as their EXIF orientation says; published figures of ImageNet are of
            pictures as they are stored.
        labels: False takes the images of a folder at any depth, without labels.

    Raises: ValueError if there is no such data, TypeError for a `data_dir` or `upright=False` that they do not use.
    """
    refuse_data_dir(name, data_dir, ("fashion-mnist", "imagenet"))
    if name in IN_MEMORY:
        refuse_unturned(name, upright)
    if name == photographs.NAME:
        squares = photographs.Squares(image_transform(model, whole=True), input_side(model), limit or photographs.COUNT)
        return Data(name, squares, ())
    if name == "fashion-mnist":
        data = load_fashion(model, data_dir, split, all_images)
    elif name == "imagenet":
        if data_dir is None:
            raise InvalidValueError("imagenet does not ship with the library; give --data-dir, with val/<class>/...")
        read = load_folder if labels else load_plain
        data = read(name, data_dir, split, model, by_name, upright)
        if data.class_names and len(data.images.labels) != 1000:
            raise InvalidValueError(
                f"{data_dir} has {len(data.images.labels)} class folders, ImageNet-1k has 1000; give a folder with "
                "val/<class>/<image>, or pass the folder itself as --data"
            )
    elif labels:
        data = load_folder(name, Path(name), split, model, by_name, upright)
    else:
        data = load_plain(name, Path(name), split, model, by_name, upright)
    return Data(data.name, thin(data.images, limit), data.class_names, data.remarks)


def load_gallery(
    data: Data, model: Any, *, data_dir: Path | None, gallery: Path | None, limit: int | None, upright: bool = True
) -> Data:
    """The images among which the neighbours of `data` are searched: the folder `gallery`, or the training split."""
    name = str(gallery) if gallery is not None else data.name
    if gallery is None and name != "fashion-mnist":
        root = data_dir if name == "imagenet" and data_dir is not None else Path(name)
        if not any((root / folder).is_dir() for folder in SPLITS["train"]):
            raise InvalidValueError(
                f"there is no folder 'train' in {root}, and the tested images must not be their own neighbours; "
                "give --gallery DIR"
            )
    own = data_dir if gallery is None else None
    found = load_data(name, model, data_dir=own, split="train", limit=limit, by_name=False, upright=upright)
    if found.class_names != data.class_names:
        raise InvalidValueError(
            f"the gallery {found.name} has {summary(found)}, {data.name} has {summary(data)}; their class folders must "
            "have the same names"
        )
    shared = files_of(data) & files_of(found)
    if shared:
        raise InvalidValueError(
            f"{len(shared)} of the tested images are in the gallery {found.name} too, such as {min(shared)}, and would "
            "be their own neighbours; give a gallery of other images"
        )
    return found


def files_of(data: Data) -> set[Path]:
    """The files of class folders, also of those that a limit leaves out, by one path each."""
    images = data.images.dataset if isinstance(data.images, Subset) else data.images
    if not isinstance(images, FolderImages):
        return set()
    paths = [path for path, _ in images.listing.images]
    places = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return {places[path.parent] / path.name for path in paths}


def refuse_data_dir(name: str, data_dir: Path | None, users: tuple[str, ...]) -> None:
    """Raise for a folder that the data called `name` are not read from."""
    if data_dir is not None and name not in users:
        raise InvalidTypeError(f"--data-dir is where {' or '.join(users)} lies; {name} does not use it, leave it out")


def check_labels(data: Data, model: Any) -> None:
    """Raise unless the trained head of `model` has one output for each class of `data`."""
    if model.num_classes != len(data.class_names):
        name = type(getattr(model, "model", model)).__name__
        raise InvalidValueError(
            f"the head of this {name} has {model.num_classes} classes, {data.name} has "
            f"{len(data.class_names)}: the labels do not fit; use --head knn (--head zero-shot for CLIP-type models), "
            "or a model trained on these classes (fashion_vit for fashion-mnist); --head none leaves the labels out"
        )


def load_folder(name: str, root: Path, split: str, model: Any, by_name: bool, upright: bool) -> Data:
    """Class folders, or images alone, with the transform that the model is officially evaluated with."""
    folder = folder_of(root, split)
    if is_plain(folder):
        return load_plain(name, folder, split, model, by_name, upright)
    found = list_folder(folder)
    labels, names, rule = number_folders(found.folders, model, by_name)
    images = FolderImages(found, image_transform(model), labels, upright)
    return Data(name, images, names, (rule, *no_images(found)))


def load_plain(name: str, root: Path, split: str, model: Any, by_name: bool, upright: bool) -> Data:
    """All images below a folder, without labels; arguments as of `load_folder`."""
    found = list_plain(folder_of(root, split))
    return Data(name, FolderImages(found, image_transform(model), (NO_LABEL,), upright), (), no_images(found))


def no_images(found: Listing) -> tuple[str, ...]:
    """How many files are no images, in a sentence, if there are some."""
    count = len(found.others)
    said = "1 file is no image" if count == 1 else f"{count} files are no images"
    return (f"{said}: {found.others[0]}{more(found.others)}",) if count else ()


def summary(data: Data) -> str:
    return f"{len(data.class_names)} classes ({', '.join(data.class_names[:3])}, ...)"


def folder_of(root: Path, split: str) -> Path:
    """The subfolder of `root` that holds the split, or `root` itself if it has no splits."""
    if root.is_file():
        raise InvalidValueError(f"{root} is a file; give the folder that it lies in")
    if not root.is_dir():
        raise InvalidValueError(
            f"no data {str(root)!r}; valid: fashion-mnist, imagenet, {photographs.NAME}, or a folder of class folders "
            "or of images"
        )
    for folder in SPLITS[split]:
        if (root / folder).is_dir():
            return root / folder
    others = [folder for folders in SPLITS.values() for folder in folders if (root / folder).is_dir()]
    if others:
        raise InvalidValueError(
            f"{root} has the folder {others[0]!r} but none for the {split} images ({', '.join(SPLITS[split])}); "
            "give the folder with the class folders itself"
        )
    return root


def load_fashion(model: Any, data_dir: Path | None, split: str, all_images: bool) -> Data:
    shipped = split == "test" and not all_images and data_dir is None
    folder = fashion_mnist.SUBSET if shipped else fashion_mnist.find(data_dir)
    images, labels = fashion_mnist.load(split, folder)
    return Data("fashion-mnist", FashionImages(images, labels, model), fashion_mnist.CLASSES)


class FashionImages(Dataset[tuple[Tensor, int]]):
    """Fashion-MNIST for `model`: unchanged for 28 x 28 grey inputs, else as RGB through the model's transform."""

    def __init__(self, images: Tensor, labels: Tensor, model: Any) -> None:
        self.images, self.labels = images, labels
        self.transform = None if takes_fashion(model) else image_transform(model)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.transform is None:
            return fashion_mnist.normalise(image), int(self.labels[index])
        return self.transform(Image.fromarray(image[0].numpy()).convert("RGB")), int(self.labels[index])
