"""What all DataModules share: splits, loaders, and sentences for what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Subset

from kdlightning.data.buckets import LengthBuckets
from kdlightning.data.loader import ResumableLoader
from kdlightning.data.mixing import Mixing
from kdlightning.data.sampler import EpochSampler
from kdlightning.data.seeding import default_seed
from kdlightning.data.splits import held_out_count, stratified
from kdlightning.data.views import BatchLoading, IndexedCollate, IndexedViews
from kdlightning.errors import ConfigurationError


@dataclass
class Sources:
    """The data sets that a DataModule has found; map-style, each as the model is to see it.

    Attributes:
        train: training data, augmented if wanted; the validation split is taken from it.
        test: test data, or None.
        val: validation data that come separately; None holds `val_split` of `train` out.
        plain: `train` without augmentation, from which the held-out samples are shown; `train` itself by default.
        strong: `train` with a stronger augmentation, for further views of terms that want a weak and a strong one.
        labels: classes of `train` `(N,)` for balanced splits; None splits at random.
        predict: what `predict` reads; `test` by default, then `val`.
    """

    train: Any
    test: Any = None
    val: Any = None
    plain: Any = None
    strong: Any = None
    labels: Any = None
    predict: Any = None


class DistillDataModule(L.LightningDataModule):
    """Base of the DataModules; a subclass says in `load` where its data are.

    The loaders give `LoadedBatch`es with sample numbers and seeded views, and can be resumed within an epoch.

    Args:
        batch_size: training samples in a batch, for each process.
        eval_batch_size: in validation, test and prediction; `batch_size` by default.
        val_split: what is held out of the training data for validation, in the classes' proportions: a fraction below
            1 or a count. Never part of the test split. 0 validates on the test split, as some protocols of the
            literature do; a best checkpoint is then chosen on test and its score cannot be reported.
        num_workers: processes that load; 0 is the fastest for data that lie in memory as arrays or tokens.
        pin_memory: page-locked batches; where CUDA is available by default.
        seed: of order and augmentation; the run's seed by default.
        split_seed: of the validation split and of `train_limit`; apart from `seed`, so that a teacher and students of
            several seeds all leave the same samples out.
        views: augmentations of each sample in a training batch; a term that needs more asks for them.
        drop_last: leave an incomplete last training batch out, unless it is the only one.
        train_limit: train on only so many of the samples that are left, in the classes' proportions.
        mixup: mix each training sample with another one of its batch, inputs and targets: λ·x_i + (1−λ)·x_j with λ of
            Beta(mixup, mixup). 0 mixes nothing, 1 draws λ evenly. Targets become soft `(B, C)`, which methods that need
            a class number refuse. Student and teacher see the same mixed inputs.
        cutmix: the same by pasting a box of x_j; with both, each batch gets one of them. See `kdlightning.data.mixing`.
        strong_views: augment further views more strongly than the first (True) or alike (False); None leaves it to the
            term that asks for them.

    Raises:
        ConfigurationError: for options out of range; in `setup` for data that are missing or empty.
    """

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_split: float = 0.1,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        seed: int | None = None,
        split_seed: int = 0,
        views: int = 1,
        drop_last: bool = False,
        train_limit: int | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        strong_views: bool | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size), ("views", views)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")
        if num_workers < 0:
            raise ConfigurationError(f"num_workers must not be negative, got {num_workers}")
        if train_limit is not None and train_limit < 1:
            raise ConfigurationError(f"train_limit must be at least 1, got {train_limit}")
        for name, strength in (("mixup", mixup), ("cutmix", cutmix)):
            if not strength >= 0:
                raise ConfigurationError(f"{name} must be 0 (none) or positive, got {strength}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_split = val_split
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self.split_seed = split_seed
        self.views = views
        self.strong_views = strong_views
        self.drop_last = drop_last
        self.train_limit = train_limit
        self.mixup = mixup
        self.cutmix = cutmix
        self.collate_fn: Callable[[list[Any]], Any] | None = None
        self._asked = (1, False)
        self._asked_partners = False
        self._sources: Sources | None = None
        self._parts: dict[str, Any] = {}

    # What a subclass says

    length_bucketing: bool = False
    """Whether training batches hold samples of like length; the training data then tell their `lengths`."""

    def load(self) -> Sources:
        """Finds and reads the data; called once, on each rank."""
        raise NotImplementedError(f"{type(self).__name__} has no load()")

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None where that has no meaning."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their labels; None where that has no meaning."""
        return None

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one input without the batch: `(C, H, W)`, `(C, L)`, …; None if it varies."""
        return None

    # What all of them do

    @property
    def sources(self) -> Sources:
        """The data sets as `load` gave them; read on first use."""
        if self._sources is None:
            self._sources = self.load()
        return self._sources

    @property
    def validates_on_test(self) -> bool:
        """Whether validation reads the test split, so that no best score may be reported."""
        sources = self.sources
        return self.val_split == 0 and sources.val is None and sources.test is not None

    def setup(self, stage: str | None = None) -> None:
        """Splits the data; the same for each stage, so that `test` after `fit` sees what a run of its own would."""
        if self._parts:
            return
        sources = self.sources
        name = type(self).__name__
        for part, data in (("training", sources.train), ("test", sources.test), ("validation", sources.val)):
            if data is not None and len(data) == 0:
                raise ConfigurationError(f"{name}: the {part} data are empty")
        total = len(sources.train)
        labels = total if sources.labels is None else sources.labels
        rows = torch.arange(total)
        val = sources.val
        if val is None and self.val_split:
            held_out, rows = stratified(labels, held_out_count(self.val_split, total), seed=self.split_seed)
            val = select(sources.train if sources.plain is None else sources.plain, held_out)
        if self.train_limit is not None and self.train_limit < len(rows):
            left = len(rows) if sources.labels is None else torch.as_tensor(labels)[rows]
            rows = rows[stratified(left, self.train_limit, seed=self.split_seed + 1)[0]]
        self._parts = {
            "train": sources.train if len(rows) == total else select(sources.train, rows),
            "strong": None if sources.strong is None else select(sources.strong, rows),
            "val": sources.test if val is None else val,
            "test": sources.test,
        }
        self._parts["predict"] = next(
            (part for part in (sources.predict, sources.test, self._parts["val"]) if part is not None), None
        )

    def part(self, name: str) -> Any:
        """The data set of `"train"`, `"val"`, `"test"` or `"predict"`, after the split.

        Raises:
            ConfigurationError: if this DataModule has no such data.
        """
        self.setup()
        if self._parts[name] is None:
            raise ConfigurationError(f"{type(self).__name__} has no {name} data")
        return self._parts[name]

    def ask_for_views(self, count: int, *, strong: bool = False, partners: bool = False) -> None:
        """What the run that begins reads of each training sample; training loaders made from now on give it.

        Args:
            count: number of views; `views`, if that is more.
            strong: whether the further ones are to be augmented more strongly than the first; see `strong_views`.
            partners: whether another sample of each one's class is read too.
        """
        if partners and (self.mixup or self.cutmix):
            raise ConfigurationError(
                "mixup and cutmix mix classes, and a term reads partners of one class: set both to 0"
            )
        self._asked = (count, strong)
        self._asked_partners = partners

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented, with `views` views or as many as were asked for."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """In order, not augmented; an empty list where there is nothing to validate on."""
        self.setup()
        return [] if self._parts["val"] is None else self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """In order, not augmented."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """In order, not augmented."""
        return self._loader("predict")

    def _loader(self, name: str) -> ResumableLoader:
        training = name == "train"
        data = self.part(name)
        seed = default_seed() if self.seed is None else self.seed
        size = self.batch_size if training else self.eval_batch_size or self.batch_size
        if not self.num_workers:  # a decision here, not an oversight
            warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
        views = self._views(data, seed) if training else IndexedViews(data, seed, collated=self.collate_fn is None)
        bucketing = training and self.length_bucketing
        order = EpochSampler(views, seed=seed, order=LengthBuckets(data.lengths, size)) if bucketing else None
        return ResumableLoader(
            views,
            batch_size=size,
            shuffle=training and not bucketing,
            sampler=order,
            seed=seed,
            collate_fn=self._mixes(views, seed) if training and (self.mixup or self.cutmix) else self.collate_fn,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
            drop_last=training and self.drop_last and len(data) >= size,
        )

    def _views(self, data: Any, seed: int) -> IndexedViews:
        """The training data with as many views as are wanted."""
        count, strong = self._asked
        strong = strong if self.strong_views is None else self.strong_views
        further = self._parts.get("strong") if strong else None
        if strong and further is None and max(self.views, count) > 1:
            warnings.warn(
                f"{type(self).__name__} has no stronger augmentation with these options: further views are augmented "
                "like the first (strong_views: false says that this is meant)",
                stacklevel=3,
            )
        collated = self.collate_fn is None
        count = max(self.views, count)
        return IndexedViews(data, seed, count, collated=collated, further=further, partners=self._asked_partners)

    def _mixes(self, views: IndexedViews, seed: int) -> IndexedCollate:
        """The collate function that mixes, tried on one sample: a worker's sentence would come late, and long."""
        collate = IndexedCollate(self.collate_fn, seed, Mixing(self.mixup, self.cutmix, self.num_classes, seed))
        collate(views.__getitems__([0]))
        return collate


def select(data: Any, rows: Tensor) -> Any:
    """Some samples of a data set, by its own `select` where it has one."""
    return data.select(rows) if isinstance(data, BatchLoading) else Subset(data, rows.tolist())
