"""On-policy distillation: what the student writes becomes a batch whose every counted token is its own."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlightning import (
    GKD,
    CausalLM,
    Classification,
    ConfigurationError,
    FeatureKD,
    FitNet,
    OnPolicyDistillation,
    StudentSampler,
)
from kdlightning.losses import jensen_shannon

END, PAD = 2, 0
_NAMES = ("input_ids", "attention_mask")


class Writer(nn.Module):
    """Writes what it is told, as `generate` returns it: prompts, continuation, padding after the end."""

    def __init__(self, lines: list[list[int]], pad: int = PAD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.lines = lines
        self.generation_config = SimpleNamespace(eos_token_id=END, pad_token_id=pad)
        self.seen: dict[str, Any] = {}
        self.modes: list[bool] = []

    def generate(self, **options: Any) -> Tensor:
        self.seen = options
        self.modes.append(self.training)
        longest = max(map(len, self.lines))
        pad = self.generation_config.pad_token_id
        written = torch.tensor([line + [END if pad is None else pad] * (longest - len(line)) for line in self.lines])
        return torch.cat([options["input_ids"], written], dim=1)


def prompted(prompts: list[list[int]], answers: list[list[int]], left: bool = False) -> Any:
    """A batch of prompts that do not count and answers that do, padded to one length."""
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in zip(prompts, answers, strict=True):
        pad = longest - len(prompt) - len(answer)
        fill = {"input_ids": [PAD] * pad, "attention_mask": [0] * pad, "labels": [-100] * pad}
        row = {
            "input_ids": prompt + answer,
            "attention_mask": [1] * (len(prompt) + len(answer)),
            "labels": [-100] * len(prompt) + answer,
        }
        for name in rows:
            rows[name].append(fill[name] + row[name] if left else row[name] + fill[name])
    return CausalLM().batch({name: torch.tensor(value) for name, value in rows.items()})


PROMPTS = [[5, 6, 7], [8], [9, 10]]
ANSWERS = [[11, 12], [13, 14, 15, END], [16]]


@pytest.mark.parametrize("left", [False, True])
def test_prompts_are_what_comes_before_the_first_counted_token(left: bool) -> None:
    model = Writer([[3]] * 3)
    # A prompt of one token could be packed text as well; here the others say what the data are.
    StudentSampler(prompt_tokens=1)(model, prompted(PROMPTS, ANSWERS, left))
    ids, attention = model.seen["input_ids"], model.seen["attention_mask"]
    assert [row[mask.bool()].tolist() for row, mask in zip(ids, attention, strict=True)] == PROMPTS
    assert all(mask.tolist() == sorted(mask.tolist()) for mask in attention)  # padded on the left


@pytest.mark.parametrize("pad", [PAD, END, None])
@pytest.mark.parametrize("left", [False, True])
def test_the_first_end_counts_and_nothing_after_it(pad: int | None, left: bool) -> None:
    lines = [[20, 21, END], [22], [23, END]]
    lines[1] += [24, 25]  # never ends
    batch = StudentSampler(prompt_tokens=1)(Writer(lines, pad), prompted(PROMPTS, ANSWERS, left))
    expected = [[20, 21, END], [22, 24, 25], [23, END]]
    for row in range(3):
        ids, attention = batch.inputs["input_ids"][row], batch.inputs["attention_mask"][row]
        real = ids[attention.bool()].tolist()
        assert real == PROMPTS[row] + expected[row]
        assert attention.tolist() == [1] * len(real) + [0] * (len(ids) - len(real))  # padding moved to the right
        assert batch.target[row][batch.mask[row]].tolist() == expected[row]
        # entry t is the token that is predicted at t
        at = batch.mask[row].nonzero().flatten().tolist()
        assert [ids[t + 1].item() for t in at] == expected[row]


def test_packed_text_is_continued_after_its_beginning() -> None:
    ids = torch.arange(3, 23).view(2, 10)
    model = Writer([[20], [21]])
    batch = StudentSampler(prompt_tokens=4)(model, CausalLM().batch({"input_ids": ids}))
    assert torch.equal(model.seen["input_ids"], ids[:, :4])
    assert batch.mask.sum() == 2


def test_short_packed_text_keeps_one_token_to_write() -> None:
    ids = torch.tensor([[5, 6, 7, PAD, PAD, PAD], [8, 9, 10, 11, 12, 13]])
    model = Writer([[20], [21]])
    StudentSampler(prompt_tokens=4)(model, CausalLM().batch({"input_ids": ids, "attention_mask": (ids != PAD).long()}))
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*map(model.seen.get, _NAMES), strict=True)]
    assert prompts == [[5, 6], [8, 9, 10, 11]]


def test_modes_are_what_they_were() -> None:
    model = Writer([[3]] * 3)
    model.frozen = nn.BatchNorm1d(2).eval()
    model.train()
    model.frozen.eval()
    StudentSampler()(model, prompted(PROMPTS, ANSWERS))
    assert model.modes == [False]
    assert model.training
    assert not model.frozen.training


def test_real_generation_equals_the_librarys(language_model: Any, texts: Any) -> None:
    model = language_model(0).eval()
    rows = texts(4)
    batch = CausalLM().batch({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
    written = StudentSampler(max_new_tokens=5, temperature=0, prompt_tokens=1)(model, batch)
    for number, row in enumerate(rows):
        prompt = row["input_ids"][: 1 + number % 4][None]
        line = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=5, pad_token_id=0
        )[0]
        real = written.inputs["input_ids"][number][written.inputs["attention_mask"][number].bool()]
        assert torch.equal(real, line)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_loss_is_the_divergence_on_the_chosen_text(share: float, language_model: Any, texts: Any, trainer: Any) -> None:
    student, teacher = language_model(0), language_model(1).eval()
    twin = copy.deepcopy(student)
    sampler = StudentSampler(max_new_tokens=6, temperature=0, prompt_tokens=1)
    module = OnPolicyDistillation(
        student,
        copy.deepcopy(teacher),
        task=CausalLM(),
        objective=GKD(beta=0.3, student_share=share),
        generator=sampler,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
    )
    runner = trainer()
    runner.fit(module, DataLoader(texts(), 8))
    batch = CausalLM().batch(next(iter(DataLoader(texts(), 8))))
    if share:
        batch = sampler(twin, batch)
    ours = twin(**batch.inputs).logits
    with torch.no_grad():
        theirs = teacher(**batch.inputs).logits
    loss = jensen_shannon(ours, theirs, batch.mask, beta=0.3)
    assert float(runner.callback_metrics["train/loss_gkd"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert float(runner.callback_metrics["train/loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    for after, before, gradient in zip(student.parameters(), twin.parameters(), gradients, strict=True):
        assert torch.allclose(before - after, gradient, rtol=1e-3, atol=1e-6)


def test_share_of_steps_on_its_own_text(language_model: Any) -> None:
    module = OnPolicyDistillation(
        language_model(0), language_model(1), task=CausalLM(), objective=GKD(student_share=0.3)
    )
    module._trainer = SimpleNamespace(global_step=0)
    module._seed = 5
    tosses = []
    for step in range(400):
        type(module).global_step = property(lambda self, step=step: step)
        tosses.append(module.writes_itself())
        assert module.writes_itself() == tosses[-1]
    del type(module).global_step
    assert 0.2 < sum(tosses) / 400 < 0.4


def test_feature_term_on_its_own_text(language_model: Any, texts: Any, trainer: Any) -> None:
    module = OnPolicyDistillation(
        language_model(0), language_model(1, hidden=32), task=CausalLM(), objective=GKD(student_share=1.0)
    )
    runner = trainer(
        callbacks=[FeatureKD(FitNet(relu=False), {"hidden_states.1": "hidden_states.1"}, weight=2.0)],
        accumulate_grad_batches=2,
    )
    runner.fit(module, DataLoader(texts(), 4), DataLoader(texts(), 4))
    m = runner.callback_metrics
    assert float(m["train/loss"]) == pytest.approx(float(m["train/loss_gkd"] + 2 * m["train/loss_fit_net"]), rel=1e-4)


def test_wrong_parts_are_refused(language_model: Any, net: Any) -> None:
    with pytest.raises(ConfigurationError, match="CausalLM"):
        OnPolicyDistillation(language_model(0), language_model(1), task=Classification(5))
    with pytest.raises(ConfigurationError, match="generate"):
        OnPolicyDistillation(net(4, 0), net(4, 1), task=CausalLM())
    with pytest.raises(ConfigurationError, match="student_share"):
        GKD(student_share=1.5)
    with pytest.raises(ConfigurationError, match="max_new_tokens"):
        StudentSampler(max_new_tokens=0)


def test_bfloat16_mixed_precision_runs(language_model: Any, texts: Any, trainer: Any) -> None:
    module = OnPolicyDistillation(language_model(0), language_model(1), task=CausalLM())
    runner = trainer(precision="bf16-mixed")
    runner.fit(module, DataLoader(texts(), 4))
    assert torch.isfinite(runner.callback_metrics["train/loss"])


@pytest.mark.parametrize(("share", "steps"), [(0.0, 4), (1.0, 0)])
def test_labels_count_in_steps_on_the_datas_text_alone(
    share: float, steps: int, language_model: Any, texts: Any, trainer: Any
) -> None:
    module = OnPolicyDistillation(
        language_model(0),
        language_model(1),
        task=CausalLM(),
        objective=GKD(student_share=share),
        generator=StudentSampler(max_new_tokens=4),
        weights={"task": 1.0},
    )
    calls = []
    plain = module.task.loss
    module.task.loss = lambda *args: calls.append(1) or plain(*args)  # type: ignore[method-assign, func-returns-value]
    trainer().fit(module, DataLoader(texts(), 2))
    assert len(calls) == steps
