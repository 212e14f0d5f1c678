"""MNIST-1D: a signal of 40 steps in place of an image."""

from __future__ import annotations

from typing import Any

import torch

from kdlightning.data.arrays import ArrayData
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.files import existing, read_arrays
from kdlightning.data.signals import make_signals
from kdlightning.data.strong import StrongSignals
from kdlightning.errors import ConfigurationError


class MNIST1D(DistillDataModule):
    """One-dimensional signals of ten classes: a file of MNIST-1D (github.com/greydanus/mnist1d), or made on the spot.

    Without a file, 4,000 training and 1,000 test signals are made from scikit-learn's digits (see
    `kdlightning.data.signals.make_signals`), always the same ones. They are not those of the file: say which of the two
    a number comes from.

    Args:
        path: an `.npz` file with `x_train` `(N, L)` or `(N, C, L)`, `y_train` `(N,)`, `x_test` and `y_test`; None makes
            signals.
        **options: those of `DistillDataModule`.
    """

    def __init__(self, path: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    @property
    def class_names(self) -> list[str]:
        """The labels as they are numbered."""
        return [str(label) for label in range(int(self.sources.train.targets.max()) + 1)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(C, L)`; `(1, 40)` for MNIST-1D."""
        return tuple(self.sources.train.inputs.shape[1:])

    def load(self) -> Sources:
        """Reads the file, or makes the signals."""
        if self.path is None:
            train, test = (ArrayData(*make_signals(count, seed)) for count, seed in ((4000, 0), (1000, 1)))
            return Sources(train, test, strong=train.augmented(StrongSignals()), labels=train.labels)
        path = existing(self.path, type(self).__name__, "an .npz file with x_train, y_train, x_test, y_test")
        arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
        parts = []
        for part in ("train", "test"):
            inputs = torch.from_numpy(arrays[f"x_{part}"]).float()
            targets = torch.from_numpy(arrays[f"y_{part}"]).long()
            inputs = inputs[:, None] if inputs.dim() == 2 else inputs
            if inputs.dim() != 3 or targets.shape != (len(inputs),):
                raise ConfigurationError(
                    f"{path}: x_{part} {tuple(inputs.shape)} and y_{part} {tuple(targets.shape)} do not fit"
                )
            parts.append(ArrayData(inputs, targets))
        train, test = parts
        return Sources(train, test, strong=train.augmented(StrongSignals()), labels=train.labels)
