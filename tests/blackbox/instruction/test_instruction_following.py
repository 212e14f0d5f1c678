"""The imitation stage: what is asked, what is dropped, what the student learns, and how it is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, problems_from
from kdlightning.blackbox.instruction.instruction_following import CUT, EMPTY, NO_TEXT, REFUSED, InstructionFollowing
from kdlightning.blackbox.sequences import tokenize
from kdlightning.errors import ConfigurationError, MissingExtraError
from kdlightning.generation.base import Answer, Completion
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import field_of
from kdlightning.text.tokenizers import train_tokenizer

BARE = Problem(0, "Name a tree.", "An oak.", {"input": ""})
WITH_INPUT = Problem(1, "Translate into French.", "Un chêne.", {"input": " An oak. "})


def answered(requests: Any, *completions: Completion | None) -> list[Answer]:
    return [
        Answer(request, {} if one is None else {0: one}) for request, one in zip(requests, completions, strict=True)
    ]


def finish(rounds: Any, answers: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(answers)
    return end.value.value


def test_the_teacher_is_asked_as_the_student_will_be() -> None:
    method = InstructionFollowing("input")
    (current,) = [next(method.collect([BARE, WITH_INPUT]))]
    one, other = current.requests
    assert one.prompt == "### Instruction:\nName a tree.\n\n### Response:\n"
    assert other.prompt == "### Instruction:\nTranslate into French.\n\nAn oak.\n\n### Response:\n"
    assert (one.samples, one.sampling.max_tokens, one.sampling.temperature) == (1, 1024, 0.7)
    assert [method.prompt(problem) for problem in (BARE, WITH_INPUT)] == [one.prompt, other.prompt]


def test_a_system_prompt_makes_messages() -> None:
    method = InstructionFollowing(system_prompt="instruction_following/system.jinja")
    request = method.teacher_request(BARE)
    system = "You are a helpful assistant that generates a response to a given task instruction."
    assert request.messages[0] == {"role": "system", "content": system}
    assert request.messages[1]["content"] == method.prompt(BARE)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (Completion(" An oak.\n"), KEPT),
        (Completion(" \n"), EMPTY),
        (Completion("An oak is", "length"), CUT),
        (None, NO_TEXT),
        (Completion("I'm sorry, but I can't help with that."), REFUSED),
        (Completion("I’m sorry, I cannot do that."), REFUSED),
        (Completion("As an AI language model, I do not have personal opinions."), REFUSED),
        (Completion("Unfortunately, I cannot provide that."), REFUSED),
        (Completion("I cannot believe my eyes: an oak!"), KEPT),
        (Completion("As an AI, I believe that it is both."), KEPT),
        (Completion("I'm sorry to hear that you have lost your tree."), KEPT),
    ],
)
def test_each_dropped_answer_has_its_reason(said: Completion | None, reason: str) -> None:
    rounds = InstructionFollowing().collect([BARE])
    (outcome,) = finish(rounds, answered(next(rounds).requests, said))
    assert outcome.reason == reason
    assert outcome.texts == ({} if said is None else {"response": said.text.strip()})


def test_a_failure_says_why_and_refusals_and_cut_answers_can_be_kept() -> None:
    method = InstructionFollowing(refusal="", keep_cut=True)
    rounds = method.collect([BARE, WITH_INPUT])
    said = answered(next(rounds).requests, None, Completion("I'm sorry, but I can't", "length"))
    said[0].failures[0] = "timed out"
    first, second = finish(rounds, said)
    assert (first.reason, first.detail, second.reason) == (NO_TEXT, "timed out", KEPT)


def test_the_student_learns_the_answer_alone() -> None:
    method = InstructionFollowing("input")
    outcome = Outcome(1, 0, KEPT, {"response": "Un chêne."})
    (example,) = method.examples(WITH_INPUT, [outcome])["student"]
    assert example.prompt == "### Instruction:\nTranslate into French.\n\nAn oak.\n\n### Response:\n"
    assert example.label == "Un chêne."
    tokenizer = train_tokenizer([example.prompt + example.label], 300, "bpe")
    pair = tokenize(example, tokenizer)
    assert tokenizer.decode(pair.label) == "Un chêne.<|endoftext|>"
    assert tokenizer.decode(pair.prompt) == example.prompt
    assert method.examples(WITH_INPUT, [Outcome(1, 0, EMPTY, {"response": ""})]) == {"student": []}


def test_a_chat_template_is_a_template_too(tmp_path: Path) -> None:
    method = InstructionFollowing("input", student_prompt="instruction_following/chatml.jinja")
    assert method.prompt(BARE) == "<|im_start|>user\nName a tree.<|im_end|>\n<|im_start|>assistant\n"
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ record.topic }}: {{ instruction }}")
    assert (
        InstructionFollowing(teacher_prompt=str(mine))
        .teacher_request(Problem(0, "Name one.", None, {"topic": "trees"}))
        .prompt
        == "trees: Name one."
    )


def test_the_student_answers_greedily_and_is_scored_by_rouge() -> None:
    method = InstructionFollowing(inference_tokens=99)
    problems = [BARE, Problem(1, "q", "the cat sat on the mat"), Problem(2, "q", None)]
    rounds = method.infer(problems)
    current = next(rounds)
    assert current.role == "student"
    assert current.requests[0].prompt == method.prompt(BARE)
    assert current.requests[0].sampling.greedy
    assert current.requests[0].sampling.max_tokens == 99
    said = [Completion(text) for text in (" an  OAK. ", "the dog sat on a mat", "something")]
    predictions = finish(rounds, answered(current.requests, *said))
    assert [(p.text, p.correct) for p in predictions] == [
        ("an  OAK.", True),
        ("the dog sat on a mat", False),
        ("something", False),
    ]
    # "the sat on mat" are 4 of 6 words; the record without a gold answer does not count.
    assert method.metrics(predictions) == {"rouge_l": pytest.approx((1 + 4 / 6) / 2)}
    assert method.metrics(predictions[2:]) == {}


def test_recorded_answers_to_one_instruction_are_told_apart_by_their_input() -> None:
    records = [{"instruction": "Translate.", "input": word, "output": word.upper()} for word in ("oak", "elm", "ash")]
    method = InstructionFollowing("input")
    problems = problems_from(records, method, "instruction", "output")
    assert method.context_fields == {"input": "input"}
    teacher = RecordedGenerator(records, "instruction", {**method.context_fields, "response": "output"})
    outcomes, _ = collect(method, problems[::-1], teacher, progress=False)
    assert [outcome.texts["response"] for outcome in outcomes] == ["ASH", "ELM", "OAK"]


def test_the_data_look_recorded_answers_up_by_the_input(tmp_path: Path) -> None:
    from kdlightning import BlackBoxData

    records = [
        {"instruction": "Say it loudly.", "input": word + end, "output": (word + end).upper()}
        for word in ("oak", "elm", "ash")
        for end in ("", "s", " tree", " leaf")
    ]
    data = BlackBoxData(
        InstructionFollowing("input"),
        records,
        question_field="instruction",
        gold_field="output",
        recorded_fields={"response": "output"},
        store=str(tmp_path / "s.sqlite"),
        folder=str(tmp_path / "here"),
        vocab_size=300,
        progress=False,
    )
    data.prepare_data()
    assert data.report == tmp_path / "here" / "report.jsonl"
    outcomes = {outcome.record: outcome for outcome in data.text.outcomes()}
    for problem in data.problems["train"]:
        assert outcomes[problem.number].texts["response"] == problem.gold


def test_a_dotted_field_may_have_a_name_with_dots() -> None:
    record = {"outputs": {"phi-1.5": "x", "v2": {"a.b": "y"}}, "o.p": "z"}
    assert field_of(record, "outputs.phi-1.5") == "x"
    assert field_of(record, "outputs.v2.a.b") == "y"
    assert field_of(record, "o.p") == "z"
    for name in ("outputs.phi-2", "outputs.phi-1", "outputs.v2.a.c", "output", "o.p.q"):
        with pytest.raises(ConfigurationError, match=f"the records have no field '{name}'"):
            field_of(record, name)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"student_kind": "encoder"}, "student_kind"),
        ({"refusal": "(sorry"}, "refusal is no regular expression"),
        ({"teacher_temperature": -1.0}, "temperature"),
        ({"teacher_tokens": 0}, "max_tokens"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        InstructionFollowing(**options)


def test_a_missing_input_field_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no field 'inputs'; did you mean input"):
        next(InstructionFollowing("inputs").collect([BARE]))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"InstructionFollowing needs rouge-score: .*kdlightning\[rouge\]"):
        InstructionFollowing()


def test_methods_of_equal_options_are_equal_and_show_the_same() -> None:
    assert InstructionFollowing("input") == InstructionFollowing("input")
    assert repr(InstructionFollowing("input")) == repr(InstructionFollowing("input"))
    assert repr(InstructionFollowing("input")) != repr(InstructionFollowing())


# -- real data -----------------------------------------------------------------------------------------------------


def real(folder: Path, name: str) -> list[Any]:
    from kdlightning.generation.records import load_records

    return load_records(folder / "instruct" / f"{name}.jsonl.gz", "test")


def collected(records: list[Any], answer: str, input_field: str | None) -> dict[str, int]:
    method = InstructionFollowing(input_field)
    problems = problems_from(records, method, "instruction", answer)
    fields = {**method.context_fields, "response": answer}
    outcomes, _ = collect(method, problems, RecordedGenerator(records, "instruction", fields), progress=False)
    for problem, outcome in zip(problems, outcomes, strict=True):
        assert not outcome.kept or outcome.texts["response"]
        assert problem.number == outcome.record
    return count_reasons(outcomes)


def test_real_triples_have_their_own_answers(data_folder: Path) -> None:
    records = real(data_folder, "rasbt_instruction_data")
    assert collected(records, "output", "input") == {KEPT: 1100}


def test_one_of_six_real_teachers_is_chosen_by_a_dotted_field(data_folder: Path) -> None:
    records = real(data_folder, "alpaca_eval_teachers_a")
    counts = {name: collected(records, f"outputs.{name}", None) for name in records[0]["outputs"]}
    assert counts == {
        "falcon-7b-instruct": {KEPT: 390, REFUSED: 10},
        "falcon-40b-instruct": {KEPT: 371, REFUSED: 29},
        "Mistral-7B-Instruct-v0.2": {KEPT: 399, REFUSED: 1},
        "Mixtral-8x7B-Instruct-v0.1": {KEPT: 400},
        "zephyr-7b-beta": {KEPT: 399, REFUSED: 1},
        "phi-2": {KEPT: 399, NO_TEXT: 1},
    }
