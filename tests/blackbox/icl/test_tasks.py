"""Which records are held out, and what may be shown beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdlightning.blackbox.base import Problem, problems_from
from kdlightning.blackbox.icl.in_context_distillation import InContextDistillation
from kdlightning.blackbox.icl.tasks import TaskProblem, by_task, drawn, examples_apart, families_apart
from kdlightning.errors import ConfigurationError


def split(method: InContextDistillation, records: list[dict[str, Any]], **options: Any) -> dict[str, list[Any]]:
    options = {"tested": None, "test": 0.34, "val": 0.34, "seed": 0} | options
    return method.split(problems_from(records, method, "prompt", "completion"), **options)


def make(tasks: dict[str, tuple[str, int]]) -> list[TaskProblem]:
    """Records of tasks, given as task: (family, number of records)."""
    made: list[TaskProblem] = []
    for task, (family, count) in tasks.items():
        made += [
            TaskProblem(len(made) + n, f"{task} {n}", "ab"[n % 2], task=task, family=family, answers=("a", "b"))
            for n in range(count)
        ]
    return made


SHAPES = st.dictionaries(
    st.sampled_from("tuvwxyz"), st.tuples(st.sampled_from(["one", "two", "three"]), st.integers(2, 9)), min_size=2
)


@settings(deadline=None, max_examples=50)
@given(SHAPES, st.integers(0, 5))
def test_families_never_straddle_parts(shapes: dict[str, tuple[str, int]], seed: int) -> None:
    problems = make(shapes)
    families = {each.family for each in problems}
    if len(families) < 3:
        return
    parts = families_apart(problems, 1, 1, seed)
    seen = [{each.family for each in part} for part in parts.values()]
    assert [len(each) for each in seen] == [len(families) - 2, 1, 1]
    assert sum(len(each) for each in seen) == len(set.union(*seen))
    assert sorted(each.number for part in parts.values() for each in part) == [each.number for each in problems]
    assert families_apart(problems, 1, 1, seed) == parts


@settings(deadline=None, max_examples=50)
@given(SHAPES, st.integers(0, 5), st.sampled_from([0.0, 0.2, 0.5]), st.sampled_from([0.0, 0.3]))
def test_examples_of_a_family_are_held_out_by_their_place(
    shapes: dict[str, tuple[str, int]], seed: int, test: float, val: float
) -> None:
    problems = make(shapes)
    parts = examples_apart(problems, test, val, seed)
    part_of = {each.number: name for name, part in parts.items() for each in part}
    assert sorted(part_of) == [each.number for each in problems]
    places: dict[tuple[str, int], str] = {}
    for members in by_task(problems).values():
        for place, each in enumerate(members):
            assert places.setdefault((each.family, place), part_of[each.number]) == part_of[each.number]
    assert examples_apart(problems, test, val, seed) == parts


def test_so_many_examples_of_each_task_are_drawn() -> None:
    problems = make({"t": ("one", 9), "u": ("one", 2)})
    found = drawn(problems, 4, 0, "shots")
    assert {task: len(members) for task, members in by_task(found).items()} == {"t": 4, "u": 2}
    assert [each.number for each in found] == sorted(each.number for each in found)
    assert drawn(problems, 4, 0, "shots") == found != drawn(problems, 4, 1, "shots")
    assert drawn(problems, None, 0, "shots") == problems


def test_meta_shows_held_out_tasks_and_never_asks_what_it_shows(tasks: Callable[[int], list]) -> None:
    method = InContextDistillation(shots=4, queries=3, test_families=["sign"])
    parts = split(method, tasks(12), val=1)
    assert {each.task for each in parts["test"]} == {"sign_a", "sign_b"}
    assert len(parts["test"]) == 6
    for each in parts["test"]:
        assert len(each.pool) == 4
        assert {other.task for other in each.pool} == {each.task}
        assert not {other.number for other in each.pool} & {asked.number for asked in parts["test"]}
    (trained,) = {each.family for each in parts["train"]}
    assert trained not in {each.family for each in parts["val"]} | {"sign"}
    assert all(len(each.pool) == 12 for each in parts["train"])


def test_multitask_shows_training_examples_alone(tasks: Callable[[int], list]) -> None:
    parts = split(InContextDistillation("multitask", shots=5), tasks(20), test=0.25, val=0.2)
    trained = {each.number for each in parts["train"]}
    assert {task: len(members) for task, members in by_task(parts["train"]).items()} == dict.fromkeys(
        ["sign_a", "sign_b", "parity_a", "parity_b", "after_a"], 5
    )
    assert [len(by_task(parts[name])["sign_a"]) for name in ("val", "test")] == [3, 5]
    for each in parts["test"] + parts["val"]:
        assert each.number not in trained
        assert {other.number for other in each.pool} == {
            other.number for other in parts["train"] if other.task == each.task
        }


def test_the_answers_of_a_task_are_those_of_all_records(tasks: Callable[[int], list]) -> None:
    parts = split(InContextDistillation("multitask"), tasks(20))
    answers = {each.task: each.answers for each in parts["train"]}
    assert answers["sign_a"] == ("negative", "positive")
    assert len(answers["after_a"]) == 20


def test_tasks_with_one_answer_are_not_tested(tasks: Callable[[int], list]) -> None:
    parts = split(InContextDistillation("multitask"), tasks(9), test=0.3)  # nothing below 10 is positive
    assert {each.task for each in parts["test"]} == {"parity_a", "parity_b", "after_a"}
    assert "sign_a" in {each.task for each in parts["train"]}
    assert split(InContextDistillation(), tasks(9), test=1, val=0)["test"]


def test_what_has_a_trained_prompt_is_not_tested(tasks: Callable[[int], list]) -> None:
    records = [each for each in tasks(20) if each["task"] == "parity_a"]
    for number, record in enumerate(records):
        record["prompt"] = f"{number // 10} is"  # each prompt ten times
    parts = split(InContextDistillation("multitask"), records, test=0.3)
    assert parts["test"] == parts["val"] == []
    assert parts["train"]


def test_test_records_of_their_own(tasks: Callable[[int], list]) -> None:
    records = tasks(12)
    own = [each for each in records if each["family"] != "sign"]
    other = [each for each in records if each["family"] == "sign"]
    method = InContextDistillation(shots=4)
    tested = problems_from(other, method, "prompt", "completion")
    parts = split(method, own, tested=tested, val=1)
    assert {each.family for each in parts["test"]} == {"sign"}
    assert len(parts["test"]) == 2 * 8
    with pytest.raises(ConfigurationError, match="paradigm meta tests on families of their own"):
        split(method, records, tested=tested, val=1)


@pytest.mark.parametrize(
    ("options", "given", "named"),
    [
        ({"tasks": ["sing"]}, {}, "did you mean sign"),
        ({"test_families": ["sing"]}, {}, "did you mean sign"),
        ({}, {"test": 3}, "test_split is 3"),
        ({}, {"test": 1.5}, "test_split is 1.5"),
        ({}, {"test": 1, "val": 2}, "val_split is 2"),
        ({"test_families": ["sign", "parity", "after"]}, {"val": 0}, "none is left to train on"),
        ({"paradigm": "multitask"}, {"test": 60}, "no example is left"),
        ({"task_field": "tusk"}, {}, "did you mean task"),
    ],
)
def test_bad_splits_are_named(
    options: dict[str, Any], given: dict[str, Any], named: str, tasks: Callable[[int], list]
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        split(InContextDistillation(**options), tasks(12), **given)


def test_some_tasks_alone(tasks: Callable[[int], list]) -> None:
    parts = split(InContextDistillation("multitask", tasks=["parity", "sign_a"]), tasks(12))
    assert {each.task for each in parts["train"]} == {"parity_a", "parity_b", "sign_a"}


def test_without_families_each_task_is_one(tasks: Callable[[int], list]) -> None:
    parts = split(InContextDistillation(family_field=None), tasks(12), test=2, val=1)
    assert len({each.task for each in parts["test"]}) == 2
    assert all(each.family == each.task for each in parts["train"])


def test_a_record_that_went_through_no_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="split first"):
        InContextDistillation().prompt(Problem(0, "q", "a"))


def test_real_families_share_their_texts_place_by_place(data_folder: Path) -> None:
    from kdlightning.generation.records import load_records

    records = load_records(data_folder / "icl_t0_tasks_share.jsonl.gz", "test")
    method = InContextDistillation("multitask", tasks=["glue_qqp"])
    parts = split(method, records, test=0.1, val=0.1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 972, "val": 108, "test": 120}
    # The first question of each pair, whatever the prompt around it.
    assert len({each.family for each in parts["test"]}) == 1
    meta = split(InContextDistillation(), records, test=3, val=2)
    assert sum(len(part) for part in meta.values()) < 14400
    families = [{each.family for each in part} for part in meta.values()]
    assert [len(each) for each in families] == [8, 2, 3]
    assert len(families[0] | families[1] | families[2]) == 13
