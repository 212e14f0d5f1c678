from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdlightning.losses import sp_loss
from kdlightning.losses.relation.products import cosines, distance_shares


def cosines_loop(points: Tensor, eps: float) -> Tensor:
    units = [point / ((point**2).sum() ** 0.5 + eps) for point in points]
    return torch.stack([torch.stack([(a * b).sum() for b in units]) for a in units])


def shares_loop(points: Tensor) -> Tensor:
    squared = torch.stack([torch.stack([((a - b) ** 2).sum() for b in points]) for a in points])
    return squared / squared.max()


@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.5])
def test_cosines_are_the_formula(random, assert_same, eps: float) -> None:
    weights = random(4, 4)
    assert_same(
        lambda f: (weights * cosines(f, eps=eps)).sum(), lambda f: (weights * cosines_loop(f, eps)).sum(), random(4, 3)
    )


def test_distance_shares_are_the_formula(random, assert_same) -> None:
    weights = random(5, 5)
    assert_same(
        lambda f: (weights * distance_shares(f)).sum(), lambda f: (weights * shares_loop(f)).sum(), random(5, 3)
    )


def test_without_gradient_the_value_is_the_same(random) -> None:
    features = random(4, 3)
    for function in (cosines, distance_shares):
        assert torch.equal(function(features), function(features.clone().requires_grad_()).detach())


def test_zero_samples_have_no_cosines_and_moderate_gradients(random) -> None:
    features = random(4, 3).float()
    features[1] = 0
    features.requires_grad_()
    assert not cosines(features)[1].any()
    gradients = [
        torch.autograd.grad(value, features)[0]
        for value in (cosines(features).square().sum(), sp_loss(features, random(4, 5).float()))
    ]
    assert not gradients[0][1].any()
    for gradient in gradients:
        assert 1e-4 < gradient.abs().max() < 10


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18, 1e10, 1e18, 1e30, 3e38])
def test_nothing_overflows(random, size: float) -> None:
    features = (random(4, 3).float().clamp(-1, 1) * size).requires_grad_()
    for function in (cosines, distance_shares, lambda f: sp_loss(f, features.detach().flip(1))):
        value = function(features)
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.square().sum(), features)
        assert gradient.isfinite().all()


def test_coinciding_samples_are_no_distance_apart(random) -> None:
    features = (random(5, 40) + 100).float()
    features[3] = features[0]
    shares = distance_shares(features)
    assert shares[0, 3] == shares[3, 0] == 0
    assert (shares == 0).sum() == 7
    same = torch.ones(4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(distance_shares(same).sum(), same)
    assert not distance_shares(same).any()
    assert not gradient.any()


def test_float32_keeps_its_digits_far_from_the_origin(random) -> None:
    features = (random(6, 8) + 1000).float()
    torch.testing.assert_close(distance_shares(features).double(), shares_loop(features.double()), rtol=1e-4, atol=1e-6)
