from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdlightning.losses import LossContext, QueueSoftmax, queue_softmax_loss


def queue_loop(student: Tensor, teacher: Tensor, queue: Tensor, temperature: float) -> Tensor:
    def shares(row: Tensor) -> list[Tensor]:
        unit = row / (row**2).sum() ** 0.5
        powers = [torch.exp((unit * other).sum() / temperature) for other in queue if other.abs().sum() > 0]
        return [power / sum(powers) for power in powers]

    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(student, teacher, strict=True):
        for q, p in zip(shares(own), shares(other), strict=True):
            total = total + p * (torch.log(p) - torch.log(q))
    return total / len(student)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_it_is_the_formula_and_empty_rows_do_not_count(random, assert_same, temperature: float) -> None:
    units = torch.nn.functional.normalize(random(5, 4))
    teacher, queue = random(3, 4), torch.cat([units, torch.zeros(2, 4, dtype=torch.float64)])
    assert_same(
        lambda x: queue_softmax_loss(x, teacher, queue, temperature=temperature),
        lambda x: queue_loop(x, teacher, queue, temperature),
        random(3, 4),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.floats(0.1, 20), st.integers(0, 10**6))
def test_it_ignores_scale_a_common_rotation_and_the_queues_order(
    batch: int, width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    student, teacher, queue = draw(batch), draw(batch), draw(7)
    assert abs(queue_softmax_loss(scale * teacher, teacher, queue).item()) < 1e-10
    rotation, _ = torch.linalg.qr(draw(width))
    order = torch.randperm(7, generator=generator)
    turned = queue_softmax_loss(student @ rotation, scale * teacher @ rotation, queue[order] @ rotation)
    torch.testing.assert_close(turned, queue_softmax_loss(student, teacher, queue))


def made(size: int | None = 5, samples: int = 30) -> QueueSoftmax:
    loss = QueueSoftmax(size)
    loss.bind(LossContext(nn.Identity(), nn.Identity(), samples=samples))
    loss.build([(2, 3)], [(2, 3)])
    return loss.double()


def test_the_newest_teacher_rows_are_in_the_queue(random) -> None:
    loss, teacher = made(), random(8, 3)
    for begin in range(0, 8, 2):
        loss(random(2, 3), teacher[begin : begin + 2])
    units = teacher / teacher.norm(dim=1, keepdim=True)
    found = {tuple(row) for row in loss.queue.round(decimals=9).tolist()}
    assert found == {tuple(row) for row in units[3:].round(decimals=9).tolist()}
    before = loss.queue.clone()
    loss.eval()
    loss(random(2, 3), random(2, 3))
    assert torch.equal(loss.queue, before)
    assert {"queue", "place"} == set(loss.state_dict())


def test_a_batch_larger_than_the_queue_and_maps_fit(random) -> None:
    loss = made(size=2)
    assert loss(random(4, 3, 5), random(4, 3, 2, 2)).isfinite()
    assert len(loss.queue) == 2


@pytest.mark.parametrize(("samples", "size"), [(30, 16), (1000, 256), (15000, 4096), (10**6, 8192), (0, 8192)])
def test_the_default_size_follows_the_data(samples: int, size: int) -> None:
    assert len(made(None, samples).queue) == size


def test_values_and_gradients_stay_finite(random) -> None:
    for value in (0.0, 1e18):
        student = torch.full((2, 3), value, requires_grad=True)
        found = queue_softmax_loss(student, random(2, 3).float(), random(4, 3).float())
        assert found.isfinite()
        assert torch.autograd.grad(found, student)[0].isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = queue_softmax_loss(random(2, 3).bfloat16(), random(2, 3).bfloat16(), random(4, 3).bfloat16())
    assert value.dtype == torch.float32


def test_widths_are_mapped_and_bad_input_is_one_sentence(random) -> None:
    adapter = QueueSoftmax().adapter((2, 3), (2, 5))
    assert adapter is not None
    assert adapter(torch.zeros(2, 3)).shape == (2, 5)
    cases: list[tuple[Any, str]] = [
        (lambda: queue_softmax_loss(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(5, 4)), "adapter: linear"),
        (lambda: QueueSoftmax(size=1), "size must be at least 2"),
        (lambda: QueueSoftmax(temperature=0), "temperature must be above 0"),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()
    assert QueueSoftmax().name == "queue_softmax"
