"""The referee's request, the order of its answers, and how its scores are found."""

from __future__ import annotations

from typing import Any

import pytest

from kdlightning.blackbox.base import Round, run_rounds
from kdlightning.blackbox.instruction.referee import NO_REVIEW, NO_SCORES, Comparison, Referee, read_scores
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Origin, Sampling

ONE = Comparison(Origin("about"), "Name a tree.", "An oak.", "A stone.")
PROMPT = """[Instruction]
Name a tree.

[The Start of Assistant 1's Answer]
An oak.
[The End of Assistant 1's Answer]

[The Start of Assistant 2's Answer]
A stone.
[The End of Assistant 2's Answer]

[System]
We would like to request your feedback on the performance of two AI assistants"""


def referee(retries: int = 2, **options: Any) -> Referee:
    return Referee(Sampling(512, 0.2), retries, "hard_instructions/referee.jinja", **options)


def scores(one: float, two: float) -> str:
    return f"Evaluation evidence: so.\nScore of the Assistant 1: {one}\nScore of the Assistant 2: {two}"


def answers(current: Round, *texts: str | None) -> list[Answer]:
    return [
        Answer(request, {} if text is None else {request.first_sample: Completion(text)})
        for request, text in zip(current.requests, texts, strict=True)
    ]


def finish(rounds: Any, said: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(said)
    return end.value.value


def test_each_pair_is_shown_in_both_orders() -> None:
    rounds = referee().judge([ONE])
    current = next(rounds)
    first, second = current.requests
    assert current.role == "referee"
    assert first.prompt.startswith(PROMPT)
    assert first.prompt.endswith("Score of the Assistant 1: <score>\nScore of the Assistant 2: <score>\n")
    swapped = first.prompt.replace("An oak.", "?").replace("A stone.", "An oak.").replace("?", "A stone.")
    assert second.prompt == swapped
    assert (first.sampling.max_tokens, first.sampling.temperature, first.samples) == (512, 0.2, 1)


def test_scores_are_averaged_over_both_orders() -> None:
    rounds = referee().judge([ONE])
    # The referee likes whoever comes first by one point more.
    (verdict,) = finish(rounds, answers(next(rounds), scores(9, 6), scores(7, 8)))
    assert verdict.scores == {"teacher first": (9, 6), "student first": (8, 7)}
    assert (verdict.teacher, verdict.student, verdict.reason) == (8.5, 6.5, "")


def test_what_has_no_scores_is_asked_again_and_then_dropped() -> None:
    rounds = referee(retries=2).judge([ONE, Comparison(Origin("b"), "b", "x", "y")])
    again = rounds.send(answers(next(rounds), scores(9, 6), "no idea", scores(3, 2), scores(2, 3)))
    (request,) = again.requests
    assert (request.first_sample, request.samples) == (1, 1)
    assert request.prompt.index("A stone.") < request.prompt.index("An oak.")
    last = rounds.send(answers(again, "Score of the Assistant 1: 8"))
    assert last.requests[0].first_sample == 2
    dropped, kept = finish(rounds, answers(last, scores(11, 2)))
    assert (dropped.reason, dropped.detail) == (NO_SCORES, "asked 3 times, student first")
    assert dropped.reviews["student first"] == scores(11, 2)
    assert (kept.teacher, kept.student, kept.reason) == (3, 2, "")


def test_a_second_try_can_bring_the_scores() -> None:
    rounds = referee(retries=1).judge([ONE])
    again = rounds.send(answers(next(rounds), "?", scores(4, 5)))
    (verdict,) = finish(rounds, answers(again, scores(8, 2)))
    assert (verdict.teacher, verdict.student, verdict.reason) == (6.5, 3.0, "")


def test_a_referee_that_does_not_answer_is_not_asked_again() -> None:
    rounds = referee().judge([ONE])
    current = next(rounds)
    said = answers(current, None, scores(4, 5))
    said[0].failures[0] = "timed out"
    (verdict,) = finish(rounds, said)
    assert (verdict.reason, verdict.detail) == (NO_REVIEW, "timed out")


def test_a_system_prompt_makes_messages() -> None:
    (first, _) = next(referee(system_prompt="hard_instructions/referee_system.jinja").judge([ONE])).requests
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert first.messages[0]["content"].startswith("You are a helpful and precise assistant")
    assert first.messages[1]["content"].startswith(PROMPT)


def test_nothing_to_judge_asks_nothing() -> None:
    assert run_rounds(referee().judge([]), {}, progress=False) == ([], [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (scores(8, 7.5), (8.0, 7.5)),
        ("assistant 1: 8/10\nassistant 2: 10 / 10", (8.0, 10.0)),
        ("**Score of the Assistant 1:** 3\n**Score of the Assistant 2**: 4.", (3.0, 4.0)),
        ("- Score for Assistant 1: 3 points\r\n- Score for Assistant 2: 4 points\r\n", (3.0, 4.0)),
        (f"{scores(1, 1)}\n\nOn second thoughts:\n{scores(2, 3)}\nThat is all.", (2.0, 3.0)),
        ("Score of the Assistant 2: 4\nScore of the Assistant 1: 3", (3.0, 4.0)),
        ("Assistant 1: 8 examples are given\nAssistant 2: 7 too", None),
        ("Score of the Assistant 1: 8\nScore of the Assistant 2: <score>", None),
        ("Score of the Assistant 1: 8, Score of the Assistant 2: 7", None),
        (scores(0, 5), None),
        (scores(5, 10.5), None),
        (scores(-5, 5), None),
        ("8\n7", None),
        ("", None),
    ],
)
def test_scores_are_read_from_lines_of_their_own(text: str, expected: tuple[float, float] | None) -> None:
    assert read_scores(text) == expected


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match="referee_retries is -1"):
        referee(retries=-1)
    with pytest.raises(ConfigurationError, match="referee_temperature is 0"):
        Referee(Sampling(512), 1, "hard_instructions/referee.jinja")
    assert Referee(Sampling(512), 0, "hard_instructions/referee.jinja").retries == 0
