"""Records of many prompted tasks: a task's answers, which records are held out, and what may be shown beside them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from kdlightning.blackbox.base import Problem
from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.records import field_of


@dataclass(frozen=True)
class TaskProblem(Problem):
    """A record that knows its task.

    Attributes:
        task: the task's name.
        family: the name of its family: tasks on the same texts, or of one kind.
        answers: the task's different right answers, sorted; what it chooses from if they are few.
        pool: the records of the same task that may be shown as demonstrations, itself perhaps among them.
    """

    task: str = ""
    family: str = ""
    answers: tuple[str, ...] = field(default=(), repr=False)
    pool: Sequence[Problem] = field(default=(), repr=False, compare=False)


def read_tasks(problems: Sequence[Problem], task_field: str, family_field: str | None) -> list[TaskProblem]:
    """Records with their tasks.

    Args:
        problems: the records.
        task_field: field of the task's name.
        family_field: field of its family's; None makes each task a family.
    """
    read = []
    for problem in problems:
        task = str(field_of(problem.record, task_field))
        family = task if family_field is None else str(field_of(problem.record, family_field))
        own = {each.name: getattr(problem, each.name) for each in fields(Problem)}
        read.append(TaskProblem(**own, task=task, family=family))
    return read


def chosen_tasks(problems: Sequence[TaskProblem], names: Sequence[str] | None) -> list[TaskProblem]:
    """The records of some tasks or families; None keeps all.

    Raises:
        ConfigurationError: a name occurs nowhere.
    """
    if names is None:
        return list(problems)
    known = {each.task for each in problems} | {each.family for each in problems}
    for name in names:
        if name not in known:
            raise ConfigurationError(f"tasks: the records have no task or family {name!r}{nearest(name, known)}")
    return [each for each in problems if is_chosen(each, names)]


def is_chosen(problem: TaskProblem, names: Sequence[str] | None) -> bool:
    """Whether a record's task or family is among the names; None names all."""
    return names is None or problem.task in names or problem.family in names


def with_answers(problems: Sequence[TaskProblem]) -> list[TaskProblem]:
    """Records that know the different right answers of their task."""
    answers: dict[str, set[str]] = {}
    for each in problems:
        if each.gold is not None:
            answers.setdefault(each.task, set()).add(each.gold.strip())
    return [replace(each, answers=tuple(sorted(answers.get(each.task, ())))) for each in problems]


def families_apart(
    problems: Sequence[TaskProblem], test: float, val: float, seed: int, given: Sequence[str] | None = None
) -> dict[str, list[TaskProblem]]:
    """Whole families for "train", "val" and "test"; none is in two of them.

    Args:
        problems: the records.
        test: fraction or count of the families that are tested.
        val: fraction or count of the others that are validated on.
        seed: decides which.
        given: names of the tested families instead.

    Raises:
        ConfigurationError: a family that does not exist, or none left to train on.
    """
    families = sorted({each.family for each in problems})
    order = random.Random(f"families {seed}").sample(families, len(families))
    for name in given or ():
        if name not in families:
            raise ConfigurationError(f"test_families: there is no family {name!r}{nearest(name, families)}")
    # Nothing can be told by a family whose tasks have one answer each.
    able = {each.family for each in problems if len(each.answers) > 1}
    order.sort(key=lambda family: family not in able)
    held = order[: _count("test_split", test, len(order))] if given is None else list(given)
    rest = [family for family in order if family not in held]
    if not rest:
        raise ConfigurationError(f"of {len(families)} families none is left to train on: hold out fewer")
    watched = rest[: _count("val_split", val, len(rest))]
    part_of = dict.fromkeys(held, "test") | dict.fromkeys(watched, "val")
    parts: dict[str, list[TaskProblem]] = {"train": [], "val": [], "test": []}
    for each in problems:
        parts[part_of.get(each.family, "train")].append(each)
    return parts


def examples_apart(problems: Sequence[TaskProblem], test: float, val: float, seed: int) -> dict[str, list[TaskProblem]]:
    """Some examples of every task for "train", "val" and "test".

    Prompts of one family are often made of the same texts in the same order; an example's place in its task therefore
    decides, the same in all tasks of a family, so that no text of the test split is trained on under another prompt.

    Args:
        problems: the records.
        test: fraction of each family's places, or count of all records, for test.
        val: the same of what is left, for validation.
        seed: decides which.
    """
    places, sizes = _places(problems)
    chosen: dict[str, Sequence[str]] = {}
    for family, size in sorted(sizes.items()):
        order = random.Random(f"examples {seed} {family}").sample(range(size), size)
        tested = round(_share(test, len(problems)) * size)
        watched = round(_share(val, len(problems)) * (size - tested))
        names = ["train"] * size
        for rank, place in enumerate(order):
            names[place] = "test" if rank < tested else "val" if rank < tested + watched else "train"
        chosen[family] = names
    parts: dict[str, list[TaskProblem]] = {"train": [], "val": [], "test": []}
    for each, place in zip(problems, places, strict=True):
        parts[chosen[each.family][place]].append(each)
    if not parts["train"]:
        raise ConfigurationError("no example is left to train on: hold out fewer")
    return parts


def drawn(
    problems: Sequence[TaskProblem], most: int | None, seed: int, purpose: str, share: float = 1.0
) -> list[TaskProblem]:
    """At most so many examples of each task, and at most this share of them, in the order of the records."""
    if most is None:
        return list(problems)
    kept: set[int] = set()
    for task, members in by_task(problems).items():
        count = min(most, int(share * len(members)))
        numbers = random.Random(f"{purpose} {seed} {task}").sample(range(len(members)), count)
        kept |= {id(members[number]) for number in numbers}
    return [each for each in problems if id(each) in kept]


def by_task(problems: Sequence[TaskProblem]) -> dict[str, list[TaskProblem]]:
    """Records by task, in their order."""
    groups: dict[str, list[TaskProblem]] = {}
    for each in problems:
        groups.setdefault(each.task, []).append(each)
    return groups


def with_pools(problems: Sequence[TaskProblem], pools: Mapping[str, Sequence[Problem]]) -> list[TaskProblem]:
    """Records that know what may be shown beside them."""
    return [replace(each, pool=pools.get(each.task, ())) for each in problems]


def _places(problems: Sequence[TaskProblem]) -> tuple[list[int], dict[str, int]]:
    """Each record's place in its task, and the number of places of each family."""
    counts: dict[tuple[str, str], int] = {}
    places = []
    for each in problems:
        key = (each.family, each.task)
        places.append(counts.get(key, 0))
        counts[key] = places[-1] + 1
    sizes: dict[str, int] = {}
    for (family, _), count in counts.items():
        sizes[family] = max(count, sizes.get(family, 0))
    return places, sizes


def _share(split: float, total: int) -> float:
    return split if split < 1 else min(1.0, split / total)


def _count(option: str, split: float, total: int) -> int:
    count = max(1, round(split * total)) if 0 < split < 1 else int(split)
    if split < 0 or (split >= 1 and split != count) or count >= total:
        raise ConfigurationError(f"{option} is {split}: of {total} families give a fraction, or a count below that")
    return count
