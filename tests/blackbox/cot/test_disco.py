"""DISCO: its requests, its rounds, its outcomes, and the files that it writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Outcome, Problem, collect, count_reasons, problems_from
from kdlightning.blackbox.cot import disco
from kdlightning.blackbox.cot.disco import DISCO, LOW_SCORE, NO_SCORE, NO_SPAN, NO_TEXT, NOT_IN_SENTENCE, REPEATED
from kdlightning.blackbox.cot.disco_filters import EMPTY, IN_PREMISE
from kdlightning.blackbox.cot.disco_spans import span_of, windows
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.generation.records import load_records
from kdlightning.generation.store import CompletionStore

RECORD = {
    "guid": "7",
    "premise": "A man in a red coat waits for the tram.",
    "hypothesis": "A person is waiting.",
    "label": "entailment",
    "new_label": "neutral",
    "span": "waits for the tram",
}
BARE = {"demonstrations": 0}


def problem(**changes: Any) -> Problem:
    (found,) = problems_from([RECORD | changes], DISCO(), "guid", "label")
    return found


def answered(requests: Sequence[Request], *texts: list[str]) -> list[Answer]:
    return [
        Answer(request, {number: Completion(text) for number, text in zip(request.numbers, row, strict=False)})
        for request, row in zip(requests, texts, strict=True)
    ]


def finish(rounds: Any, answers: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(answers)
    return end.value.value


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_completion_asks_for_what_stands_in_the_blank() -> None:
    (request,) = next(DISCO(**BARE).collect([problem()])).requests
    assert request.prompt == (
        "Given the statement and what you know about the world, complete the statement (fill in the blank) so that the "
        "conclusion is inconclusive based on the statement. Do not repeat the conclusion, be creative.\n\n"
        "statement: A man in a red coat [blank].\nconclusion: A person is waiting.\n[blank] should be"
    )
    assert (request.samples, request.first_sample, request.stop) == (1, 0, ("\n",))
    assert (request.sampling.temperature, request.sampling.max_tokens, request.sampling.top_p) == (0.8, 256, 1.0)
    assert (request.origin.about, request.origin.step) == ("7", "perturbation")


def test_a_hypothesis_can_be_perturbed() -> None:
    method = DISCO("contradiction", perturbed="hypothesis", **BARE)
    (request,) = next(method.collect([problem(span="is waiting")])).requests
    assert "complete the conclusion (fill in the blank) so that the conclusion is false" in request.prompt
    assert request.prompt.endswith(
        "statement: A man in a red coat waits for the tram.\nconclusion: A person [blank].\n[blank] should be"
    )


def test_an_insertion_holds_both_sides_of_the_gap(tmp_path: Path) -> None:
    (request,) = next(DISCO(prompt_kind="insertion").collect([problem()])).requests
    assert request.prompt == (
        'Given a statement "A man in a red coat [insert].", it is inconclusive that "A person is waiting.".\n'
        "[insert] should be"
    )
    mine = tmp_path / "infill.jinja"
    mine.write_text("<pre>{{ before }}<suf>{{ after }} So {{ hypothesis }}<mid>")
    (request,) = next(DISCO(prompt_kind="insertion", insertion_prompt=str(mine)).collect([problem()])).requests
    assert request.prompt == "<pre>A man in a red coat <suf>. So A person is waiting.<mid>"


def test_demonstrations_are_of_the_wanted_label_and_drawn_once() -> None:
    (request,) = next(DISCO(demonstrations=2).collect([problem(new_label="contradiction")])).requests
    instruction, one, two, question = request.prompt.split("\n\n")
    assert "conclusion is false" in instruction
    assert question.startswith("statement: A man in a red coat [blank].")
    shipped = load_records(Path(disco.__file__).parents[1] / "prompts" / "disco" / "demonstrations.jsonl", "test")
    phrases = {each["phrase"] for each in shipped if each["new_label"] == "contradiction"}
    for shown in (one, two):
        assert shown.split("[blank] should be ")[1] in phrases
    again = next(DISCO(demonstrations=2).collect([problem(span=[]), problem(new_label="contradiction")])).requests[0]
    assert again.prompt == request.prompt
    other = next(DISCO(demonstrations=2, seed=3).collect([problem(new_label="contradiction")])).requests[0]
    assert other.prompt != request.prompt


def test_a_chat_has_the_instruction_as_its_systems_message() -> None:
    (request,) = next(DISCO(prompt_kind="chat", demonstrations=1).collect([problem()])).requests
    assert [message["role"] for message in request.messages] == ["system", "user", "assistant", "user"]
    assert request.messages[0]["content"].startswith("Given the statement")
    assert "[blank]" not in request.messages[2]["content"]
    assert request.messages[3]["content"].endswith("conclusion: A person is waiting.\n[blank] should be")
    assert request.stop == ()


def test_shipped_demonstrations_are_whole() -> None:
    rows = load_records(Path(disco.__file__).parents[1] / "prompts" / "disco" / "demonstrations.jsonl", "test")
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        assert row["label"] != row["new_label"]
        fitting = [name for name in ("premise", "hypothesis") if span_of(row[name], row["span"]) is not None]
        assert len(fitting) == 1
        counts[row["new_label"], fitting[0]] += 1
    assert len(counts) == 6
    assert min(counts.values()) >= 4


# -- spans -------------------------------------------------------------------------------------------------------------


def test_a_span_stands_for_whole_words_wherever_they_are() -> None:
    span = span_of("an old man and a golden old hat", "old")
    assert span is not None
    assert span.replaced("an old man and a golden old hat", "new") == "an new man and a golden new hat"
    assert span_of("golden", "old") is None
    assert span_of("a (very) odd one", "(very)") is not None
    assert span_of("a child's shoes", "'s shoes") is not None
    assert span_of("anything", " ") is None


def test_windows_are_neighbouring_words() -> None:
    sentence = "A man's coat, red and long."
    spans = windows(sentence, 2)
    assert [span.text for span in spans] == ["A man's", "coat, red", "and long"]
    assert spans[1].replaced(sentence, "hat, blue") == "A man's hat, blue and long."
    assert windows("two words", 2) == []


@given(st.text(alphabet="ab .,'", max_size=30), st.integers(1, 4))
def test_windows_cover_each_word_once(sentence: str, count: int) -> None:
    found = windows(sentence, count)
    assert all(sentence[span.places[0][0] : span.places[0][1]] == span.text for span in found)
    assert all(one.places[0][1] <= other.places[0][0] for one, other in zip(found, found[1:], strict=False))
    assert all(span.replaced(sentence, span.text) == sentence for span in found)


def test_several_spans_have_their_own_sample_numbers() -> None:
    method = DISCO(samples=2, scored=False, **BARE)
    spans = ["waits for the tram", "in a blue coat", "waits for the tram", "A man"]
    rounds = method.collect([problem(span=spans)])
    requests = next(rounds).requests
    assert [list(request.numbers) for request in requests] == [[0, 1], [4, 5]]
    outcomes = finish(rounds, answered(requests, ["sings a song", "sings  a song"], ["Some girl"]))
    assert [(o.sample, o.reason) for o in outcomes] == [
        (0, KEPT), (1, REPEATED), (2, NOT_IN_SENTENCE), (3, NOT_IN_SENTENCE), (4, KEPT), (5, NO_TEXT),
    ]  # fmt: skip
    assert outcomes[4].texts["sentence"] == "Some girl in a red coat waits for the tram."
    without = problem(span=None)
    assert [o.reason for o in finish_unasked(method, without)] == [NO_SPAN] * 2
    assert len(next(DISCO(span_words=3, **BARE).collect([without])).requests) == 4


def finish_unasked(method: DISCO, *problems: Problem) -> list[Outcome]:
    rounds = method.collect(problems)
    assert not next(rounds).requests
    return finish(rounds, [])


# -- filters -----------------------------------------------------------------------------------------------------------


def test_records_that_cannot_be_asked_about_say_why() -> None:
    problems = [problem(label=None), problem(new_label=None), problem(new_label="entailment"), problem(span=[])]
    reasons = [outcome.reason for outcome in finish_unasked(DISCO(scored=False, **BARE), *problems)]
    assert reasons == [disco.NO_LABEL, disco.NO_TARGET, disco.SAME_LABEL, NO_SPAN]


def test_only_what_the_heuristics_leave_is_scored() -> None:
    problems = [Problem(n, f"q{n}", "entailment", RECORD) for n in range(7)]
    rounds = DISCO(**BARE).collect(problems)
    first = next(rounds)
    said = [["sings a song"], ["in a red coat"], [""], ["drinks tea"], ["eats\nsoup"], ["walks home"], []]
    answers = answered(first.requests, *said)
    answers[6].failures[0] = "timed out"
    second = rounds.send(answers)
    assert (second.name, second.role) == ("Scores", "referee")
    asked = [json.loads(request.prompt) for request in second.requests]
    assert asked[0] == {
        "old": ["A man in a red coat waits for the tram.", "A person is waiting."],
        "new": ["A man in a red coat sings a song.", "A person is waiting."],
        "label": "neutral",
    }
    assert asked[2]["new"][0] == "A man in a red coat eats soup."
    assert second.requests[2].origin.given == {"perturbation": "eats\nsoup"}
    scores = answered(second.requests, ["0.2501"], ["0.25"], ["quite good"], ["7"])
    outcomes = finish(rounds, scores)
    assert [outcome.reason for outcome in outcomes] == [
        KEPT, IN_PREMISE, EMPTY, LOW_SCORE, NO_SCORE, NO_SCORE, NO_TEXT,
    ]  # fmt: skip
    assert outcomes[0].texts == {
        "span": "waits for the tram",
        "label": "neutral",
        "perturbation": "sings a song",
        "sentence": "A man in a red coat sings a song.",
        "score": "0.2501",
    }
    assert (outcomes[4].detail, outcomes[6].detail) == ("it said 'quite good'", "timed out")
    assert sum(count_reasons(outcomes).values()) == 7


def test_a_silent_referee_is_a_missing_score() -> None:
    rounds = DISCO(**BARE).collect([problem()])
    second = rounds.send(answered(next(rounds).requests, ["sings a song"]))
    (outcome,) = finish(rounds, [Answer.refused(second.requests[0], "no model")])
    assert (outcome.reason, outcome.detail) == (NO_SCORE, "no model")


def test_half_a_store_is_asked_for_the_rest_alone() -> None:
    records = [RECORD | {"guid": str(n), "said": f"sings song {n}", "score": 0.9} for n in range(6)]
    method = DISCO(**BARE)
    problems = problems_from(
        [r | {"premise": f"{r['premise'][:-1]} {r['guid']}."} for r in records], method, "guid", "label"
    )
    teacher = RecordedGenerator(records, "guid", {"perturbation": "said", "score": "score"})
    store = CompletionStore(":memory:")
    _, before = collect(method, problems[:3], teacher, store, others={"referee": teacher}, progress=False)
    outcomes, after = collect(method, problems, teacher, store, others={"referee": teacher}, progress=False)
    assert [(r.asked, r.reused) for r in before] == [(3, 0), (3, 0)]
    assert [(r.asked, r.reused) for r in after] == [(3, 3), (3, 3)]
    assert [outcome.kept for outcome in outcomes] == [True] * 6


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["sings a song", "", "in a red coat", None]), st.sampled_from([0.9, 0.1, None])))
)
def test_reasons_always_add_up(rows: list[tuple[str | None, float | None]]) -> None:
    records = [RECORD | {"guid": str(n), "said": said, "score": score} for n, (said, score) in enumerate(rows)]
    method = DISCO(**BARE)
    teacher = RecordedGenerator(
        records or [RECORD | {"said": "", "score": 0}], "guid", {"perturbation": "said", "score": "score"}
    )
    problems = problems_from(records, method, "guid", "label")
    outcomes, _ = collect(method, problems, teacher, others={"referee": teacher}, progress=False)
    assert sum(count_reasons(outcomes).values()) == len(rows) == len({outcome.record for outcome in outcomes})
    # All have one prompt, so what one was answered all were.
    assert all(outcome.kept == ("score" in outcome.texts and outcome.texts["score"] == "0.9") for outcome in outcomes)


# -- products ----------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_are_written_for_a_classifier(tmp_path: Path) -> None:
    method = DISCO(held_out=0.2, **BARE)
    records = [
        RECORD | {"guid": f"{n}", "premise": f"Premise {n // 2} has a span.", "hypothesis": f"H {n // 2}"}
        for n in range(60)
    ]
    problems = problems_from(records, method, "guid", "label")
    outcomes = []
    for number in range(60):
        texts = {
            "span": "a span",
            "label": "neutral",
            "perturbation": f"p{number}",
            "sentence": f"Premise has p{number}.",
        }
        outcomes.append(Outcome(number, 0, KEPT if number % 3 else LOW_SCORE, {**texts, "score": "0.5"}))
    files = method.write_products(tmp_path, problems, outcomes)
    assert all(path.is_file() for path in files)
    public = lines(tmp_path / "counterfactuals.jsonl")
    assert len(public) == 40
    assert public[0] == {
        "guid": "1", "premise": "Premise 0 has a span.", "hypothesis": "H 0", "label": "entailment",
        "new_label": "neutral", "span_prev": "a span", "gen_out": "p1", "new_premise": "Premise has p1.", "score": 0.5,
    }  # fmt: skip
    parts = {part: lines(tmp_path / "pairs" / f"{part}.jsonl") for part in ("train", "dev", "test")}
    premises = {part: {row["premise"] for row in rows if row["kind"] == "original"} for part, rows in parts.items()}
    assert all(
        premises[one].isdisjoint(premises[other])
        for one, other in (("train", "dev"), ("train", "test"), ("dev", "test"))
    )
    assert all(premises.values())
    for part in ("dev", "test"):
        assert [row["kind"] for row in parts[part]] == ["original", "counterfactual"] * (len(parts[part]) // 2)
        assert [row["pair"] for row in parts[part]] == [n // 2 for n in range(len(parts[part]))]
    assert sum(row["kind"] == "counterfactual" for rows in parts.values() for row in rows) == 40
    train = parts["train"]
    assert len({row["pair"] for row in train}) == sum(row["kind"] == "original" for row in train)
    assert {row["label"] for row in train if row["kind"] == "original"} == {"entailment"}
    unfiltered = lines(tmp_path / "unfiltered_pairs" / "train.jsonl")
    assert sum(row["kind"] == "counterfactual" for row in unfiltered) > sum(
        row["kind"] == "counterfactual" for row in train
    )
    shuffled = lines(tmp_path / "shuffled_pairs" / "train.jsonl")
    assert [(row["pair"], row["kind"], row["label"]) for row in shuffled] == [
        (row["pair"], row["kind"], row["label"]) for row in train
    ]
    assert {row["premise"] for row in shuffled} == {row["premise"] for row in train if row["kind"] == "original"}
    for name in ("unfiltered_pairs", "shuffled_pairs"):
        assert lines(tmp_path / name / "test.jsonl") == parts["test"]


def test_a_changed_hypothesis_keeps_its_premise(tmp_path: Path) -> None:
    method = DISCO(perturbed="hypothesis", held_out=0.01, **BARE)
    texts = {"span": "is waiting", "label": "neutral", "perturbation": "is late", "sentence": "A person is late."}
    method.write_products(tmp_path, [problem()], [Outcome(0, 0, KEPT, texts)])
    _, new = lines(tmp_path / "pairs" / "train.jsonl")
    assert (new["premise"], new["hypothesis"], new["label"]) == (RECORD["premise"], "A person is late.", "neutral")
    assert lines(tmp_path / "counterfactuals.jsonl")[0]["new_hypothesis"] == "A person is late."


def test_no_language_model_is_trained() -> None:
    method = DISCO()
    assert method.students == ()
    assert method.examples(problem(), []) == {}
    with pytest.raises(StopIteration) as end:
        next(method.infer([problem()]))
    assert end.value.value == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"perturbed": "both"}, "perturbed is premise or hypothesis"),
        ({"prompt_kind": "insert"}, "prompt_kind is completion or insertion or chat"),
        ({"samples": 0}, "samples is 0"),
        ({"demonstrations": -1}, "demonstrations is -1"),
        ({"span_words": 0}, "span_words is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"held_out": 0.5}, "held_out is 0.5"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        DISCO(**options)


@pytest.mark.parametrize(
    ("options", "changes", "named"),
    [
        ({"premise_field": "sentence1"}, {}, "no field 'sentence1'"),
        ({}, {"new_label": "maybe"}, "label_words has no word for the label 'maybe'"),
        ({"label_words": {"maybe": "unclear"}}, {"new_label": "maybe"}, "no demonstration has new_label 'maybe'"),
        ({"demonstrations_path": "nowhere.jsonl"}, {}, "there is no nowhere.jsonl"),
        ({"question_prompt": "disco/questio.jinja"}, {}, "disco/question.jinja"),
    ],
)
def test_what_records_and_templates_lack_is_named(options: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        next(DISCO(**options).collect([problem(**changes)]))
