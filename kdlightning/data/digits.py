"""Handwritten digits that come with scikit-learn: real, tiny, nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlightning.data.arrays import ArrayData, CropFlip
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.strong import StrongImages
from kdlightning.errors import ConfigurationError

_TEST = 597

ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "five or more": (5, 6, 7, 8, 9),
    "multiple of three": (0, 3, 6, 9),
    "square": (0, 1, 4, 9),
}
"""What is true of which digits, however they are written."""


class Digits(DistillDataModule):
    """1797 handwritten digits, 8×8 grey, 10 classes; scikit-learn's bundled copy (UCI, optical recognition).

    The test split is fixed: the last 597 images in the file's order, as scikit-learn's own example splits without
    shuffling; validation is held out of the first 1200.

    Args:
        augment: shift training images by up to one pixel.
        targets: "classes" are the digits, "attributes" what is true of them: rows of 0 and 1, for the task
            `MultiLabel(5)`. The splits are the same.
        **options: those of `DistillDataModule`.
    """

    def __init__(self, augment: bool = False, targets: str = "classes", **options: Any) -> None:
        super().__init__(**options)
        if targets not in ("classes", "attributes"):
            raise ConfigurationError(f"targets must be classes or attributes, not {targets!r}")
        self.augment = augment
        self.targets = targets

    @property
    def class_names(self) -> list[str]:
        """`"0"` to `"9"`, or the attributes: `"even"`, `"prime"`, `"five or more"`, …."""
        return list(ATTRIBUTES) if self.targets == "attributes" else [str(digit) for digit in range(10)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, 8, 8)`."""
        return (1, 8, 8)

    def load(self) -> Sources:
        """Reads the bundled arrays."""
        from sklearn.datasets import load_digits  # takes a second

        digits = load_digits()
        labels = torch.from_numpy(digits.target).long()
        data = ArrayData(
            torch.from_numpy(digits.images).to(torch.uint8)[:, None],
            attributes(labels) if self.targets == "attributes" else labels,
            mean=(0.305,),
            std=(0.376,),
            scale=16,
            augment=CropFlip(padding=1, flip=False) if self.augment else None,
        )
        rows = torch.arange(len(data))
        train, test = data.select(rows[:-_TEST]), data.select(rows[-_TEST:])
        strong = train.augmented(StrongImages(padding=1, flip=False, scale=16))
        return Sources(train=train, test=test.plain(), plain=train.plain(), strong=strong, labels=labels[:-_TEST])


def attributes(digits: Tensor) -> Tensor:
    """Rows of 0 and 1 `(N, A)`, float32, of digits `(N,)`; the columns are `ATTRIBUTES`."""
    table = torch.tensor([[float(digit in those) for those in ATTRIBUTES.values()] for digit in range(10)])
    return table[digits]
