"""OFD in a run: the margin is the teacher's, and goes into the checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlightning import OFD, Classification, ConfigurationError, FeatureKD, FrozenTeacher, OfflineDistillation
from kdlightning.losses import ofd_loss, ofd_margin

PAIRS = [
    {"student": "stages.0.1", "teacher": "stages.0.1", "weight": 0.5},
    {"student": "stages.1.1", "teacher": "stages.1.1"},
]


def test_the_margins_are_those_of_the_teachers_batch_norms(net: Any, images: Any, trainer: Any) -> None:
    teacher = net(6, 1)
    for stage in teacher.stages:
        torch.nn.init.normal_(stage[1].bias)
    module = OfflineDistillation(
        net(4), FrozenTeacher(teacher, batch_stats=True), task=Classification(5), response=None
    )
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    runner = trainer(max_steps=1, callbacks=[FeatureKD(OFD(), PAIRS)])
    runner.fit(module, images())
    term = module.adapters["ofd"]["teacher"]  # type: ignore[index]
    for number, loss in enumerate(term.losses):
        assert torch.equal(loss.margins, ofd_margin(teacher.stages[number][1]))
        assert f"adapters.ofd.teacher.losses.{number}.margins" in module.state_dict()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    total = metrics["train/loss_task"] + 0.001 * metrics["train/loss_ofd"]
    assert metrics["train/loss"] == pytest.approx(total, rel=1e-5)


def test_the_first_step_is_the_formula_with_batch_statistics(net: Any, images: Any, trainer: Any) -> None:
    student, teacher = net(4), net(6, 1)
    module = OfflineDistillation(student, FrozenTeacher(teacher, batch_stats=True), task=Classification(5))
    runner = trainer(max_steps=1, callbacks=[FeatureKD(OFD(), PAIRS)], limit_train_batches=1)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.0)  # type: ignore[method-assign]
    runner.fit(module, images())
    pictures = next(iter(images()))[0]
    term = module.adapters["ofd"]["teacher"]  # type: ignore[index]
    expected, ours, theirs = 0.0, pictures, pictures
    with torch.no_grad():
        for number, weight in enumerate((0.5, 1.0)):
            mine, other = student.stages[number].train(), teacher.stages[number].train()
            features = [stage[1](stage[0](maps)) for stage, maps in ((mine, ours), (other, theirs))]
            connected = term.adapters[number].train()(features[0])
            expected += weight * float(ofd_loss(connected, features[1], ofd_margin(other[1])))
            ours, theirs = (maps.relu() for maps in features)
    assert float(runner.callback_metrics["train/loss_ofd"]) == pytest.approx(expected, rel=1e-5)


def test_a_tap_after_the_activation_names_the_batch_norm(net: Any, images: Any, trainer: Any) -> None:
    module = OfflineDistillation(net(4), net(6, 1), task=Classification(5))
    with pytest.raises(ConfigurationError, match=r"ofd: teacher tap 'stages.1' is not .*: tap stages.1.1, or set marg"):
        trainer(callbacks=[FeatureKD(OFD(), {"stages.1.1": "stages.1"})]).fit(module, images())
    trainer(callbacks=[FeatureKD(OFD(margin="running"), {"stages.1.1": "stages.1"})]).fit(module, images())
    state = module.state_dict()
    assert torch.equal(state["adapters.ofd.teacher.losses.0.counts"], torch.zeros(12))
