"""Methods of several students: each learns in a fit of its own, and the others play their roles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning.blackbox.base import KEPT, BlackBoxMethod, Example, Outcome, Prediction, Problem, Round, Rounds
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.teacher_text import TOO_LONG
from kdlightning.callbacks import LatestCheckpoint
from kdlightning.errors import ConfigurationError
from kdlightning.export import export_student
from kdlightning.generation.base import Answer, Completion, Origin, Request, Sampling
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

RECORDS = [
    {"question": f"How old is Ann in {n} years?", "answer": 7 + n, "hint": f"Add {n}.", "sum": f"7 + {n}"}
    for n in range(10)
]
FIELDS = {"hint": "hint", "sum": "sum"}


class Chain(BlackBoxMethod):
    """One student gives a hint, the other solves; a referee approves of even records, if it is asked."""

    students = ("asker", "solver")

    def __init__(self, referee: bool = False) -> None:
        self.referee = referee

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        requests = [Request(p.question, origin=Origin(p.question, "hint")) for p in problems]
        hints = yield Round("Hints", requests)
        outcomes = [
            Outcome(p.number, 0, KEPT, {"hint": answer.texts[0], "sum": p.record["sum"]})
            for p, answer in zip(problems, hints, strict=True)
        ]
        if self.referee:
            judged = yield Round("Judging", [Request(o.texts["hint"]) for o in outcomes], role="referee")
            good = [answer.texts == ["good"] for answer in judged]
            outcomes = [
                Outcome(o.record, 0, KEPT if ok else "poor", o.texts) for o, ok in zip(outcomes, good, strict=True)
            ]
        return outcomes

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        found: dict[str, list[Example]] = {"asker": [], "solver": []}
        for outcome in outcomes:
            found["asker"].append(Example(problem.number, problem.question, f" {outcome.texts['hint']}"))
            prompt = f"{problem.question} {outcome.texts['hint']}"
            for part in (outcome.texts["sum"], str(problem.gold)):
                found["solver"].append(Example(problem.number, prompt, f" {part}"))
        return found

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        hints = yield Round("Hints", [Request(p.question, sampling=Sampling(4)) for p in problems], role="asker")
        prompts = [f"{p.question} {h.texts[0].strip()}" for p, h in zip(problems, hints, strict=True)]
        answers = yield Round("Sums", [Request(prompt, sampling=Sampling(4)) for prompt in prompts], role="solver")
        return [_prediction(p, a) for p, a in zip(problems, answers, strict=True)]

    def infer_alone(
        self, student: str, problems: Sequence[Problem], outcomes: Sequence[Outcome]
    ) -> Rounds[list[Prediction]]:
        if student == "asker":
            return []
        hints = {outcome.record: outcome.texts["hint"] for outcome in outcomes}
        asked = [p for p in problems if p.number in hints]
        requests = [Request(f"{p.question} {hints[p.number]}", sampling=Sampling(4)) for p in asked]
        answers = yield Round("Sums", requests, role="solver")
        return [_prediction(p, a) for p, a in zip(asked, answers, strict=True)]


def _prediction(problem: Problem, answer: Answer) -> Prediction:
    text = answer.texts[0]
    return Prediction(problem.number, problem.question, text, text.strip(), problem.gold, text.strip() == problem.gold)


def make_student(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 280, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    return transformers_model(architecture="AutoModelForCausalLM", model_type="gpt2", config=sizes)


def make_data(folder: Path, student: str | None = "solver", **options: Any) -> BlackBoxData:
    options = {
        "recorded_fields": FIELDS,
        "store": str(folder / "text.sqlite"),
        "vocab_size": 280,
        "test_split": 2,
        "val_split": 2,
        "batch_size": 4,
        "progress": False,
    } | options
    return BlackBoxData(options.pop("method", Chain()), RECORDS, student=student, **options)


def told(monkeypatch: Any) -> list[tuple[str, str]]:
    """Students that are right without a model; who was asked what."""
    asked: list[tuple[str, str]] = []

    def generate(self: Any, requests: Sequence[Request]) -> list[Answer]:
        asked.extend((self.identity, request.text) for request in requests)
        texts = []
        for request in requests:
            number = next(n for n in range(10) if f"in {n} years" in request.text)
            texts.append(f" Add {number}." if self.identity == "asker" else f" {7 + number}")
        return [Answer(r, {0: Completion(text)}) for r, text in zip(requests, texts, strict=True)]

    monkeypatch.setattr(TransformersGenerator, "generate", generate)
    return asked


def test_each_student_gets_its_own_texts_from_one_report_and_tokenizer(tmp_path: Path) -> None:
    asker, solver = make_data(tmp_path, "asker"), make_data(tmp_path, "solver")
    asker.setup("fit")
    before = asker.report.stat().st_mtime_ns
    solver.setup("fit")
    assert solver.report == asker.report
    assert solver.report.stat().st_mtime_ns == before
    texts = {}
    for name, data in (("asker", asker), ("solver", solver)):
        pairs = data.sources.train.pairs
        texts[name] = {(data.tokenizer.decode(p.prompt), data.tokenizer.decode(p.label[:-1])) for p in pairs}
    numbers = [problem.number for problem in asker.problems["train"]]
    question = "How old is Ann in {} years?".format
    assert texts["asker"] == {(question(n), f" Add {n}.") for n in numbers}
    prompts = {n: f"{question(n)} Add {n}." for n in numbers}
    assert texts["solver"] == {(prompts[n], f" 7 + {n}") for n in numbers} | {
        (prompts[n], f" {7 + n}") for n in numbers
    }
    assert asker.tokenizer.get_vocab() == solver.tokenizer.get_vocab()


def test_validation_shows_all_texts_of_a_record_and_infers_it_once(tmp_path: Path) -> None:
    data = make_data(tmp_path, "solver", eval_batch_size=4)
    data.setup("fit")
    (batch,) = list(data.val_dataloader())
    assert len(batch.index) == 4  # two records of two texts
    assert data.evaluated("val", batch.index) == dict(zip((0, 2), data.problems["val"], strict=True))
    assert [o.record for o in data.kept("val", data.problems["val"])] == [p.number for p in data.problems["val"]]
    assert data.kept("test", data.problems["test"]) == []


def test_an_answer_too_long_for_one_student_is_dropped_for_all(tmp_path: Path) -> None:
    longest = max(len(pair) for pair in make_data(tmp_path, "solver").sources.train.pairs)
    asker, solver = (make_data(tmp_path, name, max_length=longest - 1) for name in ("asker", "solver"))
    asker.setup("fit")
    dropped = {outcome.record for outcome in asker.text.outcomes() if outcome.reason == TOO_LONG}
    assert dropped
    for data in (asker, solver):
        assert not dropped & {example.record for example in data.text.examples("train", data.text.outcomes())}


@pytest.mark.parametrize(
    ("student", "named"),
    [
        (None, r"Chain trains asker and solver, each in a fit of its own: give BlackBoxData\(student=…\)"),
        ("solve", "Chain has no student 'solve'; did you mean solver"),
    ],
)
def test_a_wrong_student_lists_the_right_ones(tmp_path: Path, student: str | None, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make_data(tmp_path, student)


def test_alone_a_student_is_judged_under_its_own_name(trainer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    asked = told(monkeypatch)
    data, run = make_data(tmp_path), trainer()
    (found,) = run.validate(BlackBoxDistillation(make_student()), datamodule=data, verbose=False)
    assert found["val/solver_acc"] == 1.0
    assert "val/acc" not in found
    assert {who for who, _ in asked} == {"solver"}
    assert [text for _, text in asked] == [f"{p.question} {p.record['hint']}" for p in data.problems["val"]]
    asker = make_data(tmp_path, "asker")
    (found,) = run.validate(BlackBoxDistillation(make_student()), datamodule=asker, verbose=False)
    assert set(found) == {"val/loss", "val/perplexity"}
    assert run.test(BlackBoxDistillation(make_student()), datamodule=data, verbose=False) == [{}]


def test_with_its_partner_the_whole_chain_answers(trainer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    asked = told(monkeypatch)
    data = make_data(tmp_path)
    module = BlackBoxDistillation(make_student(), partners={"asker": make_student(1)})
    (found,) = trainer().test(module, datamodule=data, verbose=False)
    assert found == {"test/acc": 1.0}
    assert [who for who, _ in asked] == ["asker"] * 2 + ["solver"] * 2
    rows = [json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text().splitlines()]
    assert [row["record"] for row in rows] == [p.number for p in data.problems["test"]]
    assert all(row["correct"] for row in rows)


def test_a_partner_is_never_trained_nor_saved(trainer: Any, tmp_path: Path) -> None:
    partner = make_student(1)
    before = {name: value.clone() for name, value in partner.state_dict().items()}
    module = BlackBoxDistillation(make_student(), partners={"asker": partner})
    run = trainer(callbacks=[LatestCheckpoint(dirpath=str(tmp_path / "checkpoints"))])
    run.fit(module, datamodule=make_data(tmp_path))
    assert "val/acc" in run.callback_metrics
    assert all(torch.equal(value, before[name]) for name, value in partner.state_dict().items())
    assert not any(parameter.requires_grad for parameter in partner.parameters())
    assert not partner.training
    assert all(name.startswith("student.") for name in module.state_dict())
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == set(module.state_dict())


def test_partners_come_from_exported_folders(trainer: Any, tmp_path: Path) -> None:
    asker = BlackBoxDistillation(make_student(1))
    run = trainer(callbacks=[LatestCheckpoint(dirpath=str(tmp_path / "checkpoints"))])
    run.fit(asker, datamodule=make_data(tmp_path, "asker"))
    done = export_student(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "asker", student=make_student())
    module = BlackBoxDistillation(make_student(), partners={"asker": str(done.folder)})
    trainer().validate(module, datamodule=make_data(tmp_path), verbose=False)
    loaded = module._partners["asker"]
    assert loaded.config.eos_token_id == asker.student.config.eos_token_id
    for one, other in zip(loaded.parameters(), asker.student.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("partners", "named"),
    [
        ({"askr": "x"}, "Chain has no student 'askr'; did you mean asker"),
        ({"solver": "x"}, "'solver' is the student of this run"),
        ({"asker": "nowhere.ckpt"}, "no checkpoint at nowhere.ckpt"),
        ({"asker": "."}, "is no folder of a transformers model"),
        ({"asker": 3}, "checkpoints, exported folders or networks, not int"),
    ],
)
def test_wrong_partners_are_one_sentence(
    trainer: Any, tmp_path: Path, partners: dict[str, Any], named: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    module = BlackBoxDistillation(make_student(), partners=partners)
    with pytest.raises(ConfigurationError, match=named):
        trainer().test(module, datamodule=make_data(tmp_path), verbose=False)


def test_student_and_partner_are_two_networks(trainer: Any, tmp_path: Path) -> None:
    student = make_student()
    module = BlackBoxDistillation(student, partners={"asker": student})
    with pytest.raises(ConfigurationError, match="the same object"):
        trainer().test(module, datamodule=make_data(tmp_path), verbose=False)


def test_a_referee_judges_while_collecting(tmp_path: Path) -> None:
    referee = RecordedGenerator(
        [{"prompt": f"Add {n}.", "answer": "good" if n % 2 == 0 else "poor"} for n in range(10)]
    )
    data = make_data(tmp_path, method=Chain(referee=True), referee=referee)
    data.setup("fit")
    outcomes = data.text.outcomes()
    assert all(outcome.kept == (outcome.record % 2 == 0) for outcome in outcomes)
    assert len(outcomes) == 8
    other = RecordedGenerator([{"prompt": f"Add {n}.", "answer": "good"} for n in range(10)])
    again = make_data(tmp_path, method=Chain(referee=True), referee=other)
    again.setup("fit")  # another referee: what was prepared does not count
    assert all(outcome.kept for outcome in again.text.outcomes())


def test_a_role_that_nobody_plays_names_its_option(tmp_path: Path) -> None:
    teacher = RecordedGenerator(RECORDS, "question", FIELDS)
    data = make_data(tmp_path, method=Chain(referee=True), recorded_fields=None, generator=teacher)
    with pytest.raises(ConfigurationError, match=r"nobody plays the 'referee', only teacher: give BlackBoxData\(ref"):
        data.setup("fit")


def test_students_of_an_earlier_round_can_be_asked(tmp_path: Path) -> None:
    class Imitates(Chain):
        def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
            tried = yield Round("Trying", [Request(p.question) for p in problems], role="solver")
            return [
                Outcome(p.number, 0, KEPT, {"hint": a.texts[0], "sum": ""})
                for p, a in zip(problems, tried, strict=True)
            ]

    earlier = RecordedGenerator([{"prompt": r["question"], "answer": "mine"} for r in RECORDS])
    data = make_data(tmp_path, method=Imitates(), earlier_students={"solver": earlier})
    data.setup("fit")
    assert {outcome.texts["hint"] for outcome in data.text.outcomes()} == {"mine"}
    with pytest.raises(ConfigurationError, match=r"give BlackBoxData\(earlier_students=\{solver: …\}\)"):
        make_data(tmp_path, method=Imitates()).prepare_data()
    with pytest.raises(ConfigurationError, match="Imitates has no student 'sover'; did you mean solver"):
        make_data(tmp_path, method=Imitates(), earlier_students={"sover": earlier})
