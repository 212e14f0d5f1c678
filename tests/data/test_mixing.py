"""MixUp and CutMix: right values, the same again in any order of loading, in training only."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning import (
    DKD,
    KD,
    Classification,
    ConvNet,
    Digits,
    OfflineDistillation,
    Regression,
)
from kdlightning.data.arrays import ArrayData
from kdlightning.data.base import DistillDataModule, Sources
from kdlightning.data.batch import LoadedBatch
from kdlightning.data.mixing import Mixing
from kdlightning.data.views import IndexedViews
from kdlightning.errors import ConfigurationError


def loaded(inputs: Tensor, target: Any, views: tuple[Any, ...] = ()) -> LoadedBatch:
    index = torch.arange(len(inputs))
    return LoadedBatch((inputs, target), index, torch.zeros_like(index), views)


def pairs(inputs: Tensor, mixed: Tensor) -> tuple[list[int], list[float]]:
    """For each sample its partner and its own share, found by trying all; the rows must be in general position."""
    partners, shares = [], []
    for i, row in enumerate(mixed.flatten(1)):
        found = []
        for j, other in enumerate(inputs.flatten(1)):
            own, difference = inputs.flatten(1)[i], inputs.flatten(1)[i] - other
            share = 1.0 if i == j else float((row - other) @ difference / (difference @ difference))
            error = float((share * own + (1 - share) * other - row).abs().max())
            found.append((error, j, share))
        error, partner, share = found[i] if found[i][0] < 1e-9 else min(found)
        assert error < 1e-9
        partners.append(partner)
        shares.append(share)
    return partners, shares


@pytest.mark.parametrize("strength", [0.2, 1.0, 8.0])
def test_mixup_mixes_inputs_and_targets_by_one_share(strength: float) -> None:
    inputs, target = torch.randn(7, 2, 3, 3).double(), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    mixed = Mixing(strength, 0.0, 5, seed=5)(loaded(inputs, target))
    partners, shares = pairs(inputs, mixed.data[0])
    assert sorted(partners) == list(range(7)), "each sample lends itself once"
    own = [share for i, share in enumerate(shares) if partners[i] != i]
    assert own == pytest.approx([own[0]] * len(own), abs=1e-5)
    assert 0.5 <= own[0] < 1
    for i, row in enumerate(mixed.data[1].tolist()):
        expected = [0.0] * 5
        expected[target[i]] += own[0]
        expected[target[partners[i]]] += 1 - own[0]
        assert row == pytest.approx(expected, abs=1e-5)
    assert mixed.index.tolist() == list(range(7))


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    inputs = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 12, 10).contiguous()
    target = torch.tensor([0, 1, 2, 3, 4, 5])
    areas = []
    for seed in range(20):
        mixed = Mixing(0.0, 1.0, 6, seed=seed)(loaded(inputs, target))
        for i, image in enumerate(mixed.data[0]):
            foreign = image != i
            rows, columns = foreign[0].any(1), foreign[0].any(0)
            assert int(foreign[0].sum()) == int(rows.sum()) * int(columns.sum()), "one box"
            assert torch.equal(foreign[0], foreign[1])
            partner = int(image[foreign].unique()) if foreign.any() else i
            share = 1 - float(foreign[0].float().mean())
            if partner != i:
                areas.append(1 - share)
                assert mixed.data[1][i, i] == pytest.approx(share, abs=1e-6)
                assert mixed.data[1][i, partner] == pytest.approx(1 - share, abs=1e-6)
            assert float(mixed.data[1][i].sum()) == pytest.approx(1)
    assert max(areas) <= 0.5
    assert max(areas) > 0.25


def test_both_take_turns() -> None:
    inputs = torch.randn(4, 1, 8, 8)
    kinds = set()
    for seed in range(12):
        mixed = Mixing(1.0, 1.0, 3, seed=seed)(loaded(inputs, torch.tensor([0, 1, 2, 0]))).data[0]
        kept = (mixed == inputs).flatten(1).float().mean(1)
        kinds.add("cut" if bool(((kept > 0.1) & (kept < 1)).any()) else "mixed")
    assert kinds == {"cut", "mixed"}


def test_further_views_are_mixed_alike() -> None:
    inputs, target = torch.randn(5, 1, 4, 4), torch.arange(5)
    mixed = Mixing(1.0, 0.0, 5, seed=1)(loaded(inputs, target, ((inputs + 10, target),)))
    assert torch.allclose(mixed.views[0][0], mixed.data[0] + 10, atol=1e-5)
    assert torch.equal(mixed.views[0][1], mixed.data[1])


def test_numbers_are_mixed_as_they_are_and_images_alone_too() -> None:
    inputs, numbers = torch.randn(6, 1, 2, 2), torch.randn(6, 3)
    mixing = Mixing(1.0, 0.0, None, seed=2)
    together = mixing(loaded(inputs, numbers))
    joined = mixing(loaded(torch.cat([inputs.flatten(1), numbers], 1), numbers)).data[0]
    assert torch.allclose(torch.cat([together.data[0].flatten(1), together.data[1]], 1), joined, atol=1e-6)
    index = torch.arange(6)
    alone = mixing(LoadedBatch(inputs, index, torch.zeros_like(index)))
    assert torch.equal(alone.data, together.data[0])


def test_share_follows_the_beta_distribution() -> None:
    inputs = torch.tensor([[0.0], [1.0]])
    for strength, deviation in ((1.0, 0.289), (0.2, 0.423)):  # of λ in Beta(a, a): 1 / (2·sqrt(2a + 1))
        shares = []
        for seed in range(600):
            mixed = float(Mixing(strength, 0.0, 2, seed=seed)(loaded(inputs, torch.tensor([0, 1]))).data[0][0])
            if mixed:  # else the sample was its own partner
                shares.append(mixed)
        measured = float((torch.tensor(shares) - 0.5).square().mean().sqrt())
        assert measured == pytest.approx(deviation, abs=0.03)


def shown(data: DistillDataModule, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [batch.data for batch in itertools.islice(loader, start, None)]


@pytest.mark.parametrize("by_sample", [False, True], ids=["batches", "samples"])
def test_batches_are_the_same_again_whatever_loads_them(by_sample: bool) -> None:
    def make(workers: int = 0, **options: Any) -> Digits:
        data = Digits(mixup=0.5, train_limit=150, batch_size=40, num_workers=workers, augment=True, **options)
        if by_sample:
            train = data.part("train")
            data._parts["train"] = torch.utils.data.Subset(train, range(len(train)))
        return data

    plain = shown(make(seed=1), 3)
    for other in (make(seed=1), make(2, seed=1)):
        other_shown = shown(other, 3)
        assert all(
            torch.equal(a, b) for x, y in zip(plain, other_shown, strict=True) for a, b in zip(x, y, strict=True)
        )
    assert plain[0][1].shape == (40, 10)
    assert plain[0][1].dtype == torch.float32
    for data, epoch in ((make(seed=1), 4), (make(seed=2), 3)):
        assert not torch.equal(shown(data, epoch)[0][0], plain[0][0])
    loader = make(seed=1).train_dataloader()
    loader.load_state_dict({"epoch": 3, "repeats": 0, "batches": 2, "seed": 1, "batch_size": 40})
    loader.sampler.set_epoch(3)
    rest = [batch.data for batch in loader]
    assert len(rest) == 2
    assert torch.equal(rest[0][0], plain[2][0])
    assert torch.equal(rest[1][1], plain[3][1])


def test_only_training_is_mixed() -> None:
    data, plain = Digits(mixup=1.0, cutmix=1.0), Digits()
    for name in ("val", "test", "predict"):
        ours, theirs = (next(iter(getattr(d, f"{name}_dataloader")())).data for d in (data, plain))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


class Tiny(DistillDataModule):
    def __init__(self, inputs: Any, targets: Any, **options: Any) -> None:
        super().__init__(**options)
        self.arrays = inputs, targets

    def load(self) -> Sources:
        return Sources(ArrayData(*self.arrays))


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (torch.zeros(6, 1, 2, 2), torch.zeros(6).long(), {"mixup": 1.0}, "need the number of classes"),
        (torch.zeros(6, 1, 2, 2), torch.zeros(6, 2, 2).long(), {"mixup": 1.0}, r"not \(1, 2, 2\): leave them out"),
        (torch.zeros(6, 4), torch.zeros(6), {"cutmix": 1.0}, r"boxes of images or signals, not of shape \(4,\)"),
        (torch.zeros(6, 4), torch.zeros(6), {"mixup": -1.0}, "mixup must be 0 .none. or positive, got -1"),
        (torch.zeros(6, 4), torch.zeros(6), {"cutmix": float("nan")}, "cutmix must be 0"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_training(
    inputs: Tensor, targets: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Tiny(inputs, targets, num_workers=2, val_split=1, **options).train_dataloader()


@pytest.mark.parametrize(
    "data", [[{"input_ids": torch.arange(3)}] * 4, [(torch.arange(3), 0)] * 4, [(1.0, 2.0, 3)] * 4]
)
def test_texts_are_not_mixed(data: Any) -> None:
    module = Tiny(None, None, mixup=0.2, val_split=1)
    module.load = lambda: Sources(data)  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="mixup and cutmix mix .*: leave them out"):
        module.train_dataloader()


def test_a_stock_collate_still_replays_with_mixing() -> None:
    views = IndexedViews([(torch.full((1, 2, 2), float(i)), i % 3) for i in range(6)], seed=4)
    from kdlightning.data.views import IndexedCollate

    collate = IndexedCollate(None, 4, Mixing(1.0, 0.0, 3, 4))
    first, again = (collate(views.__getitems__([0, 1, 2, 3])) for _ in range(2))
    assert torch.equal(first.data[0], again.data[0])
    assert first.data[1].shape == (4, 3)


# -- in a run ----------------------------------------------------------------------------------------------------------


def module(response: Any = None) -> OfflineDistillation:
    torch.manual_seed(0)
    nets = ConvNet(10, widths=(4, 8)), ConvNet(10, widths=(6, 8))
    return OfflineDistillation(
        *nets, response=KD(temperature=1.0) if response is None else response, task=Classification(10)
    )


def test_teacher_and_student_see_the_same_mixed_images_and_metrics_read_plain_ones(trainer: Any) -> None:
    run, seen = module(), []
    run.student.register_forward_pre_hook(lambda _, args: seen.append(args[0]) if run.training else None)
    run.teacher.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]) if run.training else None)
    data = Digits(mixup=1.0, train_limit=64, batch_size=32, val_split=100)
    runner = trainer(max_epochs=1, num_sanity_val_steps=0)
    runner.fit(run, datamodule=data)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    plain = Digits(train_limit=64, batch_size=32, val_split=100, seed=data.train_dataloader().seed)
    assert not torch.equal(seen[0], next(iter(plain.train_dataloader())).data[0])
    assert 0 <= float(runner.callback_metrics["val/acc"]) <= 1
    assert float(runner.callback_metrics["train/loss_task"]) > 0


def test_a_method_that_needs_class_numbers_refuses_by_name(trainer: Any) -> None:
    with pytest.raises(ValueError, match="DKD needs hard labels .* leave mixup out"):
        trainer().fit(module(DKD()), datamodule=Digits(mixup=1.0, train_limit=64))


@pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)")
def test_a_resumed_run_ends_where_the_undisturbed_one_ends(fit_until: Any) -> None:
    def run(name: str, stop: int | None = None) -> Any:
        data = Digits(mixup=0.4, cutmix=1.0, train_limit=96, batch_size=32, seed=5, augment=True)
        return fit_until(name, module, stop=stop, datamodule=data)

    whole = run("whole")
    run("cut", 2)
    run("cut", 4)
    resumed = run("cut")
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_regression_targets_stay_numbers() -> None:
    inputs, numbers = torch.randn(8, 1, 2, 2), torch.randn(8)
    data = Tiny(inputs, numbers, mixup=1.0, val_split=1)
    target = next(iter(data.train_dataloader())).data[1]
    assert target.shape == (7,)
    assert Regression().loss(type("Out", (), {"logits": target[:, None]})(), Regression().batch((inputs, target))) == 0
