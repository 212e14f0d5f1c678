"""A training step reads nothing back from the device, so that a GPU is never waited for."""

from __future__ import annotations

import traceback
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from kdlightning import (
    AT,
    BYOT,
    CSKD,
    CTKD,
    DLB,
    DML,
    KDCL,
    MLKD,
    RKD,
    USKD,
    CausalLM,
    Classification,
    DataDistortion,
    DistillModule,
    FeatureKD,
    FitNet,
    FrozenTeacher,
    IndexedViews,
    JointTraining,
    MeanTeacher,
    OfflineDistillation,
    OnlineDistillation,
    RelationKD,
    SelfDistillation,
    TeacherFree,
    resumable,
)

# Each of these waits for the device: a value is read, or a shape depends on one.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")


class Waits(TorchDispatchMode):
    """Counts operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        boolean_index = name.startswith("index") and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool
            for part in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        if (name in WAITS or boolean_index) and not _asked_by_transformers():
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _asked_by_transformers() -> bool:
    """Its models look into attention masks before they attend; that is theirs to change."""
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_stack()]
    return "/transformers/" in next(file for file in reversed(files[:-2]) if "/torch/" not in file)


class CountWaits(L.Callback):
    """Watches every step but the first, from the batch's start to its end."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.mode: Waits | None = None

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.mode = Waits()
        self.mode.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.mode is not None
        self.mode.__exit__(None, None, None)
        self.steps.append(self.mode.seen)


HINT = {"stages.0": "stages.0"}
CASES = {
    "labels": lambda n: (DistillModule(n(4, 0), task=Classification(5)), []),
    "offline": lambda n: (OfflineDistillation(n(4, 0), n(6, 1), task=Classification(5)), []),
    "mapped": lambda n: (
        OfflineDistillation(
            n(4, 0),
            FrozenTeacher(
                n(6, 1),
                label_map=[1, 0, 2, 3, 4],
                student_normalization=([0.5], [0.5]),
                teacher_normalization=([0.0], [1.0]),
            ),
            task=Classification(5),
        ),
        [],
    ),
    "batch_stats": lambda n: (
        OfflineDistillation(n(4, 0), FrozenTeacher(n(6, 1), batch_stats=True), task=Classification(5)),
        [],
    ),
    "ctkd": lambda n: (OfflineDistillation(n(4, 0), n(6, 1), task=Classification(5), response=CTKD()), []),
    "feature": lambda n: (
        OfflineDistillation(n(4, 0), n(6, 1), task=Classification(5)),
        [FeatureKD(FitNet(), HINT), FeatureKD(AT(), HINT), RelationKD(RKD(), {"pre_logits": "pre_logits"})],
    ),
    "online": lambda n: (OnlineDistillation(n(4, 0), [n(5, 1)], task=Classification(5)), [FeatureKD(AT(), HINT)]),
    "mean_teacher": lambda n: (SelfDistillation(n(4, 0), MeanTeacher(), task=Classification(5)), []),
    "byot": lambda n: (
        SelfDistillation(n(4, 0), BYOT(["stages.0"]), task=Classification(5)),
        [FeatureKD(FitNet(), {"features": "stages.1"})],
    ),
    "uskd": lambda n: (SelfDistillation(n(4, 0), USKD("stages.0"), task=Classification(5)), []),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_does_not_log_waits_for_nothing(
    case: str, accumulate: int, net: Any, loader: Any, trainer: Any
) -> None:
    module, callbacks = CASES[case](net)
    # AdamW on the CPU reads its own step count; SGD does not.
    module._make_optimizer = lambda p: torch.optim.SGD(p, lr=0.01)
    count = CountWaits()
    trainer(callbacks=[*callbacks, count], log_every_n_steps=50, accumulate_grad_batches=accumulate).fit(
        module, loader()
    )
    assert len(count.steps) == 4
    assert [names for names in count.steps[1:] if names] == []


def test_masks_over_several_views_are_found_on_the_device(net: Any, samples: Any, trainer: Any) -> None:
    count = CountWaits()
    module = OfflineDistillation(
        net(4, 0),
        net(6, 1),
        task=Classification(5),
        response=MLKD(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )
    loader = resumable(IndexedViews(samples, views=2), batch_size=8)
    trainer(callbacks=[count], log_every_n_steps=50).fit(module, loader)
    assert len(count.steps) == 4
    assert [names for names in count.steps[1:] if names] == []


@pytest.mark.parametrize("teacher", [CSKD, DLB, DataDistortion, TeacherFree])
def test_self_teachers_wait_for_nothing(teacher: Any, net: Any, noisy_loader: Any, trainer: Any) -> None:
    count = CountWaits()
    module = SelfDistillation(
        net(4, 0), teacher(), task=Classification(5), optimizer=lambda p: torch.optim.SGD(p, lr=0.01)
    )
    trainer(callbacks=[count], log_every_n_steps=50).fit(module, noisy_loader(views=2, partners=True))
    assert len(count.steps) == 4
    assert [names for names in count.steps[1:] if names] == []


@pytest.mark.parametrize(
    "strategy",
    [
        DML(sequential=True),
        JointTraining(two_way=True),
        *(KDCL(variant, own_views=False) for variant in ("naive", "linear", "min_logit", "general")),
    ],
    ids=lambda strategy: getattr(strategy, "variant", strategy.name),
)
def test_strategies_wait_for_nothing(strategy: Any, net: Any, loader: Any, trainer: Any) -> None:
    count = CountWaits()
    module = OnlineDistillation(
        net(4, 0),
        [net(5, 1), net(6, 2)],
        task=Classification(5),
        strategy=strategy,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
    )
    trainer(callbacks=[count], log_every_n_steps=50).fit(module, loader(), loader())
    assert len(count.steps) == 4
    assert [names for names in count.steps[1:] if names] == []


def test_the_first_step_is_looked_at(net: Any, loader: Any, trainer: Any) -> None:
    count = CountWaits()
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    trainer(callbacks=[count], log_every_n_steps=50).fit(module, loader())
    assert count.steps[0]


def test_self_log_is_called_on_logging_steps_only(net: Any, loader: Any, trainer: Any, monkeypatch: Any) -> None:
    calls: list[int] = []
    module = OfflineDistillation(net(4, 0), net(6, 1), task=Classification(5))
    plain = module.log_dict

    def log_dict(*args: Any, **options: Any) -> None:
        calls.append(module.global_step)
        plain(*args, **options)

    monkeypatch.setattr(module, "log_dict", log_dict)
    trainer(max_epochs=2, log_every_n_steps=3).fit(module, loader())
    # Steps are counted before the optimizer's: the third and the sixth, and each epoch's end.
    assert calls == [2, 4, 5, 8]


def test_language_step_waits_for_its_packing_alone(language_model: Any, texts: Any, trainer: Any) -> None:
    """Counted tokens are taken out of the batch, whose number the host must know; nothing else may wait."""
    count = CountWaits()
    module = OfflineDistillation(
        language_model(0), language_model(1), task=CausalLM(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    trainer(callbacks=[count], log_every_n_steps=50).fit(module, DataLoader(texts(), 2))
    assert {name for names in count.steps[1:] for name in names} == {"nonzero"}
