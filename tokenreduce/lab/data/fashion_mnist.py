"""Fashion-MNIST: 70,000 photographs of garments, 28 x 28 grey values, ten classes (Xiao et al., 2017, MIT licence)."""

from __future__ import annotations

import gzip
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
    """Folder that holds the four files: `data_dir`, Debian's package, or a torchvision download into `~/.cache`."""
    folders = [Path(data_dir)] if data_dir else [DEBIAN, downloads()]
    for folder in folders:
        for candidate in (folder, folder / "FashionMNIST" / "raw"):
            if (candidate / "t10k-images-idx3-ubyte.gz").exists():
                return candidate
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(folders[-1]), download=True)
    return folders[-1] / "FashionMNIST" / "raw"


def downloads() -> Path:
    try:
        return Path.home() / ".cache" / "tokenreduce"
    except RuntimeError:
        raise InvalidValueError("the user has no home folder to download Fashion-MNIST to; give --data-dir") from None


def load(split: str, folder: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `(n, 1, 28, 28)` uint8 and labels `(n,)` int64 of `split` ("train" or "test") in `folder`."""
    stem = STEMS[split]
    images = read_idx(Path(folder) / f"{stem}-images-idx3-ubyte.gz")
    labels = read_idx(Path(folder) / f"{stem}-labels-idx1-ubyte.gz")
    return images.unsqueeze(1), labels.long()


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to the float inputs the shipped model was trained on."""
    return (images.float() / 255 - MEAN) / STD


def read_idx(path: Path) -> torch.Tensor:
    """One gzipped IDX file of unsigned bytes as a tensor."""
    with gzip.open(path, "rb") as file:
        data = file.read()
    ndim = data[3]
    shape = np.frombuffer(data, ">i4", ndim, 4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Write a uint8 tensor as a gzipped IDX file, the same bytes for the same values."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        file.write(header + values.numpy().tobytes())
