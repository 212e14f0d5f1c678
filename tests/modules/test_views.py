"""A response that reads several views of each sample: one pass of each network on all of them, in training alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdlightning import (
    CTKD,
    GKD,
    KD,
    MLKD,
    CausalLM,
    Classification,
    ConfigurationError,
    Digits,
    FeatureKD,
    FitNet,
    IndexedViews,
    LatestCheckpoint,
    OfflineDistillation,
    OnlineDistillation,
    OnPolicyDistillation,
    ResponseLoss,
    resumable,
)
from kdlightning.data.batch import Batch, LoadedBatch, join
from kdlightning.data.views import indexed_collate
from kdlightning.models.output import Head, ModelOutput


class Noisy(Dataset):
    """Samples with noise from torch's generator: each view is another one."""

    def __init__(self, samples: Any, scale: float = 0.3) -> None:
        self.samples = samples
        self.scale = scale

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Any:
        x, y = self.samples[number]
        return x + self.scale * torch.randn(x.shape), y


class Counting(nn.Module):
    """Notes how many samples each pass sees."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[tuple[bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append((torch.is_grad_enabled(), len(x)))
        return self.inner(x)


class Watch(L.Callback):
    """Keeps each step's batch and terms."""

    def __init__(self) -> None:
        self.batches: list[LoadedBatch] = []
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})


@pytest.fixture
def loaders(samples: Any) -> Any:
    """Our loaders of two views, the second noisier, and of plain validation data."""

    def make(views: int = 2, **options: Any) -> tuple[Any, Any]:
        train = IndexedViews(Noisy(samples), seed=3, views=views, further=Noisy(samples, 1.0))
        return resumable(train, batch_size=8, seed=3, **options), resumable(samples, batch_size=8, shuffle=False)

    return make


def test_a_step_is_the_sum_over_views_in_one_pass_of_each_network(
    dense: Any, loaders: Any, sgd: Any, trainer: Any
) -> None:
    student, teacher = Counting(dense(0)), Counting(dense(1, width=12))
    twin = dense(0)
    watch = Watch()
    module = OfflineDistillation(
        student, teacher, task=Classification(5), response=MLKD(temperatures=(2.0, 4.0)), optimizer=sgd
    )
    trainer(callbacks=[watch], num_sanity_val_steps=0).fit(module, *loaders())

    optimizer = sgd(twin.parameters())
    for row, batch in zip(watch.rows, watch.batches, strict=True):
        target, views = batch.data[1], [batch.data[0], batch.views[0][0]]
        assert not torch.equal(views[0], views[1])
        with torch.no_grad():
            theirs = [teacher.inner(x) for x in views]
        ours = [twin(x) for x in views]
        hard = [F.cross_entropy(logits, target) for logits in ours]
        soft = MLKD(temperatures=(2.0, 4.0))(ours, theirs)
        loss = 0.1 * (hard[0] + hard[1]) + 0.9 * soft
        assert row["train/loss_task"] == pytest.approx(float(sum(hard).detach()) / 2, rel=1e-5)
        assert row["train/loss_mlkd"] == pytest.approx(float(soft.detach()), rel=1e-5)
        assert row["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, other in zip(student.inner.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    sizes = [8, 8, 8, 2]
    assert [size for grad, size in student.sizes if grad] == [2 * size for size in sizes]
    assert [size for grad, size in student.sizes if not grad] == sizes, "validation shows one view"
    assert [size for _, size in teacher.sizes] == [2 * size for size in sizes] + sizes


def test_callbacks_and_own_terms_see_the_first_view(dense: Any, loaders: Any, sgd: Any, trainer: Any) -> None:
    seen: list[tuple[Any, ...]] = []

    class Mine(OfflineDistillation):
        def distill_terms(self, step: Any) -> dict[str, Tensor]:
            seen.append((step.student.logits.detach(), step.teacher.logits, step.batch, len(step.student_views)))
            return {"mine": step.student.logits.square().mean()}

    student, teacher, watch = dense(0), dense(1), Watch()
    initial = dense(0)
    hint = FeatureKD(FitNet(), {"1": "1"}, weight=1.0, adapter="none")
    module = Mine(student, teacher, task=Classification(5), response=MLKD(), optimizer=sgd)
    trainer(callbacks=[hint, watch]).fit(module, loaders()[0])
    first = watch.batches[0].data[0]
    logits, other, batch, views = seen[0]
    assert views == 2
    assert torch.equal(batch.inputs, first)
    assert torch.allclose(logits, initial(first), atol=1e-6)
    assert torch.allclose(other, teacher(first), atol=1e-6)
    expected = F.mse_loss(initial[1](initial[0](first)), teacher[1](teacher[0](first)))
    assert watch.rows[0]["train/loss_fit_net"] == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_broken_run_ends_where_the_undisturbed_one_ends(
    accumulate: int, stop: int, net: Any, loaders: Any, trainer: Any, tmp_path: Path, same_state: Any
) -> None:
    class Broken(Exception):
        pass

    class Break(L.Callback):
        def __init__(self, at: int | None) -> None:
            self.at = at

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if self.at is not None and trainer.fit_loop.epoch_loop.total_batch_idx >= self.at:
                raise Broken

    def run(name: str, at: int | None = None) -> Any:
        last = tmp_path / name / "last.ckpt"
        torch.manual_seed(99 if last.exists() else 0)
        module = OfflineDistillation(net(4, 0, dropout=0.3), net(6, 1), task=Classification(5), response=MLKD())
        module._seed = None if last.exists() else 11
        callbacks = [LatestCheckpoint(1, dirpath=str(last.parent)), Break(at)]
        runner = trainer(max_epochs=2, callbacks=callbacks, accumulate_grad_batches=accumulate)
        try:
            runner.fit(module, *loaders(), ckpt_path=str(last) if last.exists() else None)
        except Broken:
            assert at is not None
        return module

    whole = run("whole")
    run("cut", at=stop)
    same_state(whole, run("cut"))


def test_accumulated_views_are_the_mean_of_the_micro_batches(dense: Any, loaders: Any, sgd: Any, trainer: Any) -> None:
    student, twin, teacher, watch = dense(0), dense(0), dense(1), Watch()
    module = OfflineDistillation(student, teacher, task=Classification(5), response=MLKD(), optimizer=sgd)
    trainer(callbacks=[watch], accumulate_grad_batches=2, max_steps=1).fit(module, loaders()[0])
    optimizer = sgd(twin.parameters())
    for batch in watch.batches:
        views = [batch.data[0], batch.views[0][0]]
        ours = [twin(x) for x in views]
        hard = sum(F.cross_entropy(logits, batch.data[1]) for logits in ours)
        ((0.1 * hard + 0.9 * MLKD()(ours, [teacher(x).detach() for x in views])) / 2).backward()
    optimizer.step()
    for mine, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_our_data_modules_give_what_a_fit_asks_for(trainer: Any) -> None:
    from kdlightning import ConvNet

    data = Digits(batch_size=32, train_limit=64, pin_memory=False)
    counts = []
    for response in (KD(), MLKD(), KD()):
        watch = Watch()
        module = OfflineDistillation(
            ConvNet(10, widths=(4,)), ConvNet(10, widths=(5,)), task=Classification(10), response=response
        )
        trainer(callbacks=[watch]).fit(module, datamodule=data)
        counts.append([len(batch.views) for batch in watch.batches])
        assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in watch.rows)
    assert counts == [[0, 0], [1, 1], [0, 0]]


def test_mixed_batches_have_views(trainer: Any) -> None:
    from kdlightning import ConvNet

    data = Digits(batch_size=32, train_limit=64, pin_memory=False, mixup=0.5)
    watch = Watch()
    module = OfflineDistillation(ConvNet(10, widths=(4,)), ConvNet(10), task=Classification(10), response=MLKD())
    trainer(callbacks=[watch]).fit(module, datamodule=data)
    first = watch.batches[0]
    assert torch.equal(first.data[1], first.views[0][1])
    assert first.data[1].is_floating_point()
    assert watch.rows[-1]["train/loss"] > 0


def test_a_stock_loader_of_views_will_do(samples: Any, net: Any, trainer: Any) -> None:
    loader = DataLoader(IndexedViews(Noisy(samples), views=2), 8, collate_fn=indexed_collate())
    watch = Watch()
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), response=MLKD())
    trainer(callbacks=[watch]).fit(module, loader)
    assert "train/loss_mlkd" in watch.rows[0]


class Three(ResponseLoss):
    """Reads whole answers to three views."""

    reads = "output"
    views = 3

    def forward(self, student: Any, teacher: Any, *, batch: Any, progress: float) -> Tensor:
        pairs = zip(student, teacher, strict=True)
        return sum(F.mse_loss(ours.logits, theirs.logits) for ours, theirs in pairs) / len(student)


def test_a_loss_of_ones_own_may_read_more_views_and_whole_outputs(
    dense: Any, loaders: Any, sgd: Any, trainer: Any
) -> None:
    student, teacher, twin, watch = dense(0), dense(1), dense(0), Watch()
    module = OfflineDistillation(student, teacher, task=Classification(5), response=Three(), optimizer=sgd)
    trainer(callbacks=[watch], max_steps=1).fit(module, loaders(views=4)[0])
    batch = watch.batches[0]
    views = [batch.data[0], *(view[0] for view in batch.views[:2])]
    expected = sum(F.mse_loss(twin(x), teacher(x)) for x in views) / 3
    assert watch.rows[0]["train/loss_three"] == pytest.approx(float(expected.detach()), rel=1e-5)
    hard = sum(F.cross_entropy(twin(x), batch.data[1]) for x in views) / 3
    assert watch.rows[0]["train/loss_task"] == pytest.approx(float(hard.detach()), rel=1e-5)


def test_loaders_without_views_are_refused_with_the_way_out(samples: Any, net: Any, loader: Any, trainer: Any) -> None:
    sentence = (
        r"MLKD reads 2 views of each sample, and this loader gives 1: give "
        r"kdlightning\.resumable\(kdlightning\.IndexedViews\(data, views=2\)\)"
    )
    for source in (loader(), resumable(samples, batch_size=8)):
        module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), response=MLKD())
        with pytest.raises(ConfigurationError, match=sentence):
            trainer().fit(module, source)
    import kdlightning

    data = samples
    source = kdlightning.resumable(kdlightning.IndexedViews(data, views=2))
    trainer().fit(module, source)


def test_modes_that_run_one_view_refuse_it(
    net: Any, loaders: Any, trainer: Any, language_model: Any, texts: Any
) -> None:
    online = OnlineDistillation(net(4, 0), [net(5, 1)], task=Classification(5))
    online.response = MLKD()
    with pytest.raises(ConfigurationError, match="MLKD reads 2 views of each sample, and OnlineDistillation runs one"):
        trainer().fit(online, loaders()[0])

    class Double(GKD):
        views = 2

    policy = OnPolicyDistillation(language_model(0), language_model(1), task=CausalLM(), objective=Double())
    with pytest.raises(ConfigurationError, match="Double reads 2 views .* OnPolicyDistillation runs one: use Offline"):
        trainer().fit(policy, DataLoader(texts(), 4))
    with pytest.raises(ConfigurationError, match="MLKD compares one answer a sample"):
        OfflineDistillation(language_model(0), language_model(1), task=CausalLM(), response=MLKD())


def test_a_task_with_an_answer_for_each_pixel_refuses_it(net: Any) -> None:
    class Pixels(Classification):
        dense = True

    with pytest.raises(
        ConfigurationError, match="MLKD compares whole samples, and Pixels has an answer for each pixel"
    ):
        OfflineDistillation(net(4, 0), net(6, 1), task=Pixels(5), response=MLKD())


def test_the_teachers_own_inputs_have_one_view(net: Any, loaders: Any, trainer: Any) -> None:
    class Own(Classification):
        def batch(self, raw: Any) -> Batch:
            batch = super().batch(raw)
            batch.teacher_inputs = batch.inputs
            return batch

    module = OfflineDistillation(net(4, 0), net(6, 1), task=Own(5), response=MLKD())
    with pytest.raises(
        ConfigurationError, match="the teacher's own inputs have one: let the teacher read the student's"
    ):
        trainer().fit(module, loaders()[0])


def test_networks_of_other_classes_are_named(net: Any, loaders: Any, trainer: Any) -> None:
    from kdlightning import ConvNet

    module = OfflineDistillation(net(4, 0), ConvNet(7), task=Classification(5), response=MLKD())
    with pytest.raises(ConfigurationError, match="the class counts differ"):
        trainer().fit(module, loaders()[0])


def test_joined_views_of_nested_inputs() -> None:
    x = torch.arange(6).view(3, 2)
    batch = Batch(
        {"a": x, "b": (x, [x + 1]), "c": "same"},
        target=torch.tensor([1, 2, 3]),
        mask=torch.ones(3, 2),
        index=torch.tensor([7, 8, 9]),
        views=({"a": x + 10, "b": (x + 10, [x + 11]), "c": "same"}, {"a": x, "b": (x, [x]), "c": "same"}),
        size=3,
    )
    joined = join([batch, replace(batch, inputs=batch.views[0])])
    assert torch.equal(joined.inputs["a"], torch.cat([x, x + 10]))
    assert torch.equal(joined.inputs["b"][1][0], torch.cat([x + 1, x + 11]))
    assert joined.inputs["c"] == "same"
    assert joined.target.tolist() == [1, 2, 3] * 2
    assert joined.index.tolist() == [7, 8, 9] * 2
    assert joined.mask is not None
    assert joined.mask.shape == (6, 2)
    assert (joined.view, joined.views, joined.size) == (None, (), 6)


def test_an_answer_splits_into_those_of_its_views() -> None:
    calls = []

    def compute() -> Tensor:
        calls.append(1)
        return torch.arange(8.0).view(4, 2)

    first, second = ModelOutput(compute, taps={"x": torch.arange(4)}, exits=[torch.arange(4)]).split([2, 2])
    assert calls == []
    assert first.has_logits
    assert torch.equal(first.logits, torch.tensor([[0.0, 1], [2, 3]]))
    assert torch.equal(second.logits, torch.tensor([[4.0, 5], [6, 7]]))
    assert calls == [1]
    assert second.taps["x"].tolist() == second.exits[0].tolist() == [2, 3]
    hidden, head = torch.randn(4, 3, 5), Head(torch.randn(7, 5))
    _, last = ModelOutput(hidden=hidden, head=head).split([2, 2])
    assert last.hidden is not None
    assert torch.equal(last.hidden, hidden[2:])
    assert torch.allclose(last.logits, head(hidden)[2:], atol=1e-6)
    assert not ModelOutput().split([2, 2])[0].has_logits


def test_curriculum_temperature_learns_and_resumes(
    net: Any, samples: Any, trainer: Any, tmp_path: Path, same_state: Any, sgd: Any
) -> None:
    def fit(epochs: int, folder: str, resume: str | None = None) -> OfflineDistillation:
        torch.manual_seed(0)
        module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), response=CTKD(), optimizer=sgd)
        module._seed = 11
        kept = LatestCheckpoint(dirpath=str(tmp_path / folder))
        runner = trainer(max_epochs=4, callbacks=[kept, Stop(epochs)])
        runner.fit(module, resumable(samples, batch_size=8, seed=3), ckpt_path=resume)
        return module

    class Stop(L.Callback):
        def __init__(self, epochs: int) -> None:
            self.epochs = epochs

        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.current_epoch + 1 >= self.epochs

    whole = fit(4, "whole")
    theta = whole.response.theta
    assert theta.requires_grad
    assert float(theta.detach()) != 1.0
    saved = torch.load(tmp_path / "whole/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["response.theta"], theta.detach())
    fit(2, "cut")
    resumed = fit(4, "cut", str(tmp_path / "cut/last.ckpt"))
    same_state(whole, resumed)
