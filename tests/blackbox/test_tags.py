"""Several tasks of one student: each tag is a term, the mean over its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlightning.blackbox.base import KEPT, BlackBoxMethod, Example, Outcome, Prediction, Problem, Round, Rounds
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request, Sampling
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation
from kdlightning.schedules import StepSchedule, Weight

RECORDS = [
    {"question": f"What is {n} + {n}?", "answer": 2 * n, "why": " ".join(["twice"] * (n % 4)) + f" {n}"}
    for n in range(12)
]


class TwoTasks(BlackBoxMethod):
    """Answers for every record, explanations for every other one."""

    def __init__(self, tag_weights: dict[str, Weight] | None = None) -> None:
        self.tag_weights = {"answer": 0.25, "why": 3.0} if tag_weights is None else tag_weights

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        answers = yield Round("Explanations", [Request(p.question, sampling=Sampling(8)) for p in problems])
        return [Outcome(p.number, 0, KEPT, {"why": a.texts[0]}) for p, a in zip(problems, answers, strict=True)]

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        found = []
        for outcome in outcomes:
            found.append(Example(problem.number, problem.question, f" {problem.gold}", "answer"))
            if problem.number % 2:
                why = outcome.texts["why"]
                found.append(Example(problem.number, "Why? " + problem.question, why, "why", given=" So:"))
        return {"student": found}

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        yield from ()
        return []


def make_student() -> Any:
    torch.manual_seed(0)
    # GPT-2, whose layers stay in float64; Llama normalises in float32.
    sizes = {"vocab_size": 280, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    config = {**sizes, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return transformers_model(architecture="AutoModelForCausalLM", model_type="gpt2", config=config).double()


def make_data(folder: Path, method: BlackBoxMethod | None = None, **options: Any) -> BlackBoxData:
    options = {
        "recorded_fields": {"": "why"},
        "store": str(folder / "text.sqlite"),
        "vocab_size": 280,
        "test_split": 0,
        "val_split": 0,
        "batch_size": 2,
        "progress": False,
    } | options
    return BlackBoxData(TwoTasks() if method is None else method, RECORDS, **options)


class Watched(BlackBoxDistillation):
    """Keeps the raw batches and the logged terms of training."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.seen: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, Tensor]] = []

    def training_step(self, raw: Any, batch_idx: int) -> Tensor:
        self.seen.append(raw.data)
        return super().training_step(raw, batch_idx)

    def note_terms(self, values: dict[str, Tensor], batch_size: int) -> None:
        self.logged.append(values)
        super().note_terms(values, batch_size)


def plain_losses(student: Any, batch: dict[str, Tensor], tags: int) -> tuple[list[Tensor], int]:
    """Each tag's mean over its tokens, one row and one token after the other; and the number of all tokens."""
    sums, counts = [torch.zeros((), dtype=torch.float64) for _ in range(tags)], [0] * tags
    columns = [batch[name] for name in ("input_ids", "attention_mask", "labels", "tags")]
    for ids, mask, labels, tag in zip(*columns, strict=True):
        length = int(mask.sum())
        log_probs = student(ids[None, :length]).logits[0].log_softmax(-1)
        for place in range(1, length):
            if labels[place] != -100:
                sums[tag] = sums[tag] - log_probs[place - 1, labels[place]]
                counts[tag] += 1
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)], sum(counts)


def fit(trainer: Any, module: Any, data: Any, accumulate: int = 1, steps: int = 1) -> None:
    trainer(max_steps=steps, accumulate_grad_batches=accumulate, limit_val_batches=0).fit(module, datamodule=data)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_joint_loss_and_its_gradient_are_those_of_a_plain_loop(
    trainer: Any, tmp_path: Path, accumulate: int
) -> None:
    oracle, student = make_student(), make_student()
    module = Watched(student, optimizer=sgd, weights={"answer": 0.5}, inference_every=0)
    fit(trainer, module, make_data(tmp_path), accumulate)
    assert len(module.seen) == accumulate
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for batch, logged in zip(module.seen, module.logged, strict=True):
        (answer, why), count = plain_losses(oracle, batch, 2)
        joint = 0.5 * answer + 3.0 * why
        assert set(logged) == {"answer", "why", "loss"}
        for name, expected in {"answer": answer, "why": why, "loss": joint}.items():
            assert logged[name].item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-15)
        total, tokens = total + joint * count, tokens + count
    (total / tokens).backward()
    for ours, theirs in zip(student.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours.data, theirs.data - theirs.grad, rtol=1e-6, atol=1e-9)
    mixed = {tuple(sorted(set(batch["tags"].tolist()))) for batch in module.seen}
    assert accumulate == 1 or len(mixed) > 1  # uneven: not every micro-batch has both


def test_a_tag_without_tokens_gives_zero_and_zero_gradient(trainer: Any, tmp_path: Path) -> None:
    class OnlyAnswers(TwoTasks):
        def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
            return {"student": super().examples(problem, outcomes)["student"][:1]}

    silent, both = make_student(), make_student()
    for student, why in ((silent, 0.0), (both, 7.0)):
        module = Watched(student, optimizer=sgd, weights={"why": why}, inference_every=0)
        fit(trainer, module, make_data(tmp_path, OnlyAnswers()))
    assert module.logged[0]["why"].item() == 0.0
    for one, other in zip(silent.parameters(), both.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_given_is_fed_and_not_counted(trainer: Any, tmp_path: Path) -> None:
    data = make_data(tmp_path)
    data.setup("fit")
    (pair, *_) = [pair for pair in data.sources.train.pairs if pair.given]
    batch = data.collate_fn([pair])
    start = len(pair.prompt) + len(pair.given)
    assert data.tokenizer.decode(pair.given) == " So:"
    assert batch["input_ids"][0, len(pair.prompt) : start].tolist() == list(pair.given)
    assert (batch["labels"][0] != -100).tolist() == [False] * start + [True] * len(pair.label)
    assert batch["tags"].tolist() == [1]


def test_without_tag_weights_tags_change_nothing(trainer: Any, tmp_path: Path) -> None:
    class Untagged(TwoTasks):
        def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
            found = super().examples(problem, outcomes)["student"]
            return {"student": [Example(e.record, e.prompt, e.label, given=e.given) for e in found]}

    students, terms = [], []
    for number, method in enumerate((TwoTasks({}), Untagged({}))):
        students.append(make_student())
        module = Watched(students[-1], optimizer=sgd, inference_every=0)
        fit(trainer, module, make_data(tmp_path / str(number), method), accumulate=2)
        assert "tags" not in module.seen[0]
        terms.append(set(module.logged[0]))
    assert terms == [{"task", "loss"}] * 2
    for one, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_tag_is_logged_and_a_weight_may_be_a_schedule(trainer: Any, tmp_path: Path) -> None:
    method = TwoTasks({"answer": StepSchedule(0.0, 1.0, at=0.5), "why": 1.0})
    module = Watched(make_student(), optimizer=sgd, inference_every=0)
    run = trainer(max_steps=4, max_epochs=2, limit_val_batches=0)
    run.fit(module, datamodule=make_data(tmp_path, method, batch_size=6))
    assert [set(values) for values in module.logged] == [{"why", "loss"}] * 2 + [{"answer", "why", "loss"}] * 2
    assert {"train/loss_answer", "train/loss_why", "train/loss"} <= set(run.callback_metrics)


@pytest.mark.parametrize(
    ("method", "weights", "named"),
    [
        (TwoTasks(), {"task": 1.0}, "weigh answer and why instead of task"),
        (TwoTasks(), {"wy": 1.0}, "no term is named 'wy'; did you mean why"),
        (TwoTasks({"answer": 1.0}), {}, "the tag 'why', which has no weight"),
        (TwoTasks({"answer": 1.0, "why_peer1": 1.0, "why": 1.0}), {}, "'why_peer1' cannot be a tag"),
        (TwoTasks({}), {"why": 1.0}, "no term is named 'why'"),
    ],
)
def test_wrong_tags_and_weights_are_one_sentence(
    trainer: Any, tmp_path: Path, method: Any, weights: dict[str, float], named: str
) -> None:
    module = BlackBoxDistillation(make_student(), weights=weights)
    with pytest.raises(ConfigurationError, match=named):
        fit(trainer, module, make_data(tmp_path, method))
