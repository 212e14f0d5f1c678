from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses.relation import angles


def plain_angles(points: Tensor) -> Tensor:
    directions = F.normalize(points[None] - points[:, None], dim=2)
    return torch.bmm(directions, directions.mT)


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_blocks_of_anchors_change_nothing(random, assert_same, monkeypatch, block: int) -> None:
    monkeypatch.setattr(angles, "BLOCK", block)
    teacher = random(7, 5)
    assert_same(
        lambda f: angles.angle_loss(f @ f.T, teacher @ teacher.T),
        lambda f: F.smooth_l1_loss(plain_angles(f), plain_angles(teacher)),
        random(7, 3),
    )


def test_only_blocks_are_alive(random, monkeypatch) -> None:
    monkeypatch.setattr(angles, "BLOCK", 2 * 24**2)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    gram = random(24, 24)
    student = (gram @ gram.T).requires_grad_()
    with Watch():
        angles.angle_loss(student, torch.eye(24, dtype=torch.float64)).backward()
    assert largest == 2 * 24**2
