"""Images in folders, one folder a class, or without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.files import existing
from kdlightning.data.seeding import RANDOM_SOURCES
from kdlightning.errors import ConfigurationError, nearest

Samples = Sequence[tuple[str, int | None]]
_PARTS = ("train", "val", "test")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Images(Dataset):
    """Decoded and transformed image files with their labels, where they have any."""

    def __init__(self, samples: Samples, transform: Callable[[Any], Any], sources: tuple[str, ...]):
        self.samples = samples
        self.image_transform = transform
        self.random_sources = sources

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        path, label = self.samples[index]
        with Image.open(path) as image:
            shown = self.image_transform(image.convert("RGB"))
        return shown if label is None else (shown, label)


class ImageFolder(DistillDataModule):
    """Image files below `path/train/<class>/`, `path/val/<class>/` and `path/test/<class>/`.

    With both `val` and `test`, each is what its name says. With one of them only (ImageNet has `val`), that one is
    the test split, and validation is held out of `train`. The labels are the sorted class folders of `train`.

    Without labels (`labels=False`, for the task `Unlabelled`) every image file below `path/train` counts, at any depth,
    and the loader yields images alone; `val` and `test` likewise. A folder without `train` is training data as a whole.

    Args:
        path: the folder that holds `train`.
        labels: whether the folders are classes; False reads images without labels.
        size: side of the square that the model gets.
        augment: random resized crops and mirroring in training; else the centre crop as in evaluation.
        train_transform: instead, for all views: called with the RGB PIL image, gives the tensor that the model gets.
            Without it, strong further views (`strong_views`) get two operations of RandAugment as well.
        eval_transform: the same for evaluation; resize to 8/7 of `size`, centre crop, normalisation by default.
        mean: of the channels, for the normalisation; ImageNet's by default.
        std: of the channels.
        num_workers: processes that decode; decoding is slow, so this is 2 by default.
        **options: those of `DistillDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        labels: bool = True,
        size: int = 224,
        augment: bool = True,
        train_transform: Callable[..., Any] | None = None,
        eval_transform: Callable[..., Any] | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_workers=num_workers, **options)
        if size < 1:
            raise ConfigurationError(f"size must be at least 1, got {size}")
        self.path = path
        self.labels = labels
        self.size = size
        self.augment = augment
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.mean = mean
        self.std = std
        self._names: list[str] = []

    @property
    def class_names(self) -> list[str] | None:
        """The class folders of `train`, sorted; None without labels."""
        if not self.labels:
            return None
        _ = self.sources
        return self._names

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(3, size, size)`."""
        return (3, self.size, self.size)

    def load(self) -> Sources:
        """Lists the files; they are decoded when they are needed."""
        root = existing(self.path, type(self).__name__, "the folder that holds train/ and val/ or test/")
        if not self.labels:
            return self._split({name: _all_files(folder) for name, folder in _unlabelled_parts(root).items()})
        if not (root / "train").is_dir():
            raise ConfigurationError(f"{root} has no folder train: put train/<class>/<image> below path")
        self._names = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
        if not self._names:
            raise ConfigurationError(f"{root / 'train'} has no class folders: put train/<class>/<image> below path")
        parts = (name for name in _PARTS if (root / name).is_dir())
        return self._split({name: self._files(root / name) for name in parts})

    def _split(self, files: dict[str, Samples]) -> Sources:
        train = self._images(files["train"], training=True)
        both = "val" in files and "test" in files
        test = files.get("test", files.get("val"))
        return Sources(
            train=train,
            test=None if test is None else self._images(test),
            val=self._images(files["val"]) if both else None,
            plain=self._images(files["train"]),
            strong=None if self.train_transform is not None else self._images(files["train"], strong=True),
            labels=torch.tensor([label for _, label in files["train"]]) if self.labels else None,
        )

    def _files(self, folder: Path) -> Samples:
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and entry.name not in self._names:
                raise ConfigurationError(f"{entry} is a class that train lacks{nearest(entry.name, self._names)}")
        numbers = {name: number for number, name in enumerate(self._names) if (folder / name).is_dir()}
        if not numbers:
            raise ConfigurationError(f"{folder} has no class folders: put {folder.name}/<class>/<image> below path")
        return _some(make_dataset(str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=True), folder)

    def _images(self, samples: Samples, training: bool = False, strong: bool = False) -> _Images:
        from torchvision.transforms import v2

        own = self.train_transform if training else self.eval_transform
        if own is not None and not strong:
            return _Images(samples, own, RANDOM_SOURCES)
        if strong or (training and self.augment):
            steps: list[Any] = [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
            steps += [v2.RandAugment(num_ops=2, magnitude=10)] if strong else []
        else:
            steps = [v2.Resize(round(self.size * 8 / 7), antialias=True), v2.CenterCrop(self.size)]
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        # ToImage gives a tensor subclass, with which nothing later needs to be bothered.
        random = training or strong
        return _Images(samples, v2.Compose([*steps, v2.ToPureTensor()]), ("torch",) if random else ())


def _unlabelled_parts(root: Path) -> dict[str, Path]:
    if not (root / "train").is_dir():
        return {"train": root}
    return {name: root / name for name in _PARTS if (root / name).is_dir()}


def _all_files(folder: Path) -> Samples:
    """All image files at any depth, sorted, without labels."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
    return _some([(str(path), None) for path in paths], folder)


def _some(samples: Samples, folder: Path) -> Samples:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not samples:
        raise ConfigurationError(f"{folder} has no image files ({', '.join(IMG_EXTENSIONS[:4])}, …)")
    return samples
