"""Scenes of handwritten digits with a class for each pixel: segmentation with nothing to download."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from kdlightning.data.arrays import ArrayData
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.errors import ConfigurationError

VOID = 255
_PARTS = {"train": (0, 1000), "val": (1000, 1200), "test": (1200, 1797)}
_INK, _EDGE = 0.4, 0.15


class DigitScenes(DistillDataModule):
    """Segmentation of scikit-learn's handwritten digits in made scenes: 11 classes, the background and 0 to 9.

    Each scene has one to four digits, each in a quarter of its own, of any place, size, slant and strength there, above
    scraps of other digits, which count as background, and in noise. A pixel's class is that of the digit whose ink is
    there; the faint edge of the ink does not count (255), as in VOC. Training, validation and test scenes are made of
    different images (the first 1000, the next 200, the last 597), always the same scenes for the same options.

    Args:
        size: height and width of a scene.
        scenes: number of training scenes.
        eval_scenes: number of validation scenes, and of test scenes.
        noise: deviation of the noise, where full ink is 1.
        **options: those of `DistillDataModule`; `val_split` has no effect, since validation scenes are apart.
    """

    def __init__(
        self, size: int = 32, scenes: int = 1200, eval_scenes: int = 300, noise: float = 0.1, **options: Any
    ) -> None:
        super().__init__(**options)
        if size < 16:
            raise ConfigurationError(f"DigitScenes: size must be at least 16, got {size}")
        if min(scenes, eval_scenes) < 1:
            raise ConfigurationError("DigitScenes: scenes and eval_scenes must be at least 1")
        self.size = size
        self.scenes = scenes
        self.eval_scenes = eval_scenes
        self.noise = noise

    @property
    def class_names(self) -> list[str]:
        """`"background"`, `"0"` to `"9"`."""
        return ["background", *(str(digit) for digit in range(10))]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(1, size, size)`."""
        return (1, self.size, self.size)

    def load(self) -> Sources:
        """Makes the scenes."""
        from sklearn.datasets import load_digits  # takes a second

        digits = load_digits()
        images = torch.from_numpy(digits.images).float() / digits.images.max()
        labels = torch.from_numpy(digits.target).long()
        made = {}
        for number, (part, (first, last)) in enumerate(_PARTS.items()):
            count = self.scenes if part == "train" else self.eval_scenes
            made[part] = make_scenes(images[first:last], labels[first:last], count, self.size, self.noise, number)
        return Sources(**{part: ArrayData(*pair, mean=(0.12,), std=(0.25,)) for part, pair in made.items()})


def make_scenes(
    images: Tensor, labels: Tensor, count: int, size: int, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Scenes and their classes; the same for a seed.

    Args:
        images: digits to draw from, `(N, 8, 8)`, 0 to 1.
        labels: what they are, `(N,)` int64.
        count: number of scenes.
        size: height and width.
        noise: deviation of the noise, of which half the variance is smooth.
        seed: of everything random.

    Returns:
        Scenes `(count, 1, size, size)` float32 of 0 to about 1, classes `(count, size, size)` int64: 0 for the
        background, 1 + digit, 255 on the edge of a digit.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    def placed(parts: Tensor, centre: Tensor, reach: float) -> Tensor:
        """Parts `(count, 8, 8)` of random sizes and angles, at random places of squares around points."""
        scale, angle = uniform(10, 15) / size, uniform(-0.35, 0.35)
        x, y = (point + uniform(-1, 1) * (reach - scale) for point in centre.unbind(1))
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        across = torch.stack([cosine, sine, -cosine * x - sine * y], 1)
        down = torch.stack([-sine, cosine, sine * x - cosine * y], 1)
        grid = affine_grid(torch.stack([across, down], 1), [count, 1, size, size], align_corners=False)
        return grid_sample(parts[:, None], grid, align_corners=False)[:, 0] * uniform(0.6, 1.0)[:, None, None]

    def drawn() -> Tensor:
        return torch.randint(len(images), (count,), generator=generator)

    scene, classes = torch.zeros(count, size, size), torch.zeros(count, size, size, dtype=torch.int64)
    for number in range(4):
        scrap = images[drawn()].clone()
        scrap[:, :, 4:] = 0
        scene = torch.maximum(scene, placed(scrap if number % 2 else scrap.mT, torch.zeros(count, 2), 1.0))
    quarters = torch.tensor([[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]])
    order = torch.rand(count, 4, generator=generator).argsort(dim=1)
    present = torch.randint(1, 5, (count,), generator=generator)
    for number in range(4):
        chosen = drawn()
        ink = placed(images[chosen], quarters[order[:, number]], 0.5) * (number < present)[:, None, None]
        classes = torch.where((ink > _EDGE) & (classes == 0), VOID, classes)
        classes = torch.where(ink > _INK, 1 + labels[chosen][:, None, None], classes)
        scene = torch.maximum(scene, ink)
    rough = torch.randn(count, 1, size + 6, size + 6, generator=generator)
    smooth = avg_pool2d(rough, 7, 1)[:, 0] * 7
    white = torch.randn(count, size, size, generator=generator)
    return (scene + noise / math.sqrt(2) * (smooth + white))[:, None], classes
