"""Language models: one denominator for a whole accumulation window, before clipping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from kdlightning import CausalLM, ConfigurationError, ForwardKL, OfflineDistillation, ReverseKL


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def hand_loss(student: nn.Module, teacher: nn.Module, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """0.5·CE + 0.5·KL(teacher ‖ student), means over all counted tokens, from full logits."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    labels = batch.pop("labels")[:, 1:]
    ours = student(**batch).logits[:, :-1]
    with torch.no_grad():
        theirs = teacher(**batch).logits[:, :-1]
    counted = labels != -100
    ce = F.cross_entropy(ours[counted], labels[counted])
    p = theirs[counted].log_softmax(-1)
    kl = (p.exp() * (p - ours[counted].log_softmax(-1))).sum(-1).mean()
    return 0.5 * ce + 0.5 * kl


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_one_step_is_the_gradient_of_the_token_mean(
    model_type: str, language_model: Any, texts: Any, trainer: Any
) -> None:
    student = language_model(0, model_type=model_type)
    teacher = language_model(1, hidden=32, model_type=model_type).eval()
    twin = copy.deepcopy(student)
    module = OfflineDistillation(
        student, teacher=copy.deepcopy(teacher), task=CausalLM(), optimizer=plain_sgd, response=ForwardKL()
    )
    runner = trainer()
    runner.fit(module, DataLoader(texts(), 8))
    loss = hand_loss(twin, teacher, texts())
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for after, before, gradient in zip(student.parameters(), twin.parameters(), gradients, strict=True):
        assert torch.allclose(before - after, gradient, rtol=1e-3, atol=1e-6)
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("sizes", [(2, 4), (1, 8), (3, 3)])
def test_splitting_a_window_never_changes_the_update(
    clip: float | None, sizes: tuple[int, int], language_model: Any, texts: Any, trainer: Any
) -> None:
    results = []
    for batch_size, accumulate in ((8, 1), sizes):
        student, teacher = language_model(0), language_model(1, hidden=32)
        module = OfflineDistillation(student, teacher=teacher, task=CausalLM(), optimizer=plain_sgd)
        trainer(max_epochs=2, accumulate_grad_batches=accumulate, gradient_clip_val=clip).fit(
            module, DataLoader(texts(), batch_size)
        )
        results.append(student)
    for one, other in zip(*(student.parameters() for student in results), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_incomplete_last_window_is_its_own_mean(language_model: Any, texts: Any, trainer: Any) -> None:
    """Ten samples in batches of two, windows of four batches: eight samples, then two."""
    student, teacher = language_model(0), language_model(1).eval()
    twin = copy.deepcopy(student)
    module = OfflineDistillation(student, teacher=copy.deepcopy(teacher), task=CausalLM(), optimizer=plain_sgd)
    rows = texts(10)
    trainer(accumulate_grad_batches=4).fit(module, DataLoader(rows, 2))
    optimizer = plain_sgd(twin.parameters())
    for window in (rows[:8], rows[8:]):
        optimizer.zero_grad()
        hand_loss(twin, teacher, window).backward()
        optimizer.step()
    for one, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_clipping_sees_the_rescaled_gradient(language_model: Any, texts: Any, trainer: Any) -> None:
    student = language_model(0)
    before = [p.detach().clone() for p in student.parameters()]
    module = OfflineDistillation(student, teacher=language_model(1), task=CausalLM(), optimizer=plain_sgd)
    trainer(gradient_clip_val=0.01, accumulate_grad_batches=4).fit(module, DataLoader(texts(), 2))
    moved = sum(float((a.detach() - b).square().sum()) for a, b in zip(student.parameters(), before, strict=True))
    assert moved**0.5 == pytest.approx(0.01, rel=1e-3)


def test_lengths_of_the_first_batch_do_not_matter(language_model: Any, texts: Any, trainer: Any) -> None:
    """A resumed run, or another rank, begins with another batch: it must compute the same update bit for bit."""
    results = []
    for first in (texts(4, length=7, seed=1), texts(4, length=13, seed=2)):
        student = language_model(0)
        module = OfflineDistillation(student, teacher=language_model(1), task=CausalLM(), optimizer=plain_sgd)

        def rate(step: int) -> float:
            return float(step > 0)  # the first batch changes nothing

        module._make_scheduler = lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate)
        module.lr_interval = "step"
        batches = [next(iter(DataLoader(rows, 4))) for rows in (first, texts(4, length=9, seed=3))]
        trainer().fit(module, DataLoader(batches, batch_size=None))
        results.append(student)
    for one, other in zip(*(student.parameters() for student in results), strict=True):
        assert torch.equal(one, other)


def test_a_broken_off_window_leaves_nothing_behind(language_model: Any, texts: Any, trainer: Any) -> None:
    class Failing(OfflineDistillation):
        fails = True

        def distill_terms(self, step: Any) -> Any:
            if self.fails and self._window_tokens is not None:
                raise RuntimeError("on purpose")
            return {}

    student, twin = language_model(0), language_model(0)
    module = Failing(student, teacher=language_model(1), task=CausalLM(), optimizer=plain_sgd)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(accumulate_grad_batches=4).fit(module, DataLoader(texts(), 2))
    module.fails = False
    fresh = OfflineDistillation(twin, teacher=language_model(1), task=CausalLM(), optimizer=plain_sgd)
    for each in (module, fresh):
        trainer().fit(each, DataLoader(texts(), 8))
    for one, other in zip(student.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_mean_of_ones_own_counts_as_often_as_its_batch_has_tokens(
    language_model: Any, texts: Any, trainer: Any
) -> None:
    class Mine(OfflineDistillation):
        def distill_terms(self, step: Any) -> Any:
            return {"mine": step.student.hidden.square().mean()}

    student = language_model(0)
    twin = copy.deepcopy(student)
    module = Mine(
        student,
        teacher=language_model(1),
        task=CausalLM(),
        optimizer=plain_sgd,
        weights={"task": 0.0, "forward_kl": 0.0, "mine": 2.0},
    )
    rows = texts()
    trainer(accumulate_grad_batches=2).fit(module, DataLoader(rows, 4))
    total, parts = 0, []
    for part in (rows[:4], rows[4:]):
        batch = {name: torch.stack([row[name] for row in part]) for name in part[0]}
        tokens = int((batch.pop("labels")[:, 1:] != -100).sum())
        parts.append(2 * tokens * twin.model(**batch).last_hidden_state.square().mean())
        total += tokens
    gradients = torch.autograd.grad(sum(parts) / total, list(twin.model.parameters()))
    for after, before, gradient in zip(student.model.parameters(), twin.model.parameters(), gradients, strict=True):
        assert torch.allclose(before - after, gradient, rtol=1e-3, atol=1e-6)


def test_validation_scores_are_those_of_full_logits(language_model: Any, texts: Any, trainer: Any) -> None:
    student, teacher = language_model(0), language_model(1, hidden=32)
    module = OfflineDistillation(student, teacher=teacher, task=CausalLM())
    runner = trainer(callbacks=[])
    runner.validate(module, DataLoader(texts(7), 2), verbose=False)
    metrics = {name: float(value) for name, value in runner.callback_metrics.items()}
    rows = texts(7)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    labels = batch.pop("labels")[:, 1:]
    counted = labels != -100
    with torch.no_grad():
        ours, theirs = (m.eval()(**batch).logits[:, :-1][counted] for m in (student, teacher))
    nll = F.cross_entropy(ours, labels[counted])
    assert metrics["val/loss"] == pytest.approx(float(nll), rel=1e-4)
    assert metrics["val/perplexity"] == pytest.approx(float(nll.exp()), rel=1e-4)
    assert metrics["val/teacher_perplexity"] == pytest.approx(
        float(F.cross_entropy(theirs, labels[counted]).exp()), rel=1e-4
    )
    assert metrics["val/agreement"] == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))
    kl = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum") / len(ours)
    assert metrics["val/kl"] == pytest.approx(float(kl), rel=1e-4)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_a_head_that_does_more_than_a_linear_map_is_refused(
    part: str, language_model: Any, texts: Any, trainer: Any
) -> None:
    networks = {"student": language_model(0), "teacher": language_model(1)}
    network = networks[part]
    plain = network.forward

    def forward(*args: Any, **options: Any) -> Any:
        output = plain(*args, **options)
        output.logits = output.logits.tanh()
        return output

    network.forward = forward
    module = OfflineDistillation(**networks, task=CausalLM())
    with pytest.raises(ConfigurationError, match=f"{part}.*linear head"):
        trainer().fit(module, DataLoader(texts(), 8))


def test_padded_vocabulary_columns_are_cut(language_model: Any, texts: Any, trainer: Any) -> None:
    module = OfflineDistillation(
        language_model(0, vocabulary=23),
        teacher=language_model(1, vocabulary=32),
        task=CausalLM(),
        response=ReverseKL(),
    )
    runner = trainer()
    runner.fit(module, DataLoader(texts(), 4), DataLoader(texts(), 4))
    assert torch.isfinite(runner.callback_metrics["train/loss_reverse_kl"])


def test_bfloat16_mixed_precision_runs(language_model: Any, texts: Any, trainer: Any) -> None:
    module = OfflineDistillation(language_model(0), teacher=language_model(1), task=CausalLM())
    runner = trainer(precision="bf16-mixed", accumulate_grad_batches=2)
    runner.fit(module, DataLoader(texts(), 2), DataLoader(texts(), 4))
    assert torch.isfinite(runner.callback_metrics["train/loss"])


class Bigram(nn.Module):
    """A language model of plain PyTorch: no configuration, no head that is known."""

    def __init__(self, seed: int, vocabulary: int = 23) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


def test_language_models_of_plain_pytorch_learn_from_full_logits(texts: Any, trainer: Any) -> None:
    student, teacher = Bigram(0), Bigram(1)
    module = OfflineDistillation(student, teacher, task=CausalLM(), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    rows = texts()
    runner = trainer(log_every_n_steps=1)
    before = copy.deepcopy(student)
    runner.fit(module, DataLoader(rows, len(rows)), DataLoader(rows, 3))
    ids, labels = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels"))
    target = F.pad(labels[:, 1:], (0, 1), value=-100)
    counted = target != -100
    ours, theirs = (model.table(ids)[counted].log_softmax(-1) for model in (before, teacher))
    expected = (theirs.exp() * (theirs - ours)).sum(-1).mean().detach()
    assert float(runner.callback_metrics["train/loss_forward_kl"]) == pytest.approx(float(expected), rel=1e-5)
    assert {"val/perplexity", "val/kl", "val/agreement"} <= set(runner.callback_metrics)


def test_pre_logits_of_a_language_model_are_its_last_hidden_states(
    language_model: Any, texts: Any, trainer: Any
) -> None:
    from kdlightning import FeatureKD, FitNet
    from kdlightning.taps import TapReader

    student = language_model(0)
    row = {key: value[None] for key, value in texts(1)[0].items() if key != "labels"}
    output = TapReader(student, ["pre_logits"], language=True)(row)
    assert output.taps["pre_logits"] is output.hidden
    hint = FeatureKD(FitNet(relu=False), {"pre_logits": "pre_logits"})
    module = OfflineDistillation(student, language_model(1, hidden=32), task=CausalLM())
    runner = trainer(callbacks=[hint])
    runner.fit(module, DataLoader(texts(), 4))
    assert torch.isfinite(runner.callback_metrics["train/loss_fit_net"])
