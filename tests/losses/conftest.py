from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random() -> Callable[..., Tensor]:
    """Seeded normal float64 numbers of a shape, times `scale`."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int, scale: float = 2.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    return draw


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Compares two functions of the student's tensor in value and gradient."""

    def check(ours: Callable[[Tensor], Any], oracle: Callable[[Tensor], Any], student: Tensor) -> None:
        results = []
        for function in (ours, oracle):
            leaf = student.detach().clone().requires_grad_()
            value = function(leaf)
            results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        (value, gradient), (true_value, true_gradient) = results
        torch.testing.assert_close(value, true_value, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gradient, true_gradient, rtol=1e-9, atol=1e-12)
        assert true_gradient.abs().max() > 1e-6

    return check
