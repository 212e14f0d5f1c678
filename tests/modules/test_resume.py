"""A run that is broken off anywhere and resumed ends bit for bit where the undisturbed one ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import (
    AT,
    GKD,
    PSKD,
    RKD,
    BestCheckpoint,
    CausalLM,
    Classification,
    ConfigurationError,
    DistillModule,
    FeatureKD,
    FitNet,
    LatestCheckpoint,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    OnPolicyDistillation,
    RelationKD,
    SelfDistillation,
    StudentSampler,
)
from kdlightning.data.loader import ResumableLoader


class Broken(Exception):
    """On purpose."""


class Noisy(torch.utils.data.Dataset):
    """Augmented samples: the noise is drawn from torch's generator."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Any:
        x, y = self.samples[number]
        return x + 0.3 * torch.randn(x.shape), y


@pytest.fixture
def setting(net: Any, samples: Any, language_model: Any, texts: Any, sgd: Any) -> Any:
    """The module, the callbacks and the data of a mode, as a fresh process would make them."""

    def make(mode: str) -> tuple[DistillModule, list[Any], Any]:
        task = Classification(5)
        hint = {"stages.0": "stages.0"}
        optimizer = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
        if mode == "offline":
            module: DistillModule = OfflineDistillation(net(4, 0, dropout=0.3), net(6, 1), task=task, **optimizer)
            return module, [FeatureKD(FitNet(), hint)], Noisy(samples)
        if mode == "online":
            module = OnlineDistillation(net(4, 0, dropout=0.3), [net(5, 1), net(6, 2)], task=task, **optimizer)
            return module, [FeatureKD(FitNet(), hint)], Noisy(samples)
        if mode == "pskd":
            return SelfDistillation(net(4, 0, dropout=0.3), PSKD(), task=task, **optimizer), [], Noisy(samples)
        if mode == "mean_teacher":
            module = SelfDistillation(net(4, 0, dropout=0.3), MeanTeacher(0.6), task=task, **optimizer)
            return module, [FeatureKD(AT(), hint)], Noisy(samples)
        if mode == "on_policy":
            module = OnPolicyDistillation(
                language_model(0, attention_dropout=0.1),
                language_model(1),
                task=CausalLM(),
                objective=GKD(student_share=0.5),
                generator=StudentSampler(max_new_tokens=4),
                **optimizer,
            )
            return module, [], texts(26)
        raise ValueError(mode)

    return make


@pytest.fixture
def run(setting: Any, trainer: Any, tmp_path: Path) -> Any:
    """Trains for three epochs, or until optimizer step `stop`; resumes from `last.ckpt` if there is one."""

    def train(
        mode: str, name: str, stop: int | None = None, workers: int = 0, every: int = 1, extra: Any = (), **options: Any
    ) -> DistillModule:
        import lightning as L

        class Break(L.Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                if stop is not None and trainer.global_step >= stop:
                    raise Broken

        folder = tmp_path / name
        last = folder / "last.ckpt"
        torch.manual_seed(99 if last.exists() else 0)  # a resumed process begins elsewhere
        module, callbacks, data = setting(mode)
        module._seed = None if last.exists() else 11
        checkpoints = [LatestCheckpoint(every, dirpath=str(folder)), BestCheckpoint(dirpath=str(folder))]
        runner = trainer(**{"max_epochs": 3, "callbacks": [*callbacks, *checkpoints, Break(), *extra], **options})
        loaders = [ResumableLoader(data, 8, shuffle, seed=3, num_workers=workers) for shuffle in (True, False)]
        try:
            runner.fit(module, *loaders, ckpt_path=str(last) if last.exists() else None)
        except Broken:
            assert stop is not None
        return module

    return train


CASES = [
    # mode, where it breaks (optimizer steps), options: epochs have four batches of 8, 8, 8 and 2 samples
    ("offline", (1,), {}),
    ("offline", (3,), {}),
    ("offline", (4,), {}),
    ("offline", (5, 8), {}),
    ("offline", (6, 7), {"val_check_interval": 2}),
    ("offline", (3,), {"accumulate_grad_batches": 2, "every": 1}),
    ("offline", (5,), {"accumulate_grad_batches": 3, "every": 2}),
    ("offline", (7,), {"every": 3}),
    ("offline", (5,), {"limit_train_batches": 3}),
    ("offline", (6,), {"workers": 2}),
    ("online", (2,), {}),
    ("online", (6, 9), {"every": 2, "gradient_clip_val": 0.5}),
    ("online", (3,), {"accumulate_grad_batches": 2}),
    ("pskd", (3,), {}),
    ("pskd", (4,), {}),
    ("pskd", (6, 9), {"every": 2}),
    ("pskd", (3,), {"accumulate_grad_batches": 2, "val_check_interval": 2}),
    ("mean_teacher", (1,), {}),
    ("mean_teacher", (3, 6), {}),
    ("mean_teacher", (4,), {}),
    ("mean_teacher", (7,), {"every": 3, "val_check_interval": 2}),
    ("mean_teacher", (3,), {"accumulate_grad_batches": 2}),
    ("on_policy", (2,), {}),
    ("on_policy", (5,), {"every": 2}),
    ("on_policy", (3,), {"accumulate_grad_batches": 2}),
]


@pytest.mark.parametrize(("mode", "stops", "options"), CASES)
def test_resumed_run_ends_where_the_undisturbed_one_ends(
    mode: str, stops: tuple[int, ...], options: dict[str, Any], run: Any, same_state: Any
) -> None:
    whole = run(mode, "whole", **options)
    for stop in stops:
        run(mode, "cut", stop=stop, **options)
    resumed = run(mode, "cut", **options)
    assert resumed.global_step == whole.global_step
    same_state(whole, resumed)


@pytest.mark.parametrize("mode", ["offline", "pskd"])
def test_metrics_of_a_resumed_run_are_those_of_the_undisturbed_one(mode: str, run: Any) -> None:
    whole = run(mode, "whole")
    run(mode, "cut", stop=6)
    resumed = run(mode, "cut")
    for name, value in whole.trainer.callback_metrics.items():
        assert torch.equal(value, resumed.trainer.callback_metrics[name]), name


def test_a_callback_missing_at_resume_is_named(setting: Any, trainer: Any, run: Any, tmp_path: Path) -> None:
    run("offline", "cut", stop=3)
    module, _, data = setting("offline")
    with (
        pytest.warns(UserWarning, match="callbacks used to create the checkpoint"),
        pytest.raises(ConfigurationError, match=r"term\(s\) fit_net"),
    ):
        trainer(max_epochs=3).fit(module, ResumableLoader(data, 8, True), ckpt_path=str(tmp_path / "cut/last.ckpt"))


def test_a_callback_too_many_at_resume_is_named(setting: Any, trainer: Any, run: Any, tmp_path: Path) -> None:
    run("offline", "cut", stop=3)
    module, callbacks, data = setting("offline")
    extra = RelationKD(RKD(), {"pre_logits": "pre_logits"}, adapter="linear", name="relation")
    with pytest.raises(ConfigurationError, match="relation"):
        trainer(max_epochs=3, callbacks=[*callbacks, extra]).fit(
            module, ResumableLoader(data, 8, True), ckpt_path=str(tmp_path / "cut/last.ckpt")
        )


def test_two_ends_of_one_run_and_no_more(run: Any, tmp_path: Path) -> None:
    run("offline", "whole", every=2)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["best.ckpt", "last.ckpt"]
    checkpoint = torch.load(tmp_path / "whole/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert checkpoint["global_step"] == 12


def test_ps_kd_resumes_from_an_epochs_last_batch(
    net: Any, samples: Any, trainer: Any, tmp_path: Path, same_state: Any
) -> None:
    """Lightning's own checkpoint of that moment lies before the epoch's end, which it then leaves out."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(resume: str | None) -> Any:
        module = SelfDistillation(net(4, 0), PSKD(), task=Classification(5))
        module._seed = 11
        kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        loader = ResumableLoader(samples, 8, True, seed=3)
        trainer(max_epochs=3, callbacks=[kept]).fit(module, loader, ckpt_path=resume)
        return module

    whole = fit(None)
    resumed = fit(str(tmp_path / "step=4.ckpt"))
    assert bool(resumed.teacher.seen.all())
    same_state(whole, resumed)


def test_a_callback_without_networks_missing_at_resume_is_named(
    setting: Any, trainer: Any, tmp_path: Path, net: Any, samples: Any
) -> None:
    def module() -> Any:
        return OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))

    loader = ResumableLoader(samples, 8, True, seed=3)
    relation = RelationKD(RKD(), {"pre_logits": "pre_logits"})
    trainer(callbacks=[relation, LatestCheckpoint(dirpath=str(tmp_path))]).fit(module(), loader)
    kept = LatestCheckpoint(dirpath=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"had the term\(s\) rkd, and no callback declares"):
        trainer(max_epochs=2, callbacks=[kept]).fit(module(), loader, ckpt_path=str(tmp_path / "last.ckpt"))
