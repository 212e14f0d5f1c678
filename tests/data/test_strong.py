"""Further views: strongly augmented where a term asks for it, each sample from its own seed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning.data.arrays import ArrayData, CropFlip
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.cifar import CIFAR10
from kdlightning.data.digits import Digits
from kdlightning.data.image_folder import ImageFolder
from kdlightning.data.loader import resumable
from kdlightning.data.mnist1d import MNIST1D
from kdlightning.data.strong import StrongImages, StrongSignals, _normal
from kdlightning.data.views import IndexedViews
from kdlightning.errors import ConfigurationError


@pytest.fixture
def image() -> Tensor:
    return torch.randint(256, (1, 3, 12, 10), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_images_change_in_contrast_and_brightness_and_lose_a_square(image: Tensor) -> None:
    seeds = torch.arange(800)
    many = image.expand(800, -1, -1, -1)
    plain = image.float() / 255
    out = StrongImages(padding=0, flip=False, cutout=0.0)(many, seeds)
    assert out.dtype == torch.float32
    assert 0 <= out.min() < out.max() <= 1
    # Where nothing was cut off at 0 or 1, two pixels tell contrast and shift, and all others must agree with them.
    inner = (out > 0).flatten(1).all(1) & (out < 1).flatten(1).all(1)
    assert inner.sum() > 20
    mean = plain.mean((2, 3), keepdim=True)
    factor = (out[inner] - out[inner].mean((2, 3), keepdim=True)) / (plain - mean)
    assert (factor.flatten(1).std(1) < 1e-3).all()
    shift = (out[inner] - mean - factor * (plain - mean)).flatten(1).mean(1)
    assert 0.4 - 1e-4 <= factor.min() < factor.max() <= 1.6 + 1e-4
    assert -0.3 - 1e-4 <= shift.min() < shift.max() <= 0.3 + 1e-4
    cut = StrongImages(padding=0, flip=False, contrast=0, brightness=0)(many, seeds)
    gone = ((cut - plain).abs() > 1e-6).any(1)
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert rows.max() in (4, 5)
    assert columns.max() in (4, 5)
    assert (rows == 0).sum() > 40, "small squares fall between pixels"
    assert torch.allclose(cut.permute(0, 2, 3, 1)[gone], mean.view(3).expand(int(gone.sum()), 3), atol=1e-6)


def test_the_crop_of_images_is_that_of_the_weak_view(image: Tensor) -> None:
    seeds = torch.arange(50)
    many = image.expand(50, -1, -1, -1)
    still = StrongImages(padding=2, contrast=0, brightness=0, cutout=0)(many, seeds)
    assert torch.allclose(still, CropFlip(2)(many, seeds).float() / 255, atol=1e-6)
    floats = StrongImages(padding=2, scale=1.0, contrast=0, brightness=0, cutout=0)(many / 255, seeds)
    assert torch.allclose(floats, still, atol=1e-6)


def test_signals_are_shifted_scaled_and_noisy() -> None:
    signal = torch.sin(torch.arange(40) / 3)[None, None].expand(2000, 1, 40).contiguous()
    seeds = torch.arange(2000) * 7919
    quiet = StrongSignals(noise=0)(signal, seeds)
    steps = torch.arange(-4, 5)
    places = (torch.arange(40) - steps[:, None]).clamp(0, 39)
    shifted = signal[0, 0][places]  # one row for each shift
    scale = (quiet * shifted).sum(-1) / shifted.square().sum(-1)  # (2000, 9): the best factor for each shift
    error = (quiet - scale[..., None] * shifted).square().sum(-1)
    best = error.argmin(1)
    assert error.gather(1, best[:, None]).max() < 1e-8
    assert torch.bincount(best, minlength=9).min() > 60, "±4 steps, the ends half as often"
    factor = scale.gather(1, best[:, None])
    assert 0.7 <= factor.min() < 0.71
    assert 1.29 < factor.max() <= 1.3
    noise = StrongSignals(shift=0, scale=0)(signal, seeds) - signal
    deviation = signal[0].std(correction=0)
    assert noise.std() == pytest.approx(0.2 * float(deviation), rel=0.01)
    assert abs(float(noise.mean())) < 0.002
    assert torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1].abs() < 0.02


def test_noise_is_normal_and_never_infinite() -> None:
    ends = torch.tensor([0, 2**63 - 1])
    assert _normal(ends).isfinite().all()
    numbers = torch.randint(2**62, (100_000,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    values = _normal(numbers)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert (values > 1.96).float().mean() == pytest.approx(0.025, abs=0.002)


@pytest.mark.parametrize(
    ("augment", "shape"), [(StrongImages(2), (6, 3, 8, 7)), (StrongSignals(), (6, 2, 30))], ids=["images", "signals"]
)
def test_augmentation_of_a_sample_does_not_depend_on_its_batch(augment: Any, shape: tuple[int, ...]) -> None:
    batch, seeds = torch.rand(shape), torch.arange(6) * 977
    before = batch.clone()
    whole = augment(batch, seeds)
    assert torch.equal(batch, before)
    assert torch.equal(augment(batch[2:4], seeds[2:4]), whole[2:4])
    assert not torch.equal(augment(batch, seeds + 1), whole)


def first_batch(data: DistillDataModule) -> Any:
    return next(iter(data.train_dataloader()))


@pytest.mark.parametrize("make", [Digits, MNIST1D], ids=["digits", "signals"])
def test_asked_for_strong_views_they_are_given_in_training_alone(make: Any) -> None:
    data = make(batch_size=40, pin_memory=False)
    usual = first_batch(data)
    assert usual.views == ()
    data.ask_for_views(2, strong=True)
    batch = first_batch(data)
    assert torch.equal(batch.data[0], usual.data[0]), "the first view is what it always is"
    (strong,) = batch.views
    assert torch.equal(strong[1], batch.data[1])
    assert strong[0].shape == batch.data[0].shape
    assert ((strong[0] - batch.data[0]).abs().flatten(1).amax(1) > 0.05).float().mean() > 0.9
    assert torch.equal(first_batch(data).views[0][0], strong[0])
    assert next(iter(data.val_dataloader())).views == ()
    data.ask_for_views(1)
    assert first_batch(data).views == ()


def test_the_option_overrules_what_is_asked() -> None:
    plain = Digits(batch_size=40, pin_memory=False, strong_views=False)
    plain.ask_for_views(2, strong=True)
    batch = first_batch(plain)
    assert torch.equal(batch.views[0][0], batch.data[0]), "without any augmentation both views are one"
    strong = Digits(batch_size=40, pin_memory=False, views=3, strong_views=True)
    batch = first_batch(strong)
    assert len(batch.views) == 2
    assert not torch.equal(batch.views[0][0], batch.views[1][0])
    weak = first_batch(Digits(batch_size=40, pin_memory=False, augment=True, views=2))
    ink = (weak.views[0][0] * 0.376 + 0.305) * 16
    assert (ink - ink.round()).abs().max() < 1e-3, "shifted, and no more"


def test_strong_views_follow_the_split_and_the_limit() -> None:
    data = Digits(batch_size=200, pin_memory=False, val_split=0.5, train_limit=100)
    data.ask_for_views(2, strong=True)
    batch = first_batch(data)
    train, strong = data._parts["train"], data._parts["strong"]
    assert torch.equal(train.rows, strong.rows)
    assert torch.equal(batch.views[0][1], batch.data[1])


def test_views_are_the_same_in_workers_and_sample_by_sample() -> None:
    raw = torch.rand(23, 1, 8, 8)
    train = ArrayData(raw, torch.arange(23), augment=CropFlip(1))
    strong = train.augmented(StrongImages(1, scale=1.0))

    def batches(**options: Any) -> list[Any]:
        data = IndexedViews(train, 5, 2, collated=True, further=strong)
        return list(resumable(data, batch_size=8, **options))

    alone, workers = batches(), batches(num_workers=2)
    for ours, theirs in zip(alone, workers, strict=True):
        assert torch.equal(ours.views[0][0], theirs.views[0][0])
        assert torch.equal(ours.data[0], theirs.data[0])
    single = IndexedViews(train, 5, 2, further=strong)[3]
    assert single.views[0][0].shape == (1, 8, 8)
    assert not torch.equal(single.views[0][0], single.data[0])


def test_a_data_set_without_batches_may_have_another_for_further_views(noisy: Any) -> None:
    class Loud(noisy):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Tensor:
            return super().__getitem__(index) + 100

    data = IndexedViews(noisy(), seed=3, views=2, further=Loud())
    item = data[4]
    assert item.data[0] == 4
    assert item.views[0][0] == 104
    assert torch.equal(IndexedViews(noisy(), seed=3)[4].data, item.data)
    with pytest.raises(ConfigurationError, match="further has 5 samples and the data set 23"):
        IndexedViews(noisy(), further=noisy(5))


class Bare(DistillDataModule):
    """Data without a stronger augmentation."""

    def load(self) -> Sources:
        data = ArrayData(torch.rand(20, 1, 4), torch.arange(20) % 2)
        return Sources(data, data, labels=data.labels)


def test_data_without_a_stronger_augmentation_say_so() -> None:
    data = Bare(pin_memory=False)
    data.ask_for_views(2, strong=True)
    with pytest.warns(UserWarning, match="Bare has no stronger augmentation with these options"):
        batch = first_batch(data)
    assert len(batch.views) == 1
    meant = Bare(pin_memory=False, strong_views=False)
    meant.ask_for_views(2, strong=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(first_batch(meant).views) == 1


def test_images_of_files_and_cifar_have_strong_views(tmp_path: Path) -> None:
    import numpy
    from PIL import Image

    for part in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = numpy.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    files = ImageFolder(str(tmp_path), size=16, num_workers=0, batch_size=4, pin_memory=False, val_split=2)
    files.ask_for_views(2, strong=True)
    batch = first_batch(files)
    assert batch.views[0][0].shape == batch.data[0].shape == (4, 3, 16, 16)
    assert torch.equal(first_batch(files).views[0][0], batch.views[0][0])

    arrays = {}
    for part, count in (("train", 12), ("test", 4)):
        arrays[f"x_{part}"] = numpy.random.default_rng(1).integers(0, 255, (count, 32, 32, 3), dtype=numpy.uint8)
        arrays[f"y_{part}"] = numpy.arange(count) % 10
    numpy.savez(tmp_path / "cifar.npz", **arrays)
    cifar = CIFAR10(str(tmp_path / "cifar.npz"), val_split=2, batch_size=5, pin_memory=False)
    cifar.ask_for_views(2, strong=True)
    assert first_batch(cifar).views[0][0].shape == (5, 3, 32, 32)
    own = CIFAR10(str(tmp_path / "cifar.npz"), transform=lambda x: x, val_split=2, batch_size=5, pin_memory=False)
    own.ask_for_views(2, strong=True)
    with pytest.warns(UserWarning, match="CIFAR10 has no stronger augmentation with these options"):
        batch = first_batch(own)
    assert torch.equal(batch.views[0][0], batch.data[0])
