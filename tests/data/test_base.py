"""What every DataModule does, shown on the digits and on tiny data."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

from kdlightning.data.arrays import ArrayData
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.digits import Digits
from kdlightning.data.loader import ResumableLoader
from kdlightning.data.views import labels_of
from kdlightning.errors import ConfigurationError


class Tiny(DistillDataModule):
    """30 samples of 3 classes; sample i holds the number i."""

    def __init__(self, train: int = 30, test: int | None = 6, separate: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.counts = train, test, separate

    def load(self) -> Sources:
        train, test, separate = self.counts
        parts = [
            ArrayData(torch.arange(n).float().view(-1, 1, 1) + first, torch.arange(n) % 3)
            for n, first in ((train, 0), (test or 0, 1000), (5, 2000))
        ]
        return Sources(
            parts[0], None if test is None else parts[1], parts[2] if separate else None, labels=parts[0].labels
        )


def numbers(loader: Any) -> list[int]:
    return [int(value) for batch in loader for value in batch.data[0].flatten()]


@pytest.mark.parametrize("val_split", [0.1, 0.5, 7])
@pytest.mark.parametrize("train_limit", [None, 9])
def test_splits_are_disjoint(val_split: float, train_limit: int | None) -> None:
    data = Tiny(val_split=val_split, train_limit=train_limit)
    train, val, test = (
        set(numbers(loader)) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    )
    assert not train & val
    assert not (train | val) & test
    assert test == set(range(1000, 1006))
    assert len(val) == (val_split if val_split >= 1 else val_split * 30)
    assert len(train) == (train_limit or 30 - len(val))
    if train_limit:
        assert sorted(number % 3 for number in train) == [0] * 3 + [1] * 3 + [2] * 3


def test_split_depends_on_split_seed_and_not_on_seed() -> None:
    first = numbers(Tiny(seed=1).val_dataloader())
    assert numbers(Tiny(seed=2).val_dataloader()) == first
    assert numbers(Tiny(split_seed=1, val_split=0.5).val_dataloader()) != numbers(Tiny(val_split=0.5).val_dataloader())
    assert numbers(Tiny(seed=1).train_dataloader()) != numbers(Tiny(seed=2).train_dataloader())


def test_separate_validation_data_are_used_whole() -> None:
    data = Tiny(separate=True)
    assert numbers(data.val_dataloader()) == list(range(2000, 2005))
    assert len(numbers(data.train_dataloader())) == 30


def test_no_validation_split_validates_on_test_and_says_so() -> None:
    data = Tiny(val_split=0)
    assert data.validates_on_test
    assert numbers(data.val_dataloader()) == numbers(data.test_dataloader())
    assert len(numbers(data.train_dataloader())) == 30
    assert not Tiny().validates_on_test
    neither = Tiny(val_split=0, test=None)
    assert neither.val_dataloader() == []
    assert not neither.validates_on_test


@pytest.mark.parametrize("drop_last", [False, True])
def test_data_smaller_than_a_batch_still_train(drop_last: bool) -> None:
    data = Tiny(train=5, val_split=1, batch_size=64, drop_last=drop_last)
    assert [len(batch.index) for batch in data.train_dataloader()] == [4]


def test_drop_last_leaves_the_incomplete_training_batch_out() -> None:
    data = Tiny(val_split=4, batch_size=4, drop_last=True)
    assert [len(batch.index) for batch in data.train_dataloader()] == [4] * 6
    assert [len(batch.index) for batch in data.test_dataloader()] == [4, 2]


def test_loaders_have_numbers_views_and_their_own_batch_sizes() -> None:
    data = Digits(batch_size=32, eval_batch_size=50, augment=True, views=2, pin_memory=False)
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert isinstance(data.train_dataloader(), ResumableLoader)
    assert train.data[0].shape == (32, 1, 8, 8)
    assert train.views[0][0].shape == (32, 1, 8, 8)
    assert torch.equal(train.views[0][1], train.data[1])
    assert not torch.equal(train.views[0][0], train.data[0])
    assert val.index.tolist() == list(range(50))
    assert val.views == ()
    data.views = 1
    assert next(iter(data.train_dataloader())).views == ()


def test_digits_are_split_once_and_for_all() -> None:
    data = Digits(val_split=0.1)
    assert [len(data.part(name)) for name in ("train", "val", "test", "predict")] == [1080, 120, 597, 597]
    assert data.num_classes == 10
    assert data.input_shape == (1, 8, 8)
    assert torch.bincount(data.part("val").labels).tolist() == [12] * 10
    held = {tuple(image.tolist()) for image in data.part("val").load(torch.arange(120), torch.zeros(120))[0].flatten(1)}
    used = {
        tuple(image.tolist()) for image in data.part("train").load(torch.arange(1080), torch.zeros(1))[0].flatten(1)
    }
    assert not held & used


def test_attributes_of_digits_are_facts_of_them_and_the_splits_those_of_the_classes() -> None:
    facts = {
        "even": lambda n: n % 2 == 0,
        "prime": lambda n: n > 1 and all(n % d for d in range(2, n)),
        "five or more": lambda n: n >= 5,
        "multiple of three": lambda n: n % 3 == 0,
        "square": lambda n: round(n**0.5) ** 2 == n,
    }
    data, classes = Digits(targets="attributes"), Digits()
    assert data.class_names == list(facts)
    assert data.num_classes == 5
    for name in ("train", "val", "test"):
        part, same = data.part(name), classes.part(name)
        everything, seeds = torch.arange(len(part)), torch.zeros(len(part))
        images, rows = part.load(everything, seeds)
        assert torch.equal(images, same.load(everything, seeds)[0])
        assert rows.dtype == torch.float32
        assert rows.tolist() == [[float(fact(digit)) for fact in facts.values()] for digit in same.labels.tolist()]
    assert labels_of(data.part("train")) is None


def test_digits_have_classes_or_attributes() -> None:
    with pytest.raises(ConfigurationError, match="targets must be classes or attributes, not 'colours'"):
        Digits(targets="colours")


def test_augmentation_changes_with_the_epoch_and_not_in_evaluation() -> None:
    data = Digits(augment=True, batch_size=2000)
    loader = data.train_dataloader()
    shown = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        shown.append(batch.data[0][batch.index.argsort()])
    assert torch.equal(shown[0], shown[2])
    assert not torch.equal(shown[0], shown[1])
    plain = [next(iter(Digits(augment=augment).val_dataloader())).data[0] for augment in (True, False)]
    assert torch.equal(*plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1"),
        ({"views": 0}, "views must be at least 1"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"train_limit": 0}, "train_limit must be at least 1"),
        ({"train": 0}, "Tiny: the training data are empty"),
        ({"test": 0}, "Tiny: the test data are empty"),
        ({"val_split": 30}, "val_split=30 leaves none of the 30"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Tiny(**options).setup()


def test_missing_part_is_named() -> None:
    with pytest.raises(ConfigurationError, match="Tiny has no test data"):
        Tiny(test=None).test_dataloader()


class Reader(L.LightningModule):
    """Remembers which samples it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen["train"].append(batch.index.tolist())
        return self.layer(batch.data[0][:, 0]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["val"].append(batch.index.tolist())

    def predict_step(self, batch: Any, batch_idx: int) -> list[int]:
        return batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_prediction_sees_every_sample_in_order() -> None:
    predictions = trainer().predict(Reader(), datamodule=Tiny(batch_size=4))
    assert predictions == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*You requested to overfit")
def test_overfitting_repeats_the_same_batches() -> None:
    module = Reader()
    trainer(overfit_batches=2).fit(module, datamodule=Tiny(batch_size=3, val_split=6))
    assert module.seen["train"] == [[0, 1, 2], [3, 4, 5]] * 2
