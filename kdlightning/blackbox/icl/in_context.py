"""Learning and answering from demonstrations of the same task."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

from kdlightning.blackbox.answers import answers_match, canonical_answer
from kdlightning.blackbox.base import BlackBoxMethod, Prediction, Problem, Round, Rounds, with_gold
from kdlightning.blackbox.icl.measures import TaskPrediction, measures
from kdlightning.blackbox.icl.tasks import (
    TaskProblem,
    by_task,
    chosen_tasks,
    drawn,
    examples_apart,
    families_apart,
    is_chosen,
    read_tasks,
    with_answers,
    with_pools,
)
from kdlightning.blackbox.icl.votes import likeliest, majority
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Request, Sampling, option_scores

Paradigm = Literal["meta", "multitask"]


class InContextMethod(BlackBoxMethod):
    """Base of methods whose student is given demonstrations: splits, contexts, and inference by votes.

    The options are those of `InContextDistillation`, which explains them.
    """

    draws: ClassVar[bool] = True

    def __init__(
        self,
        *,
        paradigm: Paradigm,
        demonstrations: int,
        votes: int,
        shots: int | None,
        queries: int | None,
        tasks: list[str] | None,
        test_families: list[str] | None,
        task_field: str,
        family_field: str | None,
        most_options: int,
        example_characters: int,
        context_characters: int,
        answer_tokens: int,
        separator: str,
        seed: int,
        context_prompt: str,
    ) -> None:
        name = type(self).__name__
        if paradigm not in get_args(Paradigm):
            raise ConfigurationError(f"{name}: paradigm is meta or multitask, not {paradigm!r}")
        if test_families is not None and paradigm != "meta":
            raise ConfigurationError(f"{name}: test_families is of paradigm meta; leave it out")
        counts = {"votes": votes, "shots": shots, "queries": queries, "most_options": most_options}
        for option, value in counts.items():
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}: {option} is {value}; give at least 1")
        if demonstrations < 0:
            raise ConfigurationError(f"{name}: demonstrations is {demonstrations}; give 0 (none) or more")
        if not separator:
            raise ConfigurationError(f"{name}: separator is empty; give what stands between demonstrations")
        self.paradigm = paradigm
        self.demonstrations = demonstrations
        self.votes = votes
        self.shots = 16 if shots is None and paradigm == "meta" else shots
        self.queries = queries
        self.tasks = tasks
        self.test_families = test_families
        self.task_field = task_field
        self.family_field = family_field
        self.most_options = most_options
        self.example_characters = example_characters
        self.context_characters = context_characters
        self.answer_sampling = Sampling(answer_tokens)
        self.separator = separator
        self.seed = seed
        self.context_prompt = context_prompt

    # -- which records, and what may be shown beside them ----------------------------------------------------------

    @property
    def context_fields(self) -> Mapping[str, str]:  # type: ignore[override]
        """Recorded answers are those of the record's own task."""
        return {"task": self.task_field}

    def split(
        self, problems: Sequence[Problem], tested: Sequence[Problem] | None, test: float, val: float, seed: int
    ) -> dict[str, list[Problem]]:
        """Families or examples apart, each record with the pool that its demonstrations are drawn from."""
        everything = read_tasks([*problems, *(tested or ())], self.task_field, self.family_field)
        # What is not chosen is taken out of both lists, which keep their order.
        count = len(problems) - sum(not is_chosen(each, self.tasks) for each in everything[: len(problems)])
        read = with_answers(chosen_tasks(everything, self.tasks))
        own, given = read[:count], read[count:]
        test = 0.0 if tested is not None else test
        if self.paradigm == "meta":
            parts = families_apart(own, test, val, seed, self.test_families)
        else:
            parts = examples_apart(own, test, val, seed)
        parts["test"] += given
        self._check_apart(parts)
        return self._with_pools(parts, seed)

    def _check_apart(self, parts: Mapping[str, Sequence[TaskProblem]]) -> None:
        learned = {each.family for each in parts["train"]} | {each.family for each in parts["val"]}
        both = sorted(learned & {each.family for each in parts["test"]})
        if both and self.paradigm == "meta":
            raise ConfigurationError(f"paradigm meta tests on families of their own, and test_path has {both[0]!r} too")

    def _with_pools(self, parts: dict[str, list[TaskProblem]], seed: int) -> dict[str, list[Problem]]:
        if self.paradigm == "multitask":
            parts["train"] = drawn(parts["train"], self.shots, seed, "shots")
        learned = {(each.task, each.question.strip()) for each in parts["train"]}
        shown = {task: self._showable(members) for task, members in by_task(parts["train"]).items()}
        finished: dict[str, list[Problem]] = {"train": [*with_pools(parts["train"], shown)]}
        for name in ("val", "test"):
            asked = [each for each in parts[name] if (each.task, each.question.strip()) not in learned]
            asked = [each for each in asked if len(each.answers) > 1]
            pools = shown
            if self.paradigm == "meta":
                support = drawn(asked, self.shots, seed, "shots", share=0.5)
                own = {id(each) for each in support}
                asked = [each for each in asked if id(each) not in own]
                pools = {task: self._showable(members) for task, members in by_task(support).items()}
            finished[name] = [*with_pools(drawn(asked, self.queries, seed, "queries"), pools)]
        return finished

    def _showable(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        return tuple(each for each in problems if each.gold is not None and not self.is_long(each))

    def is_long(self, problem: Problem) -> bool:
        """Whether a record is too long to be trained on or shown."""
        return len(problem.question) + len(problem.gold or "") > self.example_characters

    def context(self, problem: Problem, vote: int = 0) -> str:
        """The query behind its demonstrations, which (`seed`, `problem.draw`, record, vote) decide."""
        pool = [each for each in task_of(problem).pool if each.question.strip() != problem.question.strip()]
        chance = random.Random(f"{self.seed} {problem.draw} {problem.number} {vote}")
        room = self.context_characters - len(problem.question)
        shown = []
        for each in chance.sample(pool, min(self.demonstrations, len(pool))):
            room -= len(each.question) + len(each.gold or "") + len(self.separator) + 1
            if room < 0:
                break
            shown.append({"question": each.question, "answer": (each.gold or "").strip()})
        return self.render(problem, shown)

    def render(self, problem: Problem, shown: Sequence[Mapping[str, str]] = ()) -> str:
        """The query behind the given demonstrations."""
        return render(
            self.context_prompt,
            demonstrations=shown,
            question=problem.question,
            separator=self.separator,
            record=problem.record,
        )

    def prompt(self, problem: Problem) -> str:
        """The query behind its demonstrations."""
        return self.context(problem)

    # -- inference ---------------------------------------------------------------------------------------------------

    def chooses(self, problem: Problem) -> bool:
        """Whether the record's task has so few answers that the student chooses among them."""
        return len(task_of(problem).answers) <= self.most_options

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """Each query with `votes` draws of demonstrations; a second round decides what is tied."""
        contexts = [self._contexts(problem) for problem in problems]
        requests = [
            self._student_request(problem, context)
            for problem, own in zip(problems, contexts, strict=True)
            for context in own
        ]
        answers = iter((yield Round("Inference", requests, role="student")))
        votes = [
            self._votes(problem, [next(answers) for _ in own]) for problem, own in zip(problems, contexts, strict=True)
        ]
        tied = {place: best for place, cast in enumerate(votes) if len(best := majority(cast)) > 1}
        asked = [Request(context, options=tuple(best)) for place, best in tied.items() for context in contexts[place]]
        decided = iter((yield Round("Ties", asked, role="student")) if asked else ())
        predictions: list[Prediction] = []
        for place, problem in enumerate(problems):
            best = majority(votes[place])
            if place in tied:
                scores = [option_scores(next(decided)) for _ in contexts[place]]
                best = [likeliest(best, [each for each in scores if each])]
            predictions.append(self._prediction(problem, best[0] if best else None, votes[place]))
        return predictions

    def _contexts(self, problem: Problem) -> list[str]:
        few = len(task_of(problem).pool) <= self.demonstrations or not self.demonstrations
        return [self.context(problem, vote) for vote in range(1 if few else self.votes)]

    def _student_request(self, problem: Problem, context: str) -> Request:
        if self.chooses(problem):
            return Request(context, options=task_of(problem).answers)
        return Request(context, sampling=self.answer_sampling, stop=(self.separator,))

    def _votes(self, problem: Problem, answers: Sequence[Answer]) -> list[str]:
        """What was predicted with each draw; an empty answer is no vote, and case and whitespace make no difference."""
        if self.chooses(problem):
            scores = [option_scores(answer) for answer in answers]
            return [likeliest(list(each), [each]) for each in scores if each]
        first: dict[str, str] = {}
        written = [text.strip() for answer in answers for text in answer.texts if text.strip()]
        return [first.setdefault(str(canonical_answer(text, "text")), text) for text in written]

    def _prediction(self, problem: Problem, said: str | None, votes: Sequence[str]) -> TaskPrediction:
        return TaskPrediction(
            problem.number,
            problem.question,
            said or "",
            said,
            None if problem.gold is None else problem.gold.strip(),
            answers_match(said, problem.gold, "text"),
            task_of(problem).task,
            self.chooses(problem),
            tuple(votes),
        )

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`acc`, `most_frequent` and `macro_f1` of choices, `exact_match` and `rouge_l` of written answers."""
        return measures(with_gold(predictions))


def task_of(problem: Problem) -> TaskProblem:
    """A record as the method's split has made it."""
    if not isinstance(problem, TaskProblem):
        raise ConfigurationError("records must go through the method's split first, as BlackBoxData does it")
    return problem
