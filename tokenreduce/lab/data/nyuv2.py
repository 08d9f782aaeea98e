"""NYU Depth v2 (Silberman et al., ECCV 2012): the official labelled file, or folders of PNG files made of it.

Truth outside the window that Eigen et al. (NeurIPS 2014) evaluate is left out (0), as published figures do; so are
predictions above 10 m clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.lab.data.decoding import UnreadableError
from tokenreduce.lab.data.samples import DenseData, Sample, check_pairs, find_files, read_image, read_map

FARTHEST = 10.0
MAT, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
LAYOUT = f"{MAT} (with {SPLITS} beside it for the test split), or rgb/* and depth/*.png (16 bits, millimetres)"
FRAME, WINDOW = (480, 640), (slice(45, 471), slice(41, 601))


@dataclass(frozen=True)
class LabelledFile:
    """Samples of the HDF5 file, which stores images and depths with width before height."""

    path: Path
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        import h5py

        at = self.indices[index]
        where = f"{self.path}: image {at + 1}"
        try:
            with h5py.File(self.path) as file:
                image = torch.from_numpy(file["images"][at]).transpose(1, 2).contiguous()
                depth = torch.from_numpy(file["depths"][at]).T.contiguous()
        except OSError as error:
            raise UnreadableError(f"{where} cannot be read ({error}); download the file again") from None
        if depth.shape != image.shape[1:]:
            raise InvalidValueError(f"{where} is {tuple(image.shape[1:])}, its depth {tuple(depth.shape)} (H, W)")
        if not depth.isfinite().all() or depth.min() < 0:
            raise InvalidValueError(f"{where} has depths that are negative or not finite; they are metres, 0: unknown")
        return {"image": image, "target": in_window(depth.float()), "path": where}


@dataclass(frozen=True)
class Folders:
    """Samples of `rgb/` and `depth/`."""

    images: list[Path]
    depths: list[Path]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        path, truth = self.images[index], self.depths[index]
        image = read_image(path)
        values = read_map(truth, image, path)
        if values.dtype == np.uint8:
            raise InvalidValueError(f"{truth} has 8 bits a pixel; depths are millimetres in a PNG file of 16 bits")
        depth = torch.from_numpy(values.astype(np.float32) / 1000)
        return {"image": image, "target": in_window(depth), "path": path}


def in_window(depth: Tensor) -> Tensor:
    """Depths `(H, W)`, in frames of full size with 0 outside the window that is evaluated."""
    if depth.shape != FRAME:
        return depth
    kept = torch.zeros_like(depth)
    kept[WINDOW] = depth[WINDOW]
    return kept


def load(folder: Path) -> DenseData:
    """The test images in `folder`.

    Raises: ValueError if `folder` has another layout, or h5py is missing.
    """
    name: str = "nyuv2"
    samples: LabelledFile | Folders
    if (folder / MAT).is_file():
        indices = test_split(folder / SPLITS)
        samples = labelled_file(folder / MAT, indices)
        if indices is None:
            name = f"nyuv2 (training images too: no {SPLITS} beside {MAT})"
    elif (folder / "rgb").is_dir():
        samples = folders(folder)
    else:
        raise InvalidValueError(f"{folder} is not laid out as NYUv2; expected {LAYOUT}")
    return DenseData(name, "depth", samples, farthest=FARTHEST)


def labelled_file(path: Path, indices: list[int] | None) -> LabelledFile:
    need("h5py", path)
    import h5py

    try:
        with h5py.File(path) as file:
            shapes: dict[str, tuple[int, ...]] = {
                key: file[key].shape if key in file else () for key in ("images", "depths")
            }
    except OSError as error:
        raise InvalidValueError(f"{path} is not an HDF5 file: {error}; download it again") from None
    images, depths = shapes["images"], shapes["depths"]
    if len(images) != 4 or images[1] != 3 or len(depths) != 3 or images[0] != depths[0]:
        raise InvalidValueError(
            f"{path} has images {images} and depths {depths}; expected (n, 3, width, height) and (n, width, height)"
        )
    chosen = list(range(images[0])) if indices is None else indices
    if not all(0 <= index < images[0] for index in chosen):
        raise InvalidValueError(f"{path.parent / SPLITS} names images up to {max(chosen) + 1}, {path} has {images[0]}")
    return LabelledFile(path, chosen)


def test_split(path: Path) -> list[int] | None:
    """The 0-based test images that `splits.mat` names; None where there is no such file."""
    if not path.is_file():
        return None
    need("scipy", path)
    from scipy.io import loadmat

    try:
        return [int(number) - 1 for number in loadmat(path)["testNdxs"].flatten()]
    except Exception as error:  # scipy raises whatever it meets in a file that is no such file
        raise InvalidValueError(f"{path} holds no test split (testNdxs): {error}; download it again") from None


def need(library: str, path: Path) -> None:
    if find_spec(library) is None:
        raise InvalidValueError(
            f"reading {path} needs {library}, which the extra 'nyuv2' brings: pip install 'tokenreduce[nyuv2]'"
        )


def folders(root: Path) -> Folders:
    """The files of `rgb/` with the files of the same name in `depth/`, or with sync_depth_ instead of rgb_ there."""
    images = find_files(root / "rgb", "*", LAYOUT)
    stems = [path.stem.replace("rgb_", "sync_depth_") for path in images]
    depths = [root / "depth" / f"{stem}.png" for stem in stems]
    check_pairs(images, depths)
    return Folders(images, depths)
