from __future__ import annotations

import torch
from torch import Tensor

from kdlightning.losses.numerics import full_precision, log_probabilities


@full_precision
def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def test_products_ignore_autocast_and_half_precision() -> None:
    a, b = torch.full((2, 2), 1.001), torch.full((2, 2), 3.007)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        true = (a.double() @ b.double()).float()
        assert torch.equal(product(a, b), true)
        assert torch.equal(product(a=a, b=b), true)
        assert product(a.half(), b=b).dtype == torch.float32
        assert (a @ b).dtype == torch.bfloat16
    assert product(a.double(), b=b.double()).dtype == torch.float64


@full_precision
def sum_of_products(a: list[Tensor], b: tuple[Tensor, ...]) -> Tensor:
    return sum((x @ y for x, y in zip(a, b, strict=True)), a[0].new_zeros(()))


def test_lists_of_tensors_are_widened_too() -> None:
    a, b = [torch.full((2, 2), 1.001)] * 2, (torch.full((2, 2), 3.007),) * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sum_of_products(a, b), (2 * (a[0].double() @ b[0].double())).float())
        half = sum_of_products([x.bfloat16() for x in a], b=tuple(y.bfloat16() for y in b))
    assert half.dtype == torch.float32
    assert torch.equal(half, sum_of_products([x.bfloat16().float() for x in a], tuple(y.bfloat16().float() for y in b)))


def test_forbidden_logits_have_a_finite_log_probability() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    value = log_probabilities(logits, 2.0)
    assert value.isfinite().all()
    assert value.exp()[0].tolist() == [0.5, 0.5, 0.0]
    assert torch.autograd.grad((value.exp() * value).sum(), logits)[0].isfinite().all()
