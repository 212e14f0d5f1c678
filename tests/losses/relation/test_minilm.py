"""MiniLM's relations against loops over tokens; padding; what lies in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdlightning import Batch, MiniLM, MiniLMRelation
from kdlightning.losses import LossContext, minilm_loss, minilm_relation_loss
from kdlightning.losses.relation import token_relations
from kdlightning.losses.relation.token_relations import relation_divergence

LENGTHS = (5, 3, 1)


def row_loop(first: Tensor, second: Tensor, token: int, tokens: int) -> list[Tensor]:
    """softmax over the tokens of one text and head: `first` and `second` are `(tokens, d)`."""
    scores = [(first[token] * second[other]).sum() / math.sqrt(first.shape[1]) for other in range(tokens)]
    powers = [torch.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def divergence_loop(student: tuple, teacher: tuple, lengths: tuple[int, ...], heads: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for text, tokens in enumerate(lengths):
        for head in range(heads):
            parts = []
            for projection in (*student, *teacher):
                width = projection.shape[2] // heads
                parts.append(projection[text, :, head * width : (head + 1) * width])
            for token in range(tokens):
                own, target = row_loop(*parts[:2], token, tokens), row_loop(*parts[2:], token, tokens)
                for q, p in zip(own, target, strict=True):
                    total = total + p * torch.log(p / q) / (tokens * heads * len(lengths))
    return total


def relation_loop(student: tuple, teacher: tuple, lengths: tuple[int, ...], heads: int) -> Tensor:
    pairs = zip(student, teacher, strict=True)
    return sum(
        (divergence_loop((ours, ours), (theirs, theirs), lengths, heads) for ours, theirs in pairs),
        torch.zeros((), dtype=torch.float64),
    )


def minilm_loop(student: tuple, teacher: tuple, lengths: tuple[int, ...], heads: int) -> Tensor:
    (q, k, v), (other_q, other_k, other_v) = student, teacher
    attention = divergence_loop((q, k), (other_q, other_k), lengths, heads)
    return attention + divergence_loop((v, v), (other_v, other_v), lengths, heads)


def mask_of(lengths: tuple[int, ...], length: int) -> Tensor:
    return torch.tensor([[int(place < tokens) for place in range(length)] for tokens in lengths])


def projections(random: Any, batch: int, length: int, width: int, scale: float = 1.5) -> tuple[Tensor, ...]:
    return tuple(random(batch, length, width, scale=scale) for _ in range(3))


def values_and_gradients(function: Callable[[tuple], Tensor], student: tuple) -> tuple[Tensor, ...]:
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in student)
    value = function(leaves)
    return (value.detach(), *torch.autograd.grad(value, leaves))


def assert_equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    assert all(part.abs().max() > 1e-6 for part in other)


@pytest.mark.parametrize(("width", "other", "heads"), [(6, 6, 1), (4, 8, 2), (12, 4, 4)])
@pytest.mark.parametrize("lengths", [(5, 5, 5), LENGTHS])
def test_relations_are_the_formula(random, width: int, other: int, heads: int, lengths: tuple[int, ...]) -> None:
    student, teacher = projections(random, 3, 5, width), projections(random, 3, 5, other)
    mask = None if lengths == (5, 5, 5) else mask_of(lengths, 5)
    ours = values_and_gradients(lambda s: minilm_relation_loss(s, teacher, mask, relation_heads=heads), student)
    assert_equal(ours, values_and_gradients(lambda s: relation_loop(s, teacher, lengths, heads), student))


@pytest.mark.parametrize(("width", "other", "heads"), [(6, 6, 1), (4, 8, 2)])
@pytest.mark.parametrize("lengths", [(5, 5, 5), LENGTHS])
def test_attention_and_values_are_the_formula(
    random, width: int, other: int, heads: int, lengths: tuple[int, ...]
) -> None:
    student, teacher = projections(random, 3, 5, width), projections(random, 3, 5, other)
    mask = None if lengths == (5, 5, 5) else mask_of(lengths, 5)
    ours = values_and_gradients(lambda s: minilm_loss(s, teacher, mask, heads=heads), student)
    assert_equal(ours, values_and_gradients(lambda s: minilm_loop(s, teacher, lengths, heads), student))


@pytest.mark.parametrize("entries", [1, 30, 10**9])
def test_parts_change_nothing(random, monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    student, teacher = projections(random, 3, 5, 4), projections(random, 3, 5, 8)
    mask = mask_of(LENGTHS, 5)

    def loss(own: tuple) -> Tensor:
        return minilm_relation_loss(own, teacher, mask, relation_heads=2)

    expected = values_and_gradients(loss, student)
    monkeypatch.setitem(token_relations._ENTRIES, "cpu", entries)
    assert_equal(values_and_gradients(loss, student), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_the_difference_quotient(random, masked: bool) -> None:
    mask = mask_of((3, 2), 3).bool() if masked else None
    teacher = (random(2, 3, 4), random(2, 3, 4))
    student = (random(2, 3, 6).requires_grad_(), random(2, 3, 6).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: relation_divergence((a, b), teacher, mask, 2), student)
    twice = student[0]
    assert torch.autograd.gradcheck(lambda a: relation_divergence((a, a), teacher, mask, 2), twice)


def test_a_second_derivative_is_refused(random) -> None:
    student = random(1, 3, 2).requires_grad_()
    value = relation_divergence((student, student), (random(1, 3, 2),) * 2, None, 1)
    (gradient,) = torch.autograd.grad(value, student, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 4), st.booleans(), st.integers(0, 10**6))
def test_padding_changes_no_value_and_no_gradient(lengths: list[int], more: int, left: bool, seed: int) -> None:
    """Whatever stands in it, however much of it there is and on whichever side."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    texts = [[draw(tokens, width) for width in (4, 4, 4, 8, 8, 8)] for tokens in lengths]
    length = max(lengths) + more
    places = [slice(length - n, length) if left else slice(n) for n in lengths]
    mask = torch.zeros(len(lengths), length)
    padded = [100 * draw(len(lengths), length, width) for width in (4, 4, 4, 8, 8, 8)]
    for number, (text, place) in enumerate(zip(texts, places, strict=True)):
        mask[number, place] = 1
        for whole, part in zip(padded, text, strict=True):
            whole[number, place] = part
    for loss in (
        lambda s, t, m: minilm_relation_loss(s, t, m, relation_heads=2),
        lambda s, t, m: minilm_loss(s, t, m, heads=2),
    ):
        leaves = [tensor.requires_grad_() for tensor in padded[:3]]
        value = loss(tuple(leaves), tuple(padded[3:]), mask)
        gradients = torch.autograd.grad(value, leaves)
        apart = []
        for number, (text, place) in enumerate(zip(texts, places, strict=True)):
            alone = [tensor[None].detach().clone().requires_grad_() for tensor in text]
            apart.append(loss(tuple(alone[:3]), tuple(alone[3:]), None))
            for gradient, own in zip(gradients, torch.autograd.grad(apart[-1], alone[:3]), strict=True):
                torch.testing.assert_close(gradient[number, place] * len(lengths), own[0])
                outside = gradient[number][mask[number] == 0]
                assert torch.equal(outside, torch.zeros_like(outside))
        torch.testing.assert_close(value, torch.stack(apart).mean())


def test_one_token_relates_to_itself_alone(random) -> None:
    student = projections(random, 2, 1, 4)
    values = values_and_gradients(
        lambda s: minilm_relation_loss(s, projections(random, 2, 1, 8), None, relation_heads=2), student
    )
    for value in values:
        torch.testing.assert_close(value, torch.zeros_like(value))


def test_a_text_without_tokens_adds_nothing(random) -> None:
    student, teacher = projections(random, 2, 3, 4), projections(random, 2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    value, *gradients = values_and_gradients(
        lambda s: minilm_relation_loss(s, teacher, mask, relation_heads=2), student
    )
    whole = minilm_relation_loss(tuple(t[:1] for t in student), tuple(t[:1] for t in teacher), None, relation_heads=2)
    torch.testing.assert_close(value, whole / 2)
    assert all(gradient[1].abs().max() == 0 for gradient in gradients)


def test_equal_networks_differ_in_nothing_and_the_teacher_gets_no_gradient(random) -> None:
    student = tuple(tensor.requires_grad_() for tensor in projections(random, 2, 4, 8))
    teacher = tuple(tensor.detach().clone().requires_grad_() for tensor in student)
    for value in (
        minilm_relation_loss(student, teacher, None, relation_heads=4),
        minilm_loss(student, teacher, None, heads=4),
    ):
        assert abs(value.item()) < 1e-12
        value.backward()
        assert all(tensor.grad.abs().max() < 1e-12 for tensor in student)
        assert all(tensor.grad is None for tensor in teacher)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e4, 1e8])
def test_values_and_gradients_stay_finite(random, scale: float) -> None:
    student = [(scale * tensor.float()).requires_grad_() for tensor in projections(random, 2, 4, 8)]
    teacher = [scale * tensor.float() for tensor in projections(random, 2, 4, 4)]
    loss = minilm_relation_loss(tuple(student), tuple(teacher), mask_of((4, 2), 4), relation_heads=2)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(random, dtype: torch.dtype) -> None:
    student = [tensor.to(dtype).requires_grad_() for tensor in projections(random, 2, 6, 8)]
    teacher = [tensor.to(dtype) for tensor in projections(random, 2, 6, 8)]
    for loss in (
        lambda s, t: minilm_relation_loss(tuple(s), tuple(t), mask_of((6, 3), 6), relation_heads=2),
        lambda s, t: minilm_loss(tuple(s), tuple(t), mask_of((6, 3), 6), heads=2),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(student, teacher)
        gradients = torch.autograd.grad(value, student)
        assert value.dtype == torch.float32
        assert all(gradient.dtype == dtype for gradient in gradients)
        wide = [tensor.detach().double().requires_grad_() for tensor in student]
        exact = loss(wide, [tensor.double() for tensor in teacher])
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-7)
        for gradient, true in zip(gradients, torch.autograd.grad(exact, wide), strict=True):
            torch.testing.assert_close(gradient.double(), true, rtol=2e-2, atol=1e-4)


def test_nothing_of_a_relations_size_is_kept_for_the_backward_pass(random) -> None:
    batch, length, width = 2, 40, 4
    student = [tensor.requires_grad_() for tensor in projections(random, batch, length, width)]
    teacher = projections(random, batch, length, width)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        minilm_relation_loss(tuple(student), teacher, None, relation_heads=2)
        minilm_loss(tuple(student), teacher, None, heads=2)
    assert saved
    assert max(saved) <= batch * length * width


class _Peak(TorchDispatchMode):
    """The most entries that tensors hold at one time, of those as large as a matrix of relations or larger."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.peak, self.alive = least, 0, 0
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.untyped_storage().nbytes() < self.least * tensor.element_size():
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.storages:
                self.storages[key] = size = storage.nbytes() // tensor.element_size()
                self.alive += size
                weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.alive)
        return result

    def _gone(self, key: int) -> None:
        self.alive -= self.storages.pop(key, 0)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("heads", [2, 12])
def test_memory_holds_less_than_one_relation_of_both_networks(random, batch: int, heads: int) -> None:
    length, width = 64, 12
    relation = batch * heads * length * length
    student = tuple(tensor.requires_grad_() for tensor in projections(random, batch, length, width))
    teacher = projections(random, batch, length, width)
    for loss in (
        lambda: minilm_relation_loss(student, teacher, torch.ones(batch, length), relation_heads=heads),
        lambda: minilm_loss(student, teacher, torch.ones(batch, length), heads=heads),
    ):
        with _Peak(least=length * length) as memory:
            value = loss()
        assert 0 < memory.peak <= 1.5 * relation, "and both networks have one of three kinds each"
        with _Peak(least=length * length) as memory:
            value.backward()
        assert memory.peak == 0


def channels_first(projection: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.transpose(1, 2) for tensor in projection]


def test_the_modules_read_the_batchs_mask(random) -> None:
    student, teacher = projections(random, 3, 5, 4), projections(random, 3, 5, 8)
    batch = Batch({"attention_mask": mask_of(LENGTHS, 5)}, size=3)
    ours, theirs = channels_first(student), channels_first(teacher)
    value = MiniLMRelation(relation_heads=2)(ours, theirs, batch=batch)
    torch.testing.assert_close(value, relation_loop(student, teacher, LENGTHS, 2))
    loss = MiniLM()
    net = torch.nn.Identity()
    loss.bind(LossContext(net, net, ("q", "k", "v"), ("q", "k", "v"), student_heads=(2,) * 3, teacher_heads=(2,) * 3))
    torch.testing.assert_close(loss(ours, theirs, batch=batch), minilm_loop(student, teacher, LENGTHS, 2))


def test_bad_input(random) -> None:
    student, teacher = projections(random, 2, 3, 4), projections(random, 2, 3, 6)
    with pytest.raises(ValueError, match="relation_heads=4 does not divide the width 6"):
        minilm_relation_loss(student, teacher, None, relation_heads=4)
    with pytest.raises(ValueError, match=r"of the same tokens \(batch, length\): \(2, 3\) and \(2, 5\)"):
        minilm_relation_loss(student, projections(random, 2, 5, 4), None, relation_heads=2)
    with pytest.raises(ValueError, match="relation_heads is 0"):
        MiniLMRelation(relation_heads=0)
    net = torch.nn.Identity()
    with pytest.raises(ValueError, match="queries, the keys and the values of one layer"):
        MiniLMRelation().bind(LossContext(net, net, ("queries.0",), ("queries.0",)))
    with pytest.raises(ValueError, match="student has 2 attention heads and the teacher 4"):
        MiniLM().bind(
            LossContext(net, net, ("a", "b", "c"), ("a", "b", "c"), student_heads=(2,) * 3, teacher_heads=(4,) * 3)
        )
