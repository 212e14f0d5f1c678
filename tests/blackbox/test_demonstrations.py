"""Few-shot banks: which demonstrations a prompt gets, and what is wrong with a bank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import Problem
from kdlightning.blackbox.demonstrations import Demonstrations, load_demonstrations
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError

FIELDS = ("question", "answer")
BANK = [{"question": f"What is {n} + 1?", "answer": str(n + 1), "level": n} for n in range(6)]


def load(source: Any = BANK, fields: Any = FIELDS, **options: Any) -> Demonstrations:
    return load_demonstrations(source, fields, owner="Method", **options)


def levels(bank: Demonstrations, number: int = 0, question: str = "?", **more: int) -> list[int]:
    return [shown["level"] for shown in bank(Problem(number, question, None, {}, **more))]


def test_the_first_are_the_same_for_every_record() -> None:
    assert levels(load(count=3)) == levels(load(count=3), 7) == [0, 1, 2]
    assert levels(load()) == [0, 1, 2, 3, 4, 5]


def test_drawn_ones_depend_on_seed_record_and_draw_alone() -> None:
    bank = load(count=3, choice="drawn", seed=4)
    drawn = [levels(bank, number) for number in range(30)]
    assert drawn == [levels(load(count=3, choice="drawn", seed=4), number) for number in range(30)]
    assert len({tuple(each) for each in drawn}) > 20
    assert all(len(set(each)) == 3 for each in drawn)
    assert {each for row in drawn for each in row} == set(range(6))
    assert levels(load(count=3, choice="drawn", seed=5)) != levels(bank)
    assert [levels(bank, 0, draw=n) for n in range(5)] != [levels(bank, 0)] * 5


def test_another_process_draws_the_same() -> None:
    script = (
        "from kdlightning.blackbox.base import Problem\n"
        "from kdlightning.blackbox.demonstrations import load_demonstrations\n"
        "bank = load_demonstrations([{'question': str(n)} for n in range(9)], ['question'], owner='M', count=4,"
        " choice='drawn', seed=3)\n"
        "print([[shown['question'] for shown in bank(Problem(n, '?', None))] for n in range(5)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "11"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    bank = load([{"question": str(n)} for n in range(9)], ["question"], count=4, choice="drawn", seed=3)
    assert done.stdout.strip() == str([[s["question"] for s in bank(Problem(n, "?", None))] for n in range(5)])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.sampled_from(["first", "drawn"]), st.integers(0, 99), st.integers(0, 5))
def test_a_record_is_never_shown_itself(count: int, choice: Any, number: int, asked: int) -> None:
    bank = load(count=count, choice=choice)
    question = f"  what IS {asked} +\n1?"
    shown = levels(bank, number, question)
    assert asked not in shown
    assert len(shown) == min(count, 5) == len(set(shown))
    if choice == "first":
        assert shown == [n for n in range(6) if n != asked][:count]


def test_banks_are_files_lists_or_ship_with_the_package(tmp_path: Path) -> None:
    lines, whole, table = tmp_path / "bank.jsonl", tmp_path / "bank.json", tmp_path / "bank.csv"
    lines.write_text("".join(f"{json.dumps(each)}\n" for each in BANK))
    whole.write_text(json.dumps(BANK))
    table.write_text("question,answer\n" + "".join(f"{each['question']},{each['answer']}\n" for each in BANK))
    assert load(str(lines)) == load(whole) == load()
    assert [shown["answer"] for shown in load(table, count=2)(Problem(0, "?", None))] == ["1", "2"]
    shipped = load("mt_cot/demonstrations.jsonl", ["question", "choices", "rationale", "answer"])
    assert len(shipped.bank) == 7
    assert all(each["answer"] in each["choices"] for each in shipped.bank)


def test_fields_can_have_other_names_in_the_file() -> None:
    bank = load([{"text": " why? ", "said": {"by": 3}}], {"question": "text", "answer": "said.by"})
    (shown,) = bank(Problem(0, "?", None))
    assert (shown["question"], shown["answer"], shown["text"]) == ("why?", 3, " why? ")
    assert bank(Problem(0, "Why?", None)) == []


def test_a_list_that_is_missing_is_empty() -> None:
    bank = load([BANK[0], BANK[1] | {"parts": [1]}, BANK[2] | {"parts": None}], lists=["parts"]).bank
    assert [each["parts"] for each in bank] == [[], [1], []]
    with pytest.raises(ConfigurationError, match=r"Method: demonstrations: number 1 holds no list in 'parts'"):
        load([BANK[0] | {"parts": "one"}], lists=["parts"])


def test_templates_read_them(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for shown in demonstrations %}{{ shown.question }} {{ shown.answer }}; {% endfor %}?")
    shown = load(count=2)(Problem(0, "?", None))
    assert render(str(template), demonstrations=shown) == "What is 0 + 1? 1; What is 1 + 1? 2; ?"
    assert load(None)(Problem(0, "?", None)) == []


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (BANK, {"count": 7}, "7 are asked for; the bank has 6"),
        (BANK, {"count": 0}, "give 1 to 6"),
        ([], {}, "there are no records"),
        (None, {"count": 3}, "there is no bank"),
        ([*BANK, {"question": "q"}], {}, "number 7: .* no field 'answer'"),
        ([{"question": "q", "answer": " "}], {}, "number 1 has nothing in 'answer'"),
        ([{"question": None, "answer": "a"}], {}, "number 1 has nothing in 'question'"),
        (["q"], {}, "number 1 holds no fields"),
        (BANK, {"choice": "random"}, "first or drawn"),
        ("no/such.jsonl", {}, "there is no"),
    ],
)
def test_wrong_banks_are_named(source: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        load(source, **options)
    assert str(caught.value).startswith("Method")
