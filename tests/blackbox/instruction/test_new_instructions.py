"""How new instructions are asked for, which of them are dropped, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import KEPT, Round, count_reasons
from kdlightning.blackbox.instruction.new_instructions import (
    CUT_SHORT,
    EASY,
    HARD,
    NO_NEW,
    NOT_ASCII,
    NOT_NEEDED,
    PUNCTUATION,
    SIMILAR,
    TOO_SHORT,
    WORD,
    Seed,
    Writer,
    rejection,
)
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Origin, Sampling

PROMPT = """I want you to act as an Instruction Creator.
Your goal is to draw inspiration from the #Given Instruction# to create a brand new instruction.
{}
The LENGTH and difficulty level of the #Created Instruction# should be similar to that of the #Given Instruction#.
The #Created Instruction# must be reasonable and must be understood and responded to by humans.
'#Given Instruction#', '#Created Instruction#', 'given instruction' and 'created instruction' are not allowed to \
appear in #Created Instruction#.

#Given Instruction#:

Name a tree of the north.

#Created Instruction#:"""
SAME = "This new instruction should belong to the same domain and the same task type as the #Given Instruction#."
RARER = "This new instruction should belong to the same domain as the #Given Instruction# but be even more rare."


def seed(record: int, kind: str = HARD, instruction: str = "Name a tree of the north.") -> Seed:
    return Seed(record, Origin(f"q{record}"), instruction, kind, {"response": "An oak."})


def writer(hard: int = 1, easy: int = 1, attempts: int = 2, **options: Any) -> Writer:
    prompts = {kind: f"hard_instructions/{kind}.jinja" for kind in (HARD, EASY)}
    return Writer({HARD: hard, EASY: easy}, attempts, 0.7, Sampling(1, 1.0, seed=5), prompts, **options)


def answers(current: Round, *texts: str | Completion | None) -> list[Answer]:
    said = [Completion(text) if isinstance(text, str) else text for text in texts]
    return [
        Answer(request, {} if one is None else {request.first_sample: one})
        for request, one in zip(current.requests, said, strict=True)
    ]


def finish(rounds: Any, said: list[Answer]) -> Any:
    with pytest.raises(StopIteration) as end:
        rounds.send(said)
    return end.value.value


def test_hard_and_easy_seeds_have_their_own_prompts() -> None:
    current = next(writer().write([seed(0), seed(1, EASY)], []))
    hard, easy = current.requests
    assert current.role == "teacher"
    assert hard.prompt == PROMPT.format(SAME)
    assert easy.prompt == PROMPT.format(RARER)
    # Four tokens for each of the seed's six words.
    assert (hard.sampling.max_tokens, hard.sampling.temperature, hard.sampling.top_p) == (24, 1.0, 1.0)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Name a flower of the south.", None),
        ("  \nName a flower of the south.", None),
        ("Name a flower in this Instruction.", WORD),
        (Completion("Name a flower of the", "length"), CUT_SHORT),
        ("Name three flowers", TOO_SHORT),
        ("  ", TOO_SHORT),
        ("", TOO_SHORT),
        ("Name a flower, please", None),
        ("- Name a flower of the south.", PUNCTUATION),
        ("“Name a flower of the south.”", NOT_ASCII),
        ("Étienne is the name of whom?", NOT_ASCII),
        ("42 is the answer to what?", None),
    ],
)
def test_each_filter_has_its_reason(said: str | Completion, reason: str | None) -> None:
    assert rejection(said if isinstance(said, Completion) else Completion(said)) == reason


def test_it_asks_again_for_what_is_missing_until_every_seed_was_tried() -> None:
    rounds = writer(hard=2, easy=0, attempts=2).write([seed(0), seed(1), seed(2)], ["Name a flower of the south."])
    first = next(rounds)
    assert [request.first_sample for request in first.requests] == [0, 0]
    second = rounds.send(answers(first, "Name a flower of the south!", "Draw a map of old Bergen."))
    assert (second.name, len(second.requests), second.requests[0].first_sample) == ("New instructions (2)", 1, 0)
    third = rounds.send(answers(second, "Draw a map of the old Bergen."))
    assert third.requests[0].first_sample == 1
    fourth = rounds.send(answers(third, None))
    outcomes = finish(rounds, answers(fourth, "Count all rivers that end in a desert."))
    assert [outcome.reason for outcome in outcomes] == [SIMILAR, KEPT, SIMILAR, NO_NEW, KEPT]
    assert [outcome.sample for outcome in outcomes] == [0, 0, 0, 1, 1]
    assert len({(outcome.record, outcome.sample) for outcome in outcomes}) == 5
    assert outcomes[0].detail == "ROUGE-L 1.00 with: Name a flower of the south."
    assert outcomes[2].detail == "ROUGE-L 0.92 with: Draw a map of old Bergen."
    assert outcomes[1].texts == {"response": "An oak.", "new_instruction": "Draw a map of old Bergen."}
    assert outcomes[4].texts == {"new_instruction": "Count all rivers that end in a desert."}


def test_seeds_that_are_not_needed_are_counted() -> None:
    rounds = writer(hard=1, easy=0, attempts=3).write([seed(n) for n in range(3)] + [seed(3, EASY)], [])
    outcomes = finish(rounds, answers(next(rounds), "Name a flower of the south."))
    assert count_reasons(outcomes) == {KEPT: 1, NOT_NEEDED: 3}
    assert sorted(outcome.record for outcome in outcomes) == [0, 1, 2, 3]
    assert {outcome.record: outcome.prediction for outcome in outcomes}[3] == EASY
    assert outcomes[-1].texts == {"response": "An oak."}


def test_the_order_of_seeds_is_drawn_once_for_all() -> None:
    seeds = [seed(n, instruction=f"Name {n} trees of the north.") for n in range(30)]
    orders = [[r.prompt for r in next(writer(hard=30).write(seeds, [])).requests] for _ in range(2)]
    assert orders[0] == orders[1]
    assert orders[0] != [PROMPT.format(SAME).replace("a tree", f"{n} trees") for n in range(30)]


def test_without_seeds_or_wishes_nothing_is_asked() -> None:
    for made in (writer().write([], ["a"]), writer(hard=0, easy=0).write([seed(0)], [])):
        with pytest.raises(StopIteration):
            next(made)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([HARD, EASY]), max_size=6),
    st.lists(st.sampled_from(["one two three four", "five six seven eight", "short", "an instruction is this"])),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_every_try_has_one_outcome(kinds: list[str], texts: list[str], wanted: int, attempts: int) -> None:
    said = iter(texts)
    rounds = writer(wanted, wanted, attempts).write([seed(n, kind) for n, kind in enumerate(kinds)], [])
    asked = 0
    try:
        current = next(rounds)
        while True:
            asked += len(current.requests)
            current = rounds.send(answers(current, *(next(said, None) for _ in current.requests)))
    except StopIteration as end:
        outcomes = end.value
    places = [(outcome.record, outcome.sample) for outcome in outcomes]
    assert len(set(places)) == len(places)
    assert {record for record, _ in places} == set(range(len(kinds)))
    counts = count_reasons(outcomes)
    assert sum(counts.values()) - counts.get(NOT_NEEDED, 0) == asked <= attempts * len(kinds)
    assert all(sum(o.kept and o.prediction == kind for o in outcomes) <= wanted for kind in (HARD, EASY))
    kept = [outcome.texts["new_instruction"] for outcome in outcomes if outcome.kept]
    assert len(set(kept)) == len(kept)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match="hard is -1"):
        writer(hard=-1)
    with pytest.raises(ConfigurationError, match="attempts is 0"):
        writer(attempts=0)
