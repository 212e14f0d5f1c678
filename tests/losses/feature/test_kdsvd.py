from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdlightning.losses import KDSVD, kdsvd_loss
from kdlightning.losses.feature.singular_vectors import right_singular_vectors


def stage_vectors(student: Tensor, teacher: Tensor, k: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weighted singular vectors of one sample's stage (C, …), one by one, from torch's own decomposition."""
    ours = torch.linalg.svd(student.flatten(1).T, full_matrices=False)[2]
    _, values, theirs = torch.linalg.svd(teacher.flatten(1).T, full_matrices=False)
    weights = values[:k] / values[:k].norm()
    chosen, wanted = [], []
    for number in range(k):
        target = theirs[number] if theirs[number].sum() >= 0 else -theirs[number]
        cosines = [float((v @ target).detach()) for v in ours[: k + 3]]
        best = max(range(len(cosines)), key=lambda i: abs(cosines[i]))
        chosen.append(ours[best] * (1 if cosines[best] >= 0 else -1) * weights[number])
        wanted.append(target * weights[number])
    return chosen, wanted


def kdsvd_loop(student: list[Tensor], teacher: list[Tensor], k: int) -> Tensor:
    total = 0.0
    for sample in range(len(student[0])):
        stages = [stage_vectors(own[sample], other[sample], k) for own, other in zip(student, teacher, strict=True)]
        for (own, other), (next_own, next_other) in zip(stages, stages[1:], strict=False):
            for number in range(k):
                for m in range(len(own[number])):
                    for n in range(len(next_own[number])):
                        ours = torch.exp(-((own[number][m] - next_own[number][n]) ** 2) / 8)
                        theirs = torch.exp(-((other[number][m] - next_other[number][n]) ** 2) / 8)
                        total = total + (ours - theirs) ** 2
    return total / len(student[0])


@pytest.mark.parametrize(
    ("k", "shapes"),
    [
        (1, [(2, 3, 3, 3), (2, 4, 2, 2)]),
        (2, [(2, 5, 2, 2), (2, 3, 3, 2), (2, 4, 5, 1)]),
        (3, [(2, 4, 4), (2, 6, 3)]),
    ],
)
def test_it_is_the_formula(random, assert_same, k: int, shapes: list[tuple[int, ...]]) -> None:
    student, teacher = [random(*shape) for shape in shapes], [random(*shape) for shape in shapes]
    for number in range(len(shapes)):

        def with_stage(f: Tensor, number: int = number) -> list[Tensor]:
            return [*student[:number], f, *student[number + 1 :]]

        assert_same(
            lambda f: kdsvd_loss(with_stage(f), teacher, k=k),
            lambda f: kdsvd_loop(with_stage(f), teacher, k),
            student[number],
        )


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6), (2, 5, 5), (2, 1, 4)])
def test_singular_vectors_have_the_numerical_gradient(random, shape: tuple[int, ...]) -> None:
    weights, count = random(shape[0], shape[2], shape[2]), min(2, *shape[1:])

    def value(matrices: Tensor) -> Tensor:
        vectors, _ = right_singular_vectors(matrices, count)
        # Products of two have no sign.
        first = vectors[..., :1]
        return (vectors @ vectors.mT * weights).sum((1, 2)) + (first @ first.mT).pow(3).sum((1, 2))

    assert torch.autograd.gradcheck(value, random(*shape).requires_grad_())


def test_a_second_derivative_is_refused_and_not_wrong(random) -> None:
    matrices = random(1, 3, 4).requires_grad_()
    value = right_singular_vectors(matrices, 1)[0].pow(4).sum()
    first = torch.autograd.grad(value, matrices, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_singular_values_are_those_over_the_largest_element(random) -> None:
    for shape in ((3, 6, 4), (3, 4, 6)):
        matrices = random(*shape)
        _, values = right_singular_vectors(matrices, 3)
        expected = torch.linalg.svdvals(matrices)[:, :3] / matrices.abs().amax((1, 2))[:, None]
        torch.testing.assert_close(values, expected)
        assert not values.requires_grad


@pytest.mark.parametrize("size", [(3, 5), (5, 3)])
def test_equal_and_zero_singular_values_have_finite_gradients(size: tuple[int, int]) -> None:
    equal = torch.eye(*size).repeat(2, 1, 1)
    low = torch.ones(2, *size)
    near = equal + 1e-7 * torch.randn(2, *size)
    for matrices in (equal, low, near, torch.zeros(2, *size), 1e-30 * low, 1e30 * near, 1e-10 * low):
        leaf = matrices.clone().requires_grad_()
        vectors, values = right_singular_vectors(leaf, 3)
        gradient = torch.autograd.grad((vectors * torch.randn(vectors.shape)).sum(), leaf)[0]
        assert vectors.isfinite().all()
        assert values.isfinite().all()
        assert gradient.isfinite().all()


def test_exact_ties_push_nothing_within_their_plane() -> None:
    matrices = torch.eye(2, dtype=torch.float64)[None].requires_grad_()
    vectors, _ = right_singular_vectors(matrices, 2)
    assert torch.equal(torch.autograd.grad(vectors.sum(), matrices)[0], torch.zeros(1, 2, 2, dtype=torch.float64))


def test_what_is_not_finite_gives_nan_and_no_error() -> None:
    for bad in (float("nan"), float("inf")):
        student = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
        student[0][0, 0, 0, 0] = bad
        assert kdsvd_loss(student, [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]).isnan()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(2, 4), st.floats(0.01, 100), st.integers(0, 10**6))
def test_scale_and_order_of_positions_do_not_matter(batch: int, channels: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def stages() -> list[Tensor]:
        # Singular values apart from each other, so that the vectors are determined.
        basis = [torch.randn(batch, 6, channels, generator=generator, dtype=torch.float64) for _ in range(2)]
        spread = 0.4 ** torch.arange(channels, dtype=torch.float64)
        return [(torch.linalg.qr(b)[0] * spread @ torch.linalg.qr(b.mT @ b)[0].mT).mT for b in basis]

    student, teacher = stages(), stages()
    assert kdsvd_loss(teacher, teacher) < 1e-20
    value = kdsvd_loss(student, teacher)
    order = torch.randperm(6, generator=generator)
    shuffled = [maps[..., order] * scale for maps in student]
    torch.testing.assert_close(kdsvd_loss(shuffled, teacher), value, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(kdsvd_loss([-maps for maps in student], teacher), value, rtol=1e-6, atol=1e-12)
    swap = torch.randperm(channels, generator=generator)
    swapped = kdsvd_loss([student[0][:, swap], student[1]], [teacher[0][:, swap], teacher[1]])
    torch.testing.assert_close(swapped, value, rtol=1e-6, atol=1e-12)


def test_vectors_are_rows_and_limit_k(random) -> None:
    student, teacher = [random(2, 3, 4), random(2, 5)], [random(2, 3, 4), random(2, 5)]
    own, other = [stage.clone() for stage in student], [stage.clone() for stage in teacher]
    own[1], other[1] = own[1][..., None], other[1][..., None]
    torch.testing.assert_close(kdsvd_loss(student, teacher, k=3), kdsvd_loop(own, other, 1))


def test_sizes_may_differ_and_tokens_have_their_channels_last(random) -> None:
    student, teacher = [random(2, 4, 3), random(2, 4, 5)], [random(2, 9, 3), random(2, 6, 5)]
    value = kdsvd_loss(student, teacher, layout="channels_last")
    maps = [stage.mT for stage in student], [teacher[0].mT.reshape(2, 3, 3, 3), teacher[1].mT]
    torch.testing.assert_close(value, kdsvd_loss(*maps))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e30])
def test_extreme_and_dead_stages_are_finite(scale: float) -> None:
    student = [(torch.randn(2, 3, 4, 4) * scale).requires_grad_(), torch.randn(2, 3, 2, 2, requires_grad=True)]
    for factor in (0.0, 1.0):
        teacher = [torch.randn(2, 3, 4, 4) * scale, torch.randn(2, 3, 2, 2) * factor]
        value = kdsvd_loss(student, teacher)
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, student))


def test_half_precision_is_computed_in_float32(random) -> None:
    student = [random(2, 3, 4, 4).bfloat16(), random(2, 4, 2, 2).bfloat16()]
    teacher = [random(2, 3, 4, 4).bfloat16(), random(2, 4, 2, 2).bfloat16()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kdsvd_loss(student, teacher)
    assert value.dtype == torch.float32
    expected = kdsvd_loss([f.double() for f in student], [f.double() for f in teacher])
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)


def test_the_module_takes_all_stages_together(random) -> None:
    student, teacher = [random(1, 3, 4, 4), random(1, 5, 2, 2)], [random(1, 3, 4, 4), random(1, 5, 2, 2)]
    teacher[0].requires_grad_()
    value = KDSVD(k=2)(student, teacher, batch=None)
    assert torch.equal(value, kdsvd_loss(student, teacher, k=2))
    assert not torch.equal(value, kdsvd_loss(student, teacher))
    assert not value.requires_grad
    assert KDSVD.joint
    assert KDSVD().adapter((2, 3, 4, 4), (2, 5, 4, 4)).weight.shape == (5, 3, 1, 1)
    assert KDSVD.default_weights == {"kdsvd": 1.0}


def test_a_student_learns_the_relation(random) -> None:
    torch.manual_seed(0)
    teacher = [F.relu(random(4, 6, 16)).float(), F.relu(random(4, 8, 4)).float()]
    student = [torch.randn_like(stage, requires_grad=True) for stage in teacher]
    optimizer = torch.optim.Adam(student, 0.05)
    values = []
    for _ in range(60):
        value = kdsvd_loss(student, teacher)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: kdsvd_loss([torch.zeros(2, 3, 4)], [torch.zeros(2, 3, 4)]), "two or more of the student"),
        (lambda: kdsvd_loss([torch.zeros(2, 3, 4)] * 2, [torch.zeros(2, 3, 4)] * 3), "not 2 and 3"),
        (lambda: kdsvd_loss([torch.zeros(2, 3, 4)] * 2, [torch.zeros(2, 5, 4)] * 2), "3 and 5 channels"),
        (lambda: kdsvd_loss([torch.zeros(2)] * 2, [torch.zeros(2)] * 2), "KDSVD needs vectors or maps"),
        (lambda: kdsvd_loss([torch.zeros(2, 3)] * 2, [torch.zeros(2, 3)] * 2, k=0), "k must be at least 1"),
        (lambda: KDSVD(k=0), "k must be at least 1"),
        (lambda: KDSVD().build([(2, 3)], [(2, 3)]), "two or more pairs of taps"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
