"""Offline distillation: the loss is the sum of its weighted terms, and nothing else learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlightning import (
    AT,
    DKD,
    KD,
    RKD,
    SP,
    CausalLM,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    ForwardKL,
    FrozenTeacher,
    LinearSchedule,
    OfflineDistillation,
    Regression,
    RelationKD,
)


def hand_kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
    p = (teacher / temperature).softmax(1)
    return (p * (p.log() - (student / temperature).log_softmax(1))).sum(1).mean() * temperature**2


def hand_loop(student: nn.Module, teacher: nn.Module, batches: Any, loss: Any, epochs: int = 1) -> list[float]:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    values = []
    for _ in range(epochs):
        for x, y in batches:
            with torch.no_grad():
                target = teacher.eval()(x)
            value = loss(student(x), target, y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(float(value.detach()))
    return values


class Losses:
    """Reads `train/…` after each step."""

    def __new__(cls) -> Any:
        import lightning as L

        class Reader(L.Callback):
            def __init__(self) -> None:
                self.rows: list[dict[str, float]] = []

            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})

        return Reader()


def test_default_is_a_tenth_of_labels_and_nine_tenths_of_kd(
    net: Any, loader: Any, sgd: Any, trainer: Any, same_state: Any
) -> None:
    teacher = net(6, 1)
    ours, theirs = net(4, 0), net(4, 0)
    reader = Losses()
    module = OfflineDistillation(ours, teacher=copy.deepcopy(teacher), task=Classification(5), optimizer=sgd)
    trainer(max_epochs=2, callbacks=[reader]).fit(module, loader())

    hand = hand_loop(
        theirs, teacher, loader(), lambda s, t, y: 0.1 * F.cross_entropy(s, y) + 0.9 * hand_kd(s, t), epochs=2
    )
    assert [row["train/loss"] for row in reader.rows] == pytest.approx(hand, abs=1e-5)
    assert set(reader.rows[0]) == {"train/loss", "train/loss_task", "train/loss_kd"}
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    same_state(module.teacher.network, teacher)


def test_design_snippet_adds_a_term_of_weight_one(net: Any, loader: Any, trainer: Any) -> None:
    import lightning as L

    student, teacher = net(4, 0), net(6, 1)
    train_loader, val_loader = loader(), loader()

    # -- as printed in the documentation
    import torch.nn.functional as F

    from kdlightning import Classification, OfflineDistillation

    class MyDistillation(OfflineDistillation):
        def distill_terms(self, step):  # type: ignore[no-untyped-def]
            return {"mine": F.mse_loss(step.student.logits, step.teacher.logits)}

    module = MyDistillation(student, teacher=teacher, task=Classification(5))
    # --
    reader = Losses()
    runner = trainer(max_epochs=3, callbacks=[reader])
    assert isinstance(runner, L.Trainer)
    runner.fit(module, train_loader, val_loader)
    for row in reader.rows:
        total = 0.1 * row["train/loss_task"] + 0.9 * row["train/loss_kd"] + row["train/loss_mine"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
    assert {"val/acc", "val/teacher_acc", "val/agreement", "val/kl", "val/loss"} <= set(runner.callback_metrics)


def test_dkd_has_its_own_default_weights(net: Any, loader: Any, trainer: Any) -> None:
    reader = Losses()
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5), response=DKD())
    trainer(callbacks=[reader]).fit(module, loader())
    row = reader.rows[0]
    assert row["train/loss"] == pytest.approx(row["train/loss_task"] + row["train/loss_dkd"], rel=1e-6)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: FeatureKD(FitNet(), {"stages.1": "stages.1"}, weight=3.0, name="extra"),
        lambda: FeatureKD(AT(), {"stages.0": "stages.0", "stages.1": "stages.1"}, weight=3.0, name="extra"),
        lambda: RelationKD(RKD(), {"pre_logits": "pre_logits"}, weight=3.0, name="extra"),
        lambda: RelationKD(SP(), {"stages.1": "stages.1"}, weight=3.0, name="extra"),
    ],
)
def test_callback_term_is_added_with_its_weight(callback: Any, net: Any, loader: Any, trainer: Any) -> None:
    reader = Losses()
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5))
    trainer(callbacks=[callback(), reader]).fit(module, loader())
    for row in reader.rows:
        total = 0.1 * row["train/loss_task"] + 0.9 * row["train/loss_kd"] + 3.0 * row["train/loss_extra"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
        assert row["train/loss_extra"] > 0


def test_fitnet_run_equals_a_loop_by_hand(net: Any, loader: Any, trainer: Any, sgd: Any) -> None:
    """The same hint by hand: hooks on both networks and the regressor that the callback has built."""
    student, teacher = net(4, 0), net(6, 1)
    twin = copy.deepcopy(student)
    callback = FeatureKD(FitNet(), {"stages.1": "stages.0"}, weight=2.0)
    module = OfflineDistillation(student, teacher=copy.deepcopy(teacher), task=Classification(5), optimizer=sgd)
    taken: list[nn.Module] = []

    import lightning as L

    class TakeRegressor(L.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            taken.append(copy.deepcopy(pl_module.adapters["fit_net"]["teacher"].adapters[0]))

    trainer(max_epochs=2, callbacks=[callback, TakeRegressor()]).fit(module, loader())

    regressor = taken[0]
    optimizer = torch.optim.SGD([*twin.parameters(), *regressor.parameters()], lr=0.05, momentum=0.9)
    seen: dict[str, torch.Tensor] = {}
    twin.stages[1].register_forward_hook(lambda m, i, o: seen.update(s=o))
    teacher.stages[0].register_forward_hook(lambda m, i, o: seen.update(t=o))
    teacher.eval()
    for _ in range(2):
        for x, y in loader():
            logits = twin(x)
            with torch.no_grad():
                target = teacher(x)
            loss = 0.1 * F.cross_entropy(logits, y) + 0.9 * hand_kd(logits, target)
            loss = loss + 2.0 * F.mse_loss(regressor(seen["s"]), seen["t"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize("unit", ["progress", "epochs"])
def test_schedule_moves_a_weight(unit: str, net: Any, loader: Any, trainer: Any) -> None:
    until = 1.0 if unit == "progress" else 2.0
    module = OfflineDistillation(
        net(4, 0),
        teacher=net(6, 1),
        task=Classification(5),
        weights={"kd": LinearSchedule(0, 1, until=until, unit=unit), "task": 1.0},  # type: ignore[arg-type]
    )
    reader = Losses()
    trainer(max_epochs=2, callbacks=[reader]).fit(module, loader())
    assert "train/loss_kd" not in reader.rows[0]  # weight zero in the first step: not computed
    for done, row in enumerate(reader.rows[1:], start=1):
        assert row["train/loss"] == pytest.approx(row["train/loss_task"] + done / 8 * row["train/loss_kd"], rel=1e-5)


def test_term_of_weight_zero_is_left_out(net: Any, loader: Any, trainer: Any, same_state: Any) -> None:
    runs = []
    for callbacks in ([], [FeatureKD(AT(), {"stages.0": "stages.0"}, weight=0.0)]):
        module = OfflineDistillation(
            net(4, 0), teacher=net(6, 1), task=Classification(5), weights={"kd": 0.0, "task": 1.0}
        )
        trainer(callbacks=callbacks).fit(module, loader())
        runs.append(module.student)
    same_state(*runs)


def test_all_weights_zero_is_refused(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5), weights={"kd": 0, "task": 0})
    with pytest.raises(ConfigurationError, match="every weight is zero"):
        trainer().fit(module, loader())


def test_unknown_weight_names_the_nearest(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5), weights={"kdd": 1.0})
    with pytest.raises(ConfigurationError, match="no term is named 'kdd'; did you mean kd"):
        trainer().fit(module, loader())


def test_unknown_weight_is_found_with_own_terms_too(net: Any, loader: Any, trainer: Any) -> None:
    class Mine(OfflineDistillation):
        def distill_terms(self, step: Any) -> Any:
            return {"mine": step.student.logits.square().mean()}

    module = Mine(net(4, 0), teacher=net(6, 1), task=Classification(5), weights={"mime": 1.0})
    with pytest.raises(ConfigurationError, match="no term is named 'mime'; did you mean mine"):
        trainer().fit(module, loader())


def test_weight_set_twice_is_refused(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5), weights={"fit_net": 1.0})
    callback = FeatureKD(FitNet(), {"stages.0": "stages.0"}, weight=2.0)
    with pytest.raises(ConfigurationError, match="'fit_net' is set twice"):
        trainer(callbacks=[callback]).fit(module, loader())


def test_weights_may_name_a_callbacks_term(net: Any, loader: Any, trainer: Any) -> None:
    reader = Losses()
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5), weights={"fit_net": 5.0})
    trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"}), reader]).fit(module, loader())
    row = reader.rows[0]
    total = 0.1 * row["train/loss_task"] + 0.9 * row["train/loss_kd"] + 5 * row["train/loss_fit_net"]
    assert row["train/loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["kd", "task", "loss"])
def test_own_term_may_not_take_a_name_that_is_taken(name: str, net: Any, loader: Any, trainer: Any) -> None:
    class Mine(OfflineDistillation):
        def distill_terms(self, step: Any) -> Any:
            return {name: step.student.logits.square().mean()}

    with pytest.raises(ConfigurationError, match=f"'{name}'"):
        trainer().fit(Mine(net(4, 0), teacher=net(6, 1), task=Classification(5)), loader())


@pytest.mark.parametrize("value", [lambda s: s.logits.square(), lambda s: 1.0])
def test_own_term_must_be_a_scalar_tensor(value: Any, net: Any, loader: Any, trainer: Any) -> None:
    class Mine(OfflineDistillation):
        def distill_terms(self, step: Any) -> Any:
            return {"mine": value(step.student)}

    with pytest.raises(ConfigurationError, match="'mine'.*scalar"):
        trainer().fit(Mine(net(4, 0), teacher=net(6, 1), task=Classification(5)), loader())


def test_own_terms_networks_learn(net: Any, loader: Any, trainer: Any) -> None:
    class Mine(OfflineDistillation):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.bridge = nn.Linear(5, 5)

        def distill_terms(self, step: Any) -> Any:
            return {"mine": F.mse_loss(self.bridge(step.student.logits), step.teacher.logits)}

    module = Mine(net(4, 0), teacher=net(6, 1), task=Classification(5), response=None)
    before = module.bridge.weight.detach().clone()
    trainer().fit(module, loader())
    assert not torch.equal(before, module.bridge.weight)


def test_class_counts_that_differ_are_named(net: Any, loader: Any, trainer: Any) -> None:
    from kdlightning import ConvNet

    module = OfflineDistillation(net(4, 0), teacher=ConvNet(7), task=Classification(5))
    with pytest.raises(ConfigurationError, match="class counts differ"):
        trainer().fit(module, loader())
    with pytest.raises(ConfigurationError, match="num_classes=7"):
        trainer().fit(OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(7)), loader())


def test_teacher_and_student_must_be_two(net: Any) -> None:
    student = net(4, 0)
    with pytest.raises(ConfigurationError, match="same object"):
        OfflineDistillation(student, teacher=student, task=Classification(5))
    with pytest.raises(ConfigurationError, match="same object"):
        OfflineDistillation(student, teacher=FrozenTeacher(student), task=Classification(5))


def test_fit_without_teacher_is_refused(net: Any, loader: Any, trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match="teacher is None"):
        trainer().fit(OfflineDistillation(net(4, 0), task=Classification(5)), loader())


def test_class_probabilities_are_not_made_of_numbers(loader: Any) -> None:
    """The softmax of a regression's single output is 1 whatever it says: KD would silently teach nothing."""
    for options in ({}, {"response": KD()}):
        with pytest.raises(ConfigurationError, match="Regression"):
            OfflineDistillation(nn.Linear(4, 1), teacher=nn.Linear(4, 1), task=Regression(), **options)
    OfflineDistillation(nn.Linear(4, 1), teacher=nn.Linear(4, 1), task=Regression(), response=None)


def test_module_fits_again_after_a_failure(net: Any, loader: Any, trainer: Any) -> None:
    class Failing(OfflineDistillation):
        fails = True

        def distill_terms(self, step: Any) -> Any:
            if self.fails:
                raise RuntimeError("on purpose")
            return {}

    module = Failing(net(4, 0), teacher=net(6, 1), task=Classification(5))
    callback = FeatureKD(FitNet(), {"stages.0": "stages.0"})
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(callbacks=[callback]).fit(module, loader())
    module.fails = False
    trainer(callbacks=[callback]).fit(module, loader())
    assert len(module.adapters) == 1
    trainer().fit(module, loader())  # and without the callback


def test_forward_is_the_student(net: Any) -> None:
    student = net(4, 0).eval()
    module = OfflineDistillation(student, teacher=net(6, 1), task=Classification(5))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(module(x), student(x))


def test_soft_targets_train_and_are_refused_by_name(net: Any, samples: Any, trainer: Any) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    x, y = samples.tensors
    soft = DataLoader(TensorDataset(x, F.one_hot(y, 5).float() * 0.9 + 0.02), 8)
    trainer().fit(OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5)), soft, soft)
    with pytest.raises(ValueError, match="DKD needs hard labels"):
        trainer().fit(OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5), response=DKD()), soft)


def test_bfloat16_mixed_precision_runs(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), teacher=net(6, 1), task=Classification(5))
    runner = trainer(precision="bf16-mixed", callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})])
    runner.fit(module, loader(), loader())
    assert torch.isfinite(runner.callback_metrics["train/loss"])
    assert all(p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize(
    ("response", "task", "message"),
    [
        (ForwardKL(), Classification(5), "sums over tokens, and Classification has none"),
        (KD(), CausalLM(), "one answer a sample, and CausalLM has many: give ForwardKL"),
    ],
)
def test_a_response_of_another_task_is_refused(response: Any, task: Any, message: str, net: Any) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OfflineDistillation(net(4, 0), net(6, 1), task=task, response=response)


def test_teacher_and_student_may_not_share_parameters(net: Any) -> None:
    student, teacher = net(4, 0), net(4, 1)
    teacher.stages[0] = student.stages[0]
    with pytest.raises(ConfigurationError, match=r"share 3 parameters, 'stages.0.0.weight' among them"):
        OfflineDistillation(student, teacher, task=Classification(5))
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_second_fit_drops_the_adapters_of_the_first(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    trainer(callbacks=[FeatureKD(FitNet(), {"stages.0": "stages.0"})]).fit(module, loader())
    assert list(module.adapters) == ["fit_net"]
    trainer(callbacks=[FeatureKD(FitNet(), {"stages.1": "stages.1"}, name="other")]).fit(module, loader())
    assert list(module.adapters) == ["other"]
    trainer().fit(module, loader())
    assert list(module.adapters) == []


def test_several_validation_loaders_are_refused(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="2 validation loaders"):
        trainer().fit(module, loader(), [loader(), loader()])
    with pytest.raises(ConfigurationError, match="2 test loaders"):
        trainer().test(module, [loader(), loader()])


def test_numpy_numbers_are_kept_out_of_checkpoints(net: Any, loader: Any, trainer: Any, tmp_path: Any) -> None:
    import numpy

    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5), weights={"kd": numpy.float64(0.5)})
    runner = trainer()
    runner.fit(module, loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 4


def test_the_last_step_of_a_validation_knows_where_the_run_is(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    module.keep_last_step = True
    trainer(max_epochs=2).fit(module, loader(), loader())
    assert module.last_step is not None
    assert (module.last_step.stage, module.last_step.progress, module.last_step.epoch) == ("val", 1.0, 2.0)


def test_one_number_may_come_in_two_shapes(samples: Any, trainer: Any) -> None:
    from torch.utils.data import DataLoader

    numbers = [(x, y.float()) for x, y in samples]
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    module = OfflineDistillation(student, teacher, task=Regression(), response=None)
    found = trainer().validate(module, DataLoader(numbers, 8), verbose=False)[0]
    assert found["val/mse_to_teacher"] > 0


def test_a_self_teacher_is_refused(net: Any) -> None:
    from kdlightning import TeacherFree

    with pytest.raises(ConfigurationError, match="TeacherFree makes a teacher of the student: use SelfDistillation"):
        OfflineDistillation(net(4, 0), TeacherFree(), task=Classification(5))
