"""The guard keeps steps and looks at them together; it must find what a look at every step would find."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kdlightning.errors import NonFiniteLossError
from kdlightning.modules.guards import FiniteGuard

TRAINER = SimpleNamespace(lightning_module=None, checkpoint_callbacks=[])


def values(**terms: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in terms.items()}


@pytest.mark.parametrize("most", [1, 3, 128])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_first_bad_step_is_named_however_many_steps_are_kept(most: int, bad: float) -> None:
    guard = FiniteGuard(most)
    for step in range(10):
        guard.add(values(task=1.0, kd=1.0, loss=2.0), step)
    guard.check(10, TRAINER)
    for step in range(10, 30):
        guard.add(values(task=1.0, kd=bad if step in (17, 23) else 1.0, loss=bad if step >= 17 else 2.0), step)
    with pytest.raises(NonFiniteLossError, match=r"term 'kd' .* at step 17 \(steps 10 to 30 "):
        guard.check(30, TRAINER)
    with pytest.raises(NonFiniteLossError, match="term 'kd'"):
        guard.check(30, TRAINER)


def test_term_that_joins_late_is_named_before_the_sum() -> None:
    guard = FiniteGuard()
    guard.add(values(task=1.0, loss=1.0), 0)
    guard.add(values(task=1.0, hint=float("nan"), loss=float("nan")), 1)
    guard.add(values(task=1.0, loss=1.0), 2)
    guard.add(values(task=1.0, hint=float("nan"), loss=float("nan")), 3)
    with pytest.raises(NonFiniteLossError, match="term 'hint' .* at step 1 "):
        guard.check(4, TRAINER)


def test_finite_steps_are_forgotten_after_a_look() -> None:
    guard = FiniteGuard()
    for step in range(500):
        guard.add(values(task=1.0, loss=1.0), step)
    assert len(guard._rows) <= guard.most
    guard.check(500, TRAINER)
    assert not guard._rows
    assert not guard._steps


def test_kept_scalar_does_not_hold_the_tensor_that_it_was_cut_from() -> None:
    guard = FiniteGuard()
    large = torch.zeros(1000)
    guard.add({"mine": large[3]}, 0)
    assert guard._rows[0][0].untyped_storage().nbytes() <= 64
