"""Arrays are normalised and augmented by batches, each sample by its own seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning.data.arrays import ArrayData, CropFlip
from kdlightning.data.loader import resumable


@pytest.fixture
def images() -> Tensor:
    return torch.arange(6 * 2 * 5 * 4).view(6, 2, 5, 4).to(torch.uint8)


def test_crop_and_flip_show_a_shifted_and_perhaps_mirrored_image(images: Tensor) -> None:
    seeds = torch.arange(600)
    many = images[:1].expand(600, -1, -1, -1)
    out = CropFlip(padding=1)(many, seeds)
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1))
    windows = {}
    for down in range(3):
        for right in range(3):
            window = padded[:, down : down + 5, right : right + 4]
            windows[down, right, False] = window
            windows[down, right, True] = window.flip(-1)
    counts = {key: int((out == window).flatten(1).all(1).sum()) for key, window in windows.items()}
    assert sum(counts.values()) == 600
    assert min(counts.values()) > 12, "each of the 18 outcomes about 33 times"


def test_augmentation_of_a_sample_does_not_depend_on_its_batch(images: Tensor) -> None:
    augment, seeds = CropFlip(2), torch.arange(6) * 977
    whole = augment(images, seeds)
    assert torch.equal(augment(images[2:4], seeds[2:4]), whole[2:4])


def test_samples_are_normalised_and_selected(images: Tensor) -> None:
    data = ArrayData(images, torch.arange(6), mean=(0.5, 0.25), std=(0.5, 2.0), scale=255)
    part = data.select(torch.tensor([4, 1])).select(torch.tensor([1]))
    inputs, target = part[0]
    expected = (images[1].float() / 255 - torch.tensor([0.5, 0.25])[:, None, None]) / torch.tensor([0.5, 2.0])[
        :, None, None
    ]
    assert torch.allclose(inputs, expected, atol=1e-6)
    assert target == 1
    assert part.labels.tolist() == [1]


def test_loading_does_not_change_the_array() -> None:
    raw = torch.ones(4, 1, 3)
    data = ArrayData(raw, torch.zeros(4), mean=(3.0,), std=(2.0,))
    data.load(torch.arange(4), torch.zeros(4))
    assert (raw == 1).all()


@pytest.mark.parametrize("floats", [False, True])
def test_transform_works_sample_by_sample_and_replays(images: Tensor, floats: bool) -> None:
    def transform(image: Tensor) -> Tensor:
        assert image.shape == (2, 5, 4)
        flipped = image.flip(-1) if torch.rand(()) < 0.5 else image
        return flipped / 255 if floats else flipped

    data = ArrayData(images, torch.arange(6), mean=(0.1,), std=(0.2,), scale=255, transform=transform)
    batches = [next(iter(resumable(data, batch_size=6, shuffle=False, seed=1))) for _ in range(2)]
    assert torch.equal(batches[0].data[0], batches[1].data[0])
    plain = data.plain().load(torch.arange(6), torch.zeros(6))[0]
    same = (batches[0].data[0] - plain).abs().flatten(1).amax(1) < 1e-5
    mirrored = (batches[0].data[0] - plain.flip(-1)).abs().flatten(1).amax(1) < 1e-5
    assert (same ^ mirrored).all()


def test_batches_and_samples_agree_without_augmentation(images: Tensor) -> None:
    data: Any = ArrayData(images, torch.arange(6), scale=255)
    whole = data.load(torch.arange(6), torch.zeros(6))[0]
    assert all(torch.equal(data[i][0], whole[i]) for i in range(6))
