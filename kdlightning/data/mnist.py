"""MNIST and everything that comes in its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdlightning.data.arrays import ArrayData, CropFlip
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.files import existing, read_idx
from kdlightning.data.strong import StrongImages
from kdlightning.errors import ConfigurationError


class MNIST(DistillDataModule):
    """Grey images in MNIST's four idx files (MNIST, Fashion-MNIST, KMNIST, …), `.gz` or unpacked.

    Args:
        path: the folder with `train-images-idx3-ubyte(.gz)` and its three companions; torchvision's layout
            (`MNIST/raw` below it) is found too.
        download: fetch MNIST into `path` first, by torchvision; nothing is fetched otherwise.
        augment: shift training images by up to two pixels.
        transform: instead of `augment`, for all views: called with one image `(1, H, W)` uint8, gives uint8 or floats
            from 0 to 1.
        mean: of the pixels, for the normalisation; MNIST's by default.
        std: of the pixels.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        download: bool = False,
        augment: bool = False,
        transform: Callable[..., Any] | None = None,
        mean: float = 0.1307,
        std: float = 0.3081,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.path = path
        self.download = download
        self.augment = augment
        self.transform = transform
        self.mean = mean
        self.std = std

    def prepare_data(self) -> None:
        """Fetches the files, if asked to."""
        if self.download:
            from torchvision.datasets import MNIST as Source

            Source(self.path or "data", download=True)

    @property
    def class_names(self) -> list[str]:
        """The labels as they are numbered."""
        return [str(label) for label in range(int(self.sources.train.targets.max()) + 1)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, H, W)`."""
        return tuple(self.sources.train.inputs.shape[1:])

    def load(self) -> Sources:
        """Reads the four files."""
        folder = existing(
            (self.path or "data") if self.download else self.path,
            type(self).__name__,
            "the folder with train-images-idx3-ubyte.gz and its companions",
            "give its folder, or download=True",
        )
        augment = CropFlip(padding=2, flip=False) if self.augment else None
        train = self._read(folder, "train", augment=augment, transform=self.transform)
        strong = None if self.transform is not None else train.augmented(StrongImages(padding=2, flip=False))
        return Sources(train, self._read(folder, "t10k"), plain=train.plain(), strong=strong, labels=train.labels)

    def _read(self, folder: Path, prefix: str, **options: Any) -> ArrayData:
        images = read_idx(_found(folder, f"{prefix}-images", "idx3-ubyte"))
        labels = read_idx(_found(folder, f"{prefix}-labels", "idx1-ubyte"))
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise ConfigurationError(
                f"{folder}: {prefix} has images {tuple(images.shape)} and labels {tuple(labels.shape)}: they do not fit"
            )
        return ArrayData(images[:, None], labels.long(), mean=(self.mean,), std=(self.std,), scale=255, **options)


def _found(folder: Path, name: str, kind: str) -> Path:
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for joint in "-.":
            for suffix in ("", ".gz"):
                path = place / f"{name}{joint}{kind}{suffix}"
                if path.is_file():
                    return path
    raise ConfigurationError(f"{folder} has no {name}-{kind} (or .gz): give path, the folder with the four idx files")
