"""Handwritten digits that come with scikit-learn: real, tiny, nothing to download."""

from __future__ import annotations

from typing import Any

import torch

from kdlightning.data.arrays import ArrayData, CropFlip
from kdlightning.data.base import DistillDataModule, Sources

_TEST = 597


class Digits(DistillDataModule):
    """1797 handwritten digits, 8×8 grey, 10 classes; scikit-learn's bundled copy (UCI, optical recognition).

    The test split is fixed: the last 597 images in the file's order, as scikit-learn's own example splits without
    shuffling; validation is held out of the first 1200.

    Args:
        augment: shift training images by up to one pixel.
        **options: those of `DistillDataModule`.
    """

    def __init__(self, augment: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.augment = augment

    @property
    def class_names(self) -> list[str]:
        """`"0"` to `"9"`."""
        return [str(digit) for digit in range(10)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, 8, 8)`."""
        return (1, 8, 8)

    def load(self) -> Sources:
        """Reads the bundled arrays."""
        from sklearn.datasets import load_digits  # takes a second

        digits = load_digits()
        data = ArrayData(
            torch.from_numpy(digits.images).to(torch.uint8)[:, None],
            torch.from_numpy(digits.target).long(),
            mean=(0.305,),
            std=(0.376,),
            scale=16,
            augment=CropFlip(padding=1, flip=False) if self.augment else None,
        )
        rows = torch.arange(len(data))
        train, test = data.select(rows[:-_TEST]), data.select(rows[-_TEST:])
        return Sources(train=train, test=test.plain(), plain=train.plain(), labels=train.labels)
