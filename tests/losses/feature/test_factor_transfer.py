from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdlightning.losses import FT, FactorTransfer, Paraphraser, factor_transfer_loss


def loop(student: Tensor, teacher: Tensor) -> Tensor:
    """Unit vectors and absolute differences, element by element."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for own, other in zip(student.flatten(1), teacher.flatten(1), strict=True):
        lengths = [sum(x**2 for x in row) ** 0.5 for row in (own, other)]
        for s, t in zip(own, other, strict=True):
            total = total + abs(s / lengths[0] - t / lengths[1])
            count += 1
    return total / count


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5), (2, 3, 4, 2)])
def test_it_is_the_formula(random, assert_same, shape: tuple[int, ...]) -> None:
    teacher = random(*shape)
    assert_same(lambda f: factor_transfer_loss(f, teacher), lambda f: loop(f, teacher), random(*shape))


def test_first_and_second_derivatives(random) -> None:
    teacher, student = random(2, 3, 4), random(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: factor_transfer_loss(f, teacher), (student,))
    assert torch.autograd.gradgradcheck(lambda f: factor_transfer_loss(f, teacher), (student,))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.01, 100), st.integers(0, 10**6))
def test_only_directions_count(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, batch, channels, 3, generator=generator, dtype=torch.float64)
    value = factor_transfer_loss(student, teacher)
    assert factor_transfer_loss(scale * teacher, teacher) < 1e-15
    torch.testing.assert_close(factor_transfer_loss(scale * student, teacher), value)
    torch.testing.assert_close(factor_transfer_loss(teacher, student), value)
    order = torch.randperm(channels, generator=generator)
    torch.testing.assert_close(factor_transfer_loss(student[:, order], teacher[:, order]), value)
    assert 0 < value <= 2 / (3 * channels) ** 0.5


def test_the_teacher_is_only_read(random) -> None:
    student, teacher = random(2, 3).requires_grad_(), random(2, 3).requires_grad_()
    factor_transfer_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e4, 1e15])
def test_values_of_any_size(random, scale: float) -> None:
    student = (random(2, 3, 4) * scale).float().requires_grad_()
    for teacher in (random(2, 3, 4).float(), torch.zeros(2, 3, 4), student.detach()):
        value = factor_transfer_loss(student, teacher)
        assert value.isfinite()
        assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_half_precision_is_computed_in_float32(random) -> None:
    student, teacher = random(2, 3, 4).bfloat16(), random(2, 3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = factor_transfer_loss(student, teacher)
    assert value.dtype == torch.float32
    expected = factor_transfer_loss(student.double(), teacher.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


SHAPES = [(4, 6), (3, 6, 8), (2, 6, 4, 5)]


def trained(shape: tuple[int, ...], path: Path, **options: Any) -> Paraphraser:
    """A paraphraser in the file that its run would leave."""
    loss = Paraphraser(**options)
    loss.build([shape], [shape])
    state = loss.state_dict(prefix="adapters.paraphraser.teacher.losses.0.")
    torch.save({"state_dict": {**state, "student.encoder.0.weight": torch.zeros(1)}, "epoch": 3}, path)
    return loss


@pytest.mark.parametrize("shape", SHAPES)
def test_the_paraphraser_is_an_autoencoder_of_the_teacher_alone(random, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    loss = Paraphraser()
    loss.build([(2, 3)], [shape])
    widths = [layer.weight.shape[:2] for layer in [*loss.encoder, *loss.decoder] if hasattr(layer, "weight")]
    wide, half = [(6, 6), (3, 6), (3, 3)], [(3, 3), (3, 6), (6, 6)]
    assert widths == wide + ([(3, 3), (6, 3), (6, 6)] if len(shape) == 2 else half)
    student, teacher = random(2, 3).float().requires_grad_(), random(*shape).float().requires_grad_()
    value = loss(student, teacher)
    torch.testing.assert_close(value, F.mse_loss(loss.decoder(loss.encoder(teacher)), teacher))
    value.backward()
    assert student.grad is None
    assert teacher.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_the_paraphraser_learns(random) -> None:
    torch.manual_seed(0)
    loss, features = Paraphraser(), (random(8, 1, 6) * random(1, 4, 1)).float().relu()
    loss.build([(2, 3)], [(2, 4, 6)])
    optimizer = torch.optim.Adam(loss.parameters(), 0.01)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(loss(features, features))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0, 0.01])
@pytest.mark.parametrize("shape", SHAPES)
def test_factor_transfer_reads_its_paraphraser_and_trains_a_translator(
    random, shape: tuple[int, ...], rate: float, tmp_path: Path
) -> None:
    made = trained(shape, tmp_path / "last.ckpt", rate=rate)
    loss = FT(str(tmp_path / "last.ckpt"))
    assert FT is FactorTransfer
    own = (shape[0], 4, *shape[2:])
    loss.build([own], [shape])
    student, teacher = random(*own).float().requires_grad_(), random(*shape).float().requires_grad_()
    value = loss(student, teacher)
    torch.testing.assert_close(value, factor_transfer_loss(loss.translator(student), made.encoder(teacher)))
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert all(parameter.grad is not None for parameter in loss.translator.parameters())
    assert not any(parameter.requires_grad for parameter in loss.paraphraser.parameters())
    assert sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in loss.translator) == 3
    again = FactorTransfer(str(tmp_path / "last.ckpt"))
    again.build([own], [shape])
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.eval()(student, teacher), loss.eval()(student, teacher))
    assert loss.default_weights == {"task": 1.0, "factor_transfer": 500.0}


def test_the_larger_factor_is_pooled(random, tmp_path: Path) -> None:
    made = trained((2, 6, 8), tmp_path / "last.ckpt")
    loss = FactorTransfer(str(tmp_path / "last.ckpt"))
    loss.build([(2, 4, 4)], [(2, 6, 8)])
    student, teacher = random(2, 4, 4).float(), random(2, 6, 8).float()
    factor = F.avg_pool1d(made.encoder(teacher), 2)
    torch.testing.assert_close(loss(student, teacher), factor_transfer_loss(loss.translator(student), factor))


def test_its_own_state_dict_will_do(random, tmp_path: Path) -> None:
    made = trained((2, 6, 8), tmp_path / "last.ckpt")
    torch.save(made.state_dict(), tmp_path / "own.pt")
    loss = FactorTransfer(str(tmp_path / "own.pt"))
    loss.build([(2, 6, 8)], [(2, 6, 8)])
    assert torch.equal(loss.paraphraser[0].weight, made.encoder[0].weight)


def test_of_several_paraphrasers_the_one_that_fits_or_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    made = {}
    for number, width in enumerate((6, 6, 4)):
        made[number] = Paraphraser()
        made[number].build([(2, width, 5)], [(2, width, 5)])
    state = {k: v for n, loss in made.items() for k, v in loss.state_dict(prefix=f"p.losses.{n}.").items()}
    torch.save({"state_dict": state}, path)
    loss = FactorTransfer(str(path))
    loss.build([(2, 3, 5)], [(2, 4, 5)])
    assert torch.equal(loss.paraphraser[0].weight, made[2].encoder[0].weight)
    with pytest.raises(ValueError, match=r"2 paraphrasers for 6 channels: choose one with key, p.losses.0. or p.loss"):
        loss.build([(2, 3, 5)], [(2, 6, 5)])
    loss = FactorTransfer(str(path), key="p.losses.1")
    loss.build([(2, 3, 5)], [(2, 6, 5)])
    assert torch.equal(loss.paraphraser[0].weight, made[1].encoder[0].weight)


def built(loss: FactorTransfer, shape: tuple[int, ...] = (2, 6, 8)) -> None:
    loss.build([shape], [shape])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: factor_transfer_loss(torch.zeros(2, 3), torch.zeros(2, 4)), "must have one shape"),
        (lambda p: Paraphraser(rate=1.5), "rate must lie between 0 and 1"),
        (lambda p: Paraphraser().build([(2, 3)], [(2, 3, 4, 4, 4)]), "needs vectors or maps"),
        (lambda p: built(FactorTransfer()), "give paraphraser, the checkpoint of the method's first stage"),
        (lambda p: built(FactorTransfer(str(p / "no.ckpt"))), "no paraphraser at .*no.ckpt: train it first"),
        (
            lambda p: built(FactorTransfer(str(p / "other.ckpt"))),
            "other.ckpt holds no paraphraser: name the checkpoint",
        ),
        (lambda p: built(FactorTransfer(str(p / "torn.ckpt"))), "torn.ckpt is damaged"),
        (
            lambda p: built(FactorTransfer(str(p / "last.ckpt")), (2, 5, 8)),
            r"has a paraphraser of signals of 6 channels \(adapters.paraphraser.teacher.losses.0\), and the teacher's "
            "tap gives signals of 5: train one on this very tap",
        ),
        (lambda p: built(FactorTransfer(str(p / "last.ckpt")), (2, 6, 8, 8)), "signals of 6 .* gives maps of 6: train"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str, tmp_path: Path) -> None:
    trained((2, 6, 8), tmp_path / "last.ckpt")
    torch.save({"state_dict": {"encoder.0.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:300])
    with pytest.raises(ValueError, match=sentence) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
