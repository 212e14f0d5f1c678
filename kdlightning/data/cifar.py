"""CIFAR-10 and CIFAR-100, with the augmentation of the literature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdlightning.data.arrays import ArrayData, CropFlip
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.files import existing, read_arrays
from kdlightning.data.strong import StrongImages
from kdlightning.errors import ConfigurationError


class CIFAR10(DistillDataModule):
    """CIFAR-10: 32×32 colour images, 10 classes, 50 000 for training and 10 000 for test.

    Training images are padded by 4 black pixels, cropped back at random and mirrored in half of the cases; all are
    normalised by the training set's mean and deviation. Strong further views (`strong_views`) also change in contrast
    and brightness and lose a square of up to half the side.

    Args:
        path: the folder that holds `cifar-10-batches-py`, or an `.npz` file with `x_train` `(N, H, W, 3)` uint8,
            `y_train` `(N,)`, `x_test`, `y_test` and perhaps `class_names`.
        download: fetch it into `path` first, by torchvision; nothing is fetched otherwise.
        augment: crop and mirror.
        transform: instead of `augment`, for all views: called with one image `(3, H, W)` uint8, gives uint8 or floats
            from 0 to 1.
        **options: those of `DistillDataModule`.
    """

    _source = "CIFAR10"
    _folder = "cifar-10-batches-py"
    _classes = 10
    _mean = (0.4914, 0.4822, 0.4465)
    _std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        path: str | None = None,
        download: bool = False,
        augment: bool = True,
        transform: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.path = path
        self.download = download
        self.augment = augment
        self.transform = transform
        self._names: list[str] = []

    def prepare_data(self) -> None:
        """Fetches the files, if asked to."""
        if self.download:
            self._torchvision(Path(self.path or "data"), train=True, download=True)

    @property
    def num_classes(self) -> int:
        """10 or 100."""
        return self._classes

    @property
    def class_names(self) -> list[str]:
        """As the files name them."""
        _ = self.sources
        return self._names

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(3, 32, 32)`."""
        return (3, 32, 32) if self._sources is None else tuple(self.sources.train.inputs.shape[1:])

    def load(self) -> Sources:
        """Reads the standard batches or the arrays."""
        path = existing(
            (self.path or "data") if self.download else self.path,
            type(self).__name__,
            f"the folder that holds {self._folder}, or an .npz file",
            "give its folder or an .npz file, or download=True",
        )
        parts = self._read_npz(path) if path.is_file() else self._read_batches(path)
        data = []
        for name, (pixels, labels) in parts.items():
            pixels, labels = torch.as_tensor(pixels), torch.as_tensor(labels).long()
            if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[-1] != 3 or len(labels) != len(pixels):
                raise ConfigurationError(
                    f"{path}: {name} must be uint8 images (N, H, W, 3) with N labels, got {pixels.dtype} "
                    f"{tuple(pixels.shape)} with {len(labels)}"
                )
            if len(labels) and int(labels.max()) >= self._classes:
                raise ConfigurationError(f"{path}: label {int(labels.max())} in {self._source}: the wrong file?")
            data.append((pixels.permute(0, 3, 1, 2).contiguous(), labels))
        look: dict[str, Any] = {"mean": self._mean, "std": self._std, "scale": 255}
        augment = CropFlip(padding=4) if self.augment else None
        train = ArrayData(*data[0], augment=augment, transform=self.transform, **look)
        strong = train.augmented(StrongImages(padding=4)) if self.transform is None else None
        return Sources(train, ArrayData(*data[1], **look), plain=train.plain(), strong=strong, labels=train.labels)

    def _read_npz(self, path: Path) -> dict[str, tuple[Any, Any]]:
        arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
        names = arrays.get("class_names")
        self._names = [str(name) for name in (range(self._classes) if names is None else names)]
        return {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}

    def _read_batches(self, folder: Path) -> dict[str, tuple[Any, Any]]:
        folder = folder.parent if folder.name == self._folder else folder
        if not (folder / self._folder).is_dir():
            raise ConfigurationError(
                f"{folder} has no {self._folder}: give its folder or an .npz file, or download=True"
            )
        sets = {part: self._torchvision(folder, train=part == "train") for part in ("train", "test")}
        self._names = list(sets["train"].classes)
        return {part: (data.data, data.targets) for part, data in sets.items()}

    def _torchvision(self, folder: Path, **options: Any) -> Any:
        import torchvision

        try:
            return getattr(torchvision.datasets, self._source)(str(folder), **options)
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(f"{folder / self._folder} is incomplete or damaged: fetch it again") from error


class CIFAR100(CIFAR10):
    """CIFAR-100: 32×32 colour images, 100 classes, 50 000 for training and 10 000 for test.

    Args:
        path: the folder that holds `cifar-100-python`, or an `.npz` file; see `CIFAR10`.
        download: fetch it into `path` first, by torchvision; nothing is fetched otherwise.
        augment: crop and mirror.
        transform: instead of `augment`: called with one image `(3, H, W)` uint8, gives uint8 or floats from 0 to 1.
        **options: those of `DistillDataModule`.
    """

    _source = "CIFAR100"
    _folder = "cifar-100-python"
    _classes = 100
    _mean = (0.5071, 0.4867, 0.4408)
    _std = (0.2675, 0.2565, 0.2761)
