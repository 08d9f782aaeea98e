"""Fashion-MNIST: 70,000 photographs of garments, 28 x 28 grey values, ten classes (Xiao et al., 2017, MIT licence)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from tokenreduce.errors import InvalidValueError

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
MEAN, STD = 0.2860, 0.3530
SUBSET = Path(__file__).parent / "fashion_mnist_2000"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
STEMS = {"train": "train", "test": "t10k"}


def find(data_dir: str | Path | None = None) -> Path:
    """Folder that holds the four files: `data_dir`, Debian's package, or a torchvision download into `~/.cache`.

    Raises: ValueError if they are not in `data_dir`, or cannot be downloaded.
    """
    folders = [Path(data_dir)] if data_dir else [DEBIAN, downloads()]
    for folder in folders:
        for candidate in (folder, folder / "FashionMNIST" / "raw"):
            if (candidate / "t10k-images-idx3-ubyte.gz").exists():
                return candidate
    if data_dir:
        raise InvalidValueError(
            f"--data-dir {data_dir} holds no {STEMS['test']}-images-idx3-ubyte.gz of Fashion-MNIST; give the folder "
            "with its four files, or leave --data-dir out, which downloads them"
        )
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(folders[-1]), download=True)
    except (RuntimeError, OSError) as error:
        raise InvalidValueError(
            f"Fashion-MNIST could not be downloaded to {folders[-1]} ({error}); give --data-dir, the folder with its "
            "four files"
        ) from None
    return folders[-1] / "FashionMNIST" / "raw"


def downloads() -> Path:
    try:
        return Path.home() / ".cache" / "tokenreduce"
    except RuntimeError:
        raise InvalidValueError("the user has no home folder to download Fashion-MNIST to; give --data-dir") from None


def load(split: str, folder: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(n, 1, 28, 28)` uint8 and labels `(n,)` int64 of `split` ("train" or "test") in `folder`.

    Raises: ValueError if a file is missing or damaged.
    """
    stem = STEMS[split]
    images = read_idx(Path(folder) / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(Path(folder) / f"{stem}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        found = f"{tuple(images.shape)} images and {tuple(labels.shape)} labels"
        raise InvalidValueError(f"{folder} holds {found} of {split}, which do not fit; download the files again")
    return images.unsqueeze(1), labels.long()


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to the float inputs the shipped model was trained on."""
    return (images.float() / 255 - MEAN) / STD


def read_idx(path: Path) -> torch.Tensor:
    """One gzipped IDX file of unsigned bytes as a tensor.

    Raises: ValueError if it is missing or damaged.
    """
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
        ndim = data[3]
        shape = np.frombuffer(data, ">i4", ndim, 4)
        return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())
    except FileNotFoundError:
        raise InvalidValueError(f"there is no {path}; the folder must hold all four files of Fashion-MNIST") from None
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise InvalidValueError(f"{path} is damaged ({error}); download it again") from None


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write a uint8 tensor as a gzipped IDX file, the same bytes for the same values."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        file.write(header + values.numpy().tobytes())
