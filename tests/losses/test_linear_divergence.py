from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdlightning import losses
from kdlightning.losses import linear_cross_entropy, linear_divergence

FUNCTIONS = {
    "forward_kl": {},
    "reverse_kl": {},
    "jensen_shannon": {"beta": 0.3},
    "skew_forward_kl": {"alpha": 0.2},
    "skew_reverse_kl": {"alpha": 0.2},
    "total_variation_distance": {},
}
EACH = pytest.mark.parametrize(("name", "options"), FUNCTIONS.items())


def head(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    logits = scale * (hidden @ weight.mT + (0 if bias is None else bias))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@pytest.fixture
def models(random) -> dict[str, Tensor]:
    """States, weight and bias of a student of width 4 and a teacher of width 6; 13 ids."""
    return {
        "hidden": random(3, 5, 4, scale=1.0),
        "weight": random(13, 4, scale=1.0),
        "bias": random(13, scale=1.0),
        "teacher_hidden": random(3, 5, 6, scale=1.0),
        "teacher_weight": random(13, 6, scale=1.0),
        "teacher_bias": random(13, scale=1.0),
    }


MASK = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


@EACH
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_equal_the_dense_form(models, name, options, bias, softcap, masked) -> None:
    leaves = [models[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")]
    own_bias, other_bias = (leaves[2], models["teacher_bias"]) if bias else (None, None)
    mask = MASK if masked else None
    dense = getattr(losses, name)(
        head(leaves[0], leaves[1], own_bias, softcap, 1.3),
        head(models["teacher_hidden"], models["teacher_weight"], other_bias, 5.0, 0.7),
        mask,
        temperature=1.7,
        **options,
    )
    ours = linear_divergence(
        leaves[0],
        leaves[1],
        models["teacher_hidden"],
        models["teacher_weight"],
        mask,
        divergence=name,
        temperature=1.7,
        student_bias=own_bias,
        teacher_bias=other_bias,
        student_softcap=softcap,
        teacher_softcap=5.0,
        student_logit_scale=1.3,
        teacher_logit_scale=0.7,
        chunk_size=4,
        **options,
    )
    wanted = leaves if bias else leaves[:2]
    expected = torch.autograd.grad(3 * dense, wanted)
    found = torch.autograd.grad(3 * ours, wanted)
    assert abs(ours.item() - dense.item()) < 1e-12
    for gradient, true in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, true, rtol=0, atol=1e-10 * true.abs().max().item())
        assert true.abs().max() > 1e-4


@EACH
def test_gradcheck(models, name, options) -> None:
    leaves = [models[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")]

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_divergence(
            hidden,
            weight,
            models["teacher_hidden"],
            models["teacher_weight"],
            MASK,
            divergence=name,
            student_bias=bias,
            student_softcap=4.0,
            chunk_size=3,
            reduction="sum",
            **options,
        )

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(FUNCTIONS)),
    st.integers(1, 20),
    st.lists(st.booleans(), min_size=9, max_size=9),
    st.integers(0, 10**6),
)
def test_chunks_and_uncounted_positions_change_nothing(name: str, chunk: int, kept: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, other, other_weight = draw(9, 3), draw(7, 3), draw(9, 2), draw(7, 2)
    mask = torch.tensor(kept)
    broken, broken_other = hidden.clone(), other.clone()
    broken[~mask], broken_other[~mask] = torch.nan, torch.inf
    results = []
    for states, teacher_states, size in ((hidden, other, None), (broken, broken_other, chunk)):
        leaves = [states.requires_grad_(), weight.clone().requires_grad_()]
        value = linear_divergence(
            *leaves, teacher_states, other_weight, mask, divergence=name, chunk_size=size, reduction="sum"
        )
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for found, true in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, true, rtol=1e-9, atol=1e-12)
    assert not results[1][1][~mask].any()
    if not any(kept):
        assert results[1][0] == 0
        assert not results[1][2].any()


def test_mean_of_nothing_is_zero(models) -> None:
    hidden, weight = models["hidden"].requires_grad_(), models["weight"].requires_grad_()
    value = linear_divergence(hidden, weight, models["teacher_hidden"], models["teacher_weight"], MASK * 0)
    value.backward()
    assert value == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_splitting_the_batch_splits_the_sum(models) -> None:
    arguments = [models[key] for key in ("hidden", "weight", "teacher_hidden", "teacher_weight")]
    whole = linear_divergence(*arguments, MASK, reduction="sum")
    parts = [
        linear_divergence(arguments[0][i], arguments[1], arguments[2][i], arguments[3], MASK[i], reduction="sum")
        for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_wanted_gradients_are_formed(models, needs: tuple[bool, bool]) -> None:
    products = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if "mm" in func.__name__:
                products.append(tuple(result.shape))
            return result

    hidden, weight = models["hidden"].requires_grad_(needs[0]), models["weight"].requires_grad_(needs[1])
    teacher_hidden, teacher_weight = models["teacher_hidden"], models["teacher_weight"].requires_grad_()
    with Watch():
        value = linear_divergence(hidden, weight, teacher_hidden, teacher_weight)
    assert products.count((15, 13)) == 2
    assert products.count((15, 4)) == needs[0]
    assert products.count((13, 4)) == needs[1]
    assert value.requires_grad == any(needs)
    if value.requires_grad:
        value.backward()
    assert teacher_weight.grad is None
    products.clear()
    with torch.no_grad(), Watch():
        linear_divergence(hidden, weight, teacher_hidden, teacher_weight)
    assert products == [(15, 13), (15, 13)]


def test_backward_may_run_twice(models) -> None:
    hidden = models["hidden"].requires_grad_()
    value = linear_divergence(hidden, models["weight"], models["teacher_hidden"], models["teacher_weight"])
    first = torch.autograd.grad(value, hidden, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(2 * value, hidden)[0], 2 * first)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_gradients_are_within_half_a_percent(name: str, autocast: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).bfloat16()

    tensors = [draw(64, 48), draw(500, 48, scale=0.4), draw(64, 32), draw(500, 32, scale=0.5)]
    half = [tensor.clone().requires_grad_(i < 2) for i, tensor in enumerate(tensors)]
    wide = [tensor.double().requires_grad_(i < 2) for i, tensor in enumerate(tensors)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = linear_divergence(*half, divergence=name, chunk_size=16)
    true = linear_divergence(*wide, divergence=name)
    assert value.dtype == torch.float32
    assert abs(value.item() / true.item() - 1) < 1e-5
    for found, expected in zip(torch.autograd.grad(value, half[:2]), torch.autograd.grad(true, wide[:2]), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 0.005 * expected.norm()


def test_mixed_precision_of_states_and_weight(models) -> None:
    states = models["hidden"].bfloat16().requires_grad_()
    rest = [models[key].float() for key in ("weight", "teacher_hidden", "teacher_weight")]
    value = linear_divergence(states, *rest)
    expected = linear_divergence(states.detach().float(), *rest)
    torch.testing.assert_close(value, expected)
    assert torch.autograd.grad(value, states)[0].dtype == torch.bfloat16


def test_full_logits_are_never_formed() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(512, 8, generator=generator), torch.randn(300, 8, generator=generator)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        linear_divergence(
            hidden.requires_grad_(), weight.requires_grad_(), hidden * 2, weight, chunk_size=32
        ).backward()
    assert largest == 32 * 300


@pytest.mark.parametrize("gap", [1e4, 1e30])
@EACH
def test_huge_logits_stay_finite(name, options, gap: float) -> None:
    hidden = torch.eye(3).requires_grad_()
    weight = (torch.eye(3) * gap).requires_grad_()
    value = linear_divergence(hidden, weight, torch.eye(3).roll(1, 0), weight.detach(), divergence=name, **options)
    value.backward()
    assert value.isfinite()
    assert hidden.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_a_forbidden_id_counts_for_nothing(models) -> None:
    arguments = [models[key] for key in ("hidden", "weight", "teacher_hidden", "teacher_weight")]
    closed = torch.zeros(13, dtype=torch.float64)
    closed[-2:] = -torch.inf
    for name, options in FUNCTIONS.items():
        hidden = arguments[0].clone().requires_grad_()
        value = linear_divergence(
            hidden, *arguments[1:], divergence=name, student_bias=closed, teacher_bias=closed, **options
        )
        cut = linear_divergence(
            arguments[0], arguments[1][:-2], arguments[2], arguments[3][:-2], divergence=name, **options
        )
        torch.testing.assert_close(value, cut)
        assert torch.autograd.grad(value, hidden)[0].isfinite().all()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_equals_the_dense_form(models, softcap, reduction) -> None:
    labels = torch.randint(13, (3, 5), generator=torch.Generator().manual_seed(0))
    labels[2, 4] = -100
    leaves = [models[key].clone().requires_grad_() for key in ("hidden", "weight", "bias")]
    counted = labels.masked_fill(MASK == 0, -100)
    dense = F.cross_entropy(head(*leaves, softcap, 1.3).flatten(0, 1), counted.flatten(), reduction=reduction)
    ours = linear_cross_entropy(
        leaves[0],
        leaves[1],
        labels,
        MASK,
        bias=leaves[2],
        softcap=softcap,
        logit_scale=1.3,
        chunk_size=3,
        reduction=reduction,
    )
    torch.testing.assert_close(ours, dense)
    for found, true in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(dense, leaves), strict=True):
        torch.testing.assert_close(found, true, rtol=0, atol=1e-10)
    same = linear_cross_entropy(leaves[0], leaves[1], counted, bias=leaves[2], softcap=softcap, logit_scale=1.3)
    torch.testing.assert_close(same * (7 if reduction == "sum" else 1), ours)


def test_cross_entropy_without_labels_is_zero(models) -> None:
    hidden = models["hidden"].requires_grad_()
    value = linear_cross_entropy(hidden, models["weight"], torch.full((3, 5), -100))
    value.backward()
    assert value == 0
    assert not hidden.grad.any()


ZEROS = (torch.zeros(2, 3, 4), torch.zeros(7, 4))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: linear_divergence(torch.zeros(2, 3, 5), ZEROS[1], *ZEROS), "the student's hidden states"),
        (lambda: linear_divergence(*ZEROS, torch.zeros(2, 3, 5), ZEROS[1]), "the teacher's hidden states"),
        (lambda: linear_divergence(*ZEROS, ZEROS[0], torch.zeros(8, 4)), "same positions and vocabulary"),
        (lambda: linear_divergence(*ZEROS, torch.zeros(2, 2, 4), ZEROS[1]), "same positions and vocabulary"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, torch.ones(3, 2)), r"the mask must be \(2, 3\)"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, divergence="kl"), "unknown divergence 'kl'; known: forward_kl"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, divergence="jensen_shannon", beta=2), "beta must lie"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, divergence="skew_forward_kl", alpha=1), "alpha must lie"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, temperature=0), "temperature must be above 0"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, chunk_size=0), "chunk_size must be above 0"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, student_softcap=-1), "student_softcap must be above 0"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, teacher_bias=torch.zeros(4)), "the teacher's bias must be"),
        (lambda: linear_divergence(*ZEROS, *ZEROS, reduction="none"), "reduction must be mean or sum"),  # type: ignore[arg-type]
        (lambda: linear_cross_entropy(*ZEROS, torch.zeros(2, 2, dtype=torch.int64)), r"labels must be \(2, 3\)"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
