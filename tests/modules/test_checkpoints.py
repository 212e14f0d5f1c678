"""Checkpoints hold plain data and the learners; students come out of them without anybody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdlightning import (
    AT,
    BestCheckpoint,
    Classification,
    ConfigurationError,
    DistillModule,
    FeatureKD,
    FitNet,
    FrozenTeacher,
    LatestCheckpoint,
    LinearSchedule,
    MeanTeacher,
    NonFiniteLossError,
    OfflineDistillation,
    OnlineDistillation,
    SelfDistillation,
    load_student,
)

HINT = {"stages.0": "stages.0"}


@pytest.fixture
def trained(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> Any:
    def make(module: Any, *callbacks: Any, **options: Any) -> Path:
        latest = LatestCheckpoint(dirpath=str(tmp_path))
        trainer(callbacks=[*callbacks, latest], **options).fit(module, loader())
        return tmp_path / "last.ckpt"

    return make


def test_checkpoint_is_plain_and_has_no_teacher(net: Any, trained: Any) -> None:
    module = OfflineDistillation(
        net(4, 0), net(6, 1), task=Classification(5), weights={"kd": LinearSchedule(0, 1, until=0.5)}
    )
    checkpoint = torch.load(trained(module, FeatureKD(FitNet(), HINT)), weights_only=True)
    tops = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert tops == {"student", "adapters"}
    assert sum(v.numel() for k, v in checkpoint["state_dict"].items() if k.startswith("student.")) == sum(
        v.numel() for v in module.student.state_dict().values()
    )


def test_optimizer_has_student_and_adapters_and_no_teacher(net: Any, loader: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    runner = trainer(callbacks=[FeatureKD(FitNet(), HINT)])
    runner.fit(module, loader())
    given = [id(p) for group in runner.optimizers[0].param_groups for p in group["params"]]
    expected = [id(p) for part in (module.student, module.adapters) for p in part.parameters()]
    assert sorted(given) == sorted(expected)
    assert len(list(module.adapters.parameters())) > 0


def test_loads_without_callbacks_and_goes_on(
    net: Any, loader: Any, trainer: Any, trained: Any, same_state: Any
) -> None:
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    path = trained(module, FeatureKD(FitNet(), HINT), FeatureKD(AT(), HINT))
    loaded = OfflineDistillation.load_from_checkpoint(
        path, student=net(4, 7), teacher=net(6, 1), task=Classification(5), weights_only=True
    )
    same_state(loaded.student, module.student)
    trainer().validate(loaded, loader(), verbose=False)
    without = OfflineDistillation.load_from_checkpoint(path, student=net(4, 7), task=Classification(5))
    assert without.teacher is None
    same_state(without.student, module.student)
    trainer().fit(loaded, loader())  # a new run, not a resumed one: nothing is missing


def test_other_keys_are_strict(net: Any, trained: Any) -> None:
    path = trained(OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5)), FeatureKD(FitNet(), HINT))
    with pytest.raises(RuntimeError, match="size mismatch"):
        OfflineDistillation.load_from_checkpoint(path, student=net(5, 0), task=Classification(5))
    with pytest.raises(RuntimeError, match="student"):
        OfflineDistillation.load_from_checkpoint(path, student=nn.Linear(3, 3), task=Classification(5))


def test_subclass_with_options_of_its_own_is_saved_as_plain_data(net: Any, trained: Any) -> None:
    class Mine(OfflineDistillation):
        def __init__(self, *args: Any, measure: Any, margin: float = 0.5, **options: Any) -> None:
            super().__init__(*args, **options)
            self.measure = measure
            self.margin = margin

        def distill_terms(self, step: Any) -> Any:
            return {"mine": self.measure(step.student.logits).relu().mean() * self.margin}

    path = trained(Mine(net(4, 0), net(6, 1), task=Classification(5), measure=torch.abs, margin=0.25))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["margin"] == 0.25
    loaded = Mine.load_from_checkpoint(
        path, student=net(4, 3), teacher=net(6, 1), task=Classification(5), measure=torch.abs, weights_only=True
    )
    assert loaded.margin == 0.25


def test_mean_teachers_average_is_in_the_checkpoint(net: Any, trained: Any, same_state: Any) -> None:
    module = SelfDistillation(net(4, 0), MeanTeacher(0.5), task=Classification(5))
    path = trained(module)
    loaded = SelfDistillation.load_from_checkpoint(
        path, student=net(4, 9), teacher=MeanTeacher(0.5), task=Classification(5), weights_only=True
    )
    same_state(loaded.teacher.average, module.teacher.average)
    alone = SelfDistillation.load_from_checkpoint(path, student=net(4, 9), task=Classification(5))
    same_state(alone.student, module.student)


def test_load_student_of_a_python_run(net: Any, trained: Any, same_state: Any) -> None:
    module = OnlineDistillation(net(4, 0), [net(5, 1), net(6, 2)], task=Classification(5))
    path = trained(module, FeatureKD(FitNet(), HINT))
    same_state(load_student(path, net(4, 9)), module.student)
    same_state(load_student(path, net(6, 9), which="peer2"), module.peers[1])
    assert not load_student(path, net(4, 9)).training
    for which, message in (("peer3", "its networks are student, peer1, peer2"), ("teacher", "which must be")):
        with pytest.raises(ConfigurationError, match=message):
            load_student(path, net(4, 9), which=which)
    with pytest.raises(ConfigurationError, match="pass|student=the_network"):
        load_student(path)


def test_load_student_with_another_network_says_what_differs(net: Any, trained: Any) -> None:
    path = trained(DistillModule(net(4, 0), task=Classification(5)))
    with pytest.raises(ConfigurationError, match="shape"):
        load_student(path, net(5, 0))


def test_load_student_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no checkpoint at"):
        load_student(tmp_path / "none.ckpt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="no state_dict"):
        load_student(tmp_path / "other.ckpt")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="holds no student"):
        load_student(tmp_path / "other.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigurationError, match="broken.ckpt"):
        load_student(tmp_path / "broken.ckpt")


YAML = """
trainer:
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 2
  logger: false
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: kdlightning.callbacks.LatestCheckpoint
      init_args: {{dirpath: {folder}}}
    - class_path: kdlightning.callbacks.FeatureKD
      init_args:
        loss: {{class_path: kdlightning.losses.FitNet}}
        pairs: {{stages.0: stages.0}}
        weight: {{class_path: kdlightning.LinearSchedule, init_args: {{start: 1, end: 2}}}}
model:
  class_path: {mode}
  init_args:
    student: {{class_path: kdlightning.models.ConvNet, init_args: {{num_classes: 10, widths: [4, 8]}}}}
    {other}
    task: {{class_path: kdlightning.tasks.Classification, init_args: {{num_classes: 10}}}}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.1}}}}
    weights:
      task: {{class_path: kdlightning.LinearSchedule, init_args: {{start: 1, end: 2}}}}
data:
  class_path: kdlightning.data.Digits
  init_args: {{batch_size: 16}}
"""

NETWORK = "{class_path: kdlightning.models.ConvNet, init_args: {num_classes: 10, widths: [6, 8]}}"


@pytest.mark.parametrize(
    ("mode", "other"),
    [
        ("kdlightning.OfflineDistillation", f"teacher: {NETWORK}"),
        ("kdlightning.OnlineDistillation", f"peers: [{NETWORK}]"),
        ("kdlightning.SelfDistillation", "teacher: {class_path: kdlightning.teachers.MeanTeacher}"),
    ],
)
def test_checkpoint_of_a_yaml_run_says_how_to_build_its_student(
    mode: str, other: str, tmp_path: Path, same_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning as L
    from lightning.pytorch.cli import LightningCLI

    import kdlightning

    monkeypatch.setattr("sys.argv", ["kdlightning"])
    config = tmp_path / "config.yaml"
    config.write_text(YAML.format(folder=tmp_path, mode=mode, other=other))
    cli = LightningCLI(
        DistillModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        seed_everything_default=1,
        args=["fit", "-c", str(config)],
    )
    path = tmp_path / "last.ckpt"
    torch.load(path, weights_only=True)
    same_state(load_student(path), cli.model.student)
    if "peers" in other:
        same_state(load_student(path, which="peer1"), cli.model.peers[0])
    concrete = getattr(kdlightning, mode.rsplit(".", 1)[1])
    loaded = concrete.load_from_checkpoint(path, weights_only=True)
    same_state(loaded.student, cli.model.student)
    assert cli.model.teacher is None or not isinstance(cli.model.teacher, FrozenTeacher) or loaded.teacher is not None


# -- runs that stop being finite -----------------------------------------------------------------------------------


class Exploding(OfflineDistillation):
    """Its own term is NaN from step `at` on."""

    at = 2

    def distill_terms(self, step: Any) -> Any:
        value = step.student.logits.square().mean()
        return {"mine": value * float("nan") if self.global_step >= self.at else value}


def test_a_term_that_is_not_finite_stops_the_run(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    module = Exploding(net(4, 0), net(6, 1), task=Classification(5))
    runner = trainer(callbacks=[LatestCheckpoint(1, dirpath=str(tmp_path))], max_epochs=2, log_every_n_steps=1)
    with pytest.raises(NonFiniteLossError, match=rf"'mine'.* step 2 .*{tmp_path}/last.ckpt"):
        runner.fit(module, loader())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values() if v.is_floating_point())


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_the_steps_between_two_looks_are_named(log_every: int, net: Any, loader: Any, trainer: Any) -> None:
    module = Exploding(net(4, 0), net(6, 1), task=Classification(5))
    with pytest.raises(NonFiniteLossError, match=r"'mine' became NaN or infinite at step 2 .*no finite checkpoint"):
        trainer(max_epochs=2, log_every_n_steps=log_every).fit(module, loader())


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    net: Any, loader: Any, trainer: Any, tmp_path: Path
) -> None:
    """The loss is finite and its gradient is not, as of a square root at zero."""

    class Steep(OfflineDistillation):
        def distill_terms(self, step: Any) -> Any:
            return {"mine": (step.student.logits * float(self.global_step < 2)).square().sum().sqrt()}

    module = Steep(net(4, 0), net(6, 1), task=Classification(5))
    runner = trainer(callbacks=[LatestCheckpoint(1, dirpath=str(tmp_path))])
    with pytest.raises(NonFiniteLossError, match="by step 3 while the loss was finite.*last.ckpt"):
        runner.fit(module, loader())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in checkpoint["state_dict"].values() if v.is_floating_point())


def test_infinite_buffers_are_nobodys_fault(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    """Attention masks are often kept as buffers of minus infinity."""
    student = net(4, 0)
    student.register_buffer("causal", torch.full((2, 2), float("-inf")))
    module = Exploding(student, net(6, 1), task=Classification(5))
    with pytest.raises(NonFiniteLossError, match="last.ckpt"):
        trainer(callbacks=[LatestCheckpoint(1, dirpath=str(tmp_path))]).fit(module, loader())


# -- the two checkpoints -------------------------------------------------------------------------------------------


def test_best_is_chosen_by_the_tasks_monitor(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    import lightning as L

    scores: list[float] = []

    class Read(L.Callback):
        def on_validation_end(self, trainer: Any, _: Any) -> None:
            if not trainer.sanity_checking:
                scores.append(float(trainer.callback_metrics["val/acc"]))

    module = OfflineDistillation(
        net(4, 0), net(6, 1), task=Classification(5), optimizer=lambda p: torch.optim.SGD(p, lr=0.3)
    )
    best, latest = BestCheckpoint(dirpath=str(tmp_path)), LatestCheckpoint(dirpath=str(tmp_path))
    trainer(max_epochs=5, callbacks=[best, latest, Read()]).fit(module, loader(), loader())
    assert float(best.best_model_score) == pytest.approx(max(scores))
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == scores.index(max(scores))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 4


def test_run_without_validation_data_keeps_its_latest(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    callbacks = [BestCheckpoint(dirpath=str(tmp_path)), LatestCheckpoint(dirpath=str(tmp_path))]
    trainer(max_epochs=2, callbacks=callbacks).fit(DistillModule(net(4, 0), task=Classification(5)), loader())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_development_run_writes_nothing(net: Any, loader: Any, trainer: Any, tmp_path: Path) -> None:
    callbacks = [BestCheckpoint(dirpath=str(tmp_path)), LatestCheckpoint(1, dirpath=str(tmp_path))]
    trainer(callbacks=callbacks, fast_dev_run=True).fit(
        OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5)), loader(), loader()
    )
    assert not list(tmp_path.glob("*.ckpt"))
