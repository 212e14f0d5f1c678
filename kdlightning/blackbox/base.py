"""What a black-box method is: requests, a filter, examples, and how its student is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.base import Answer, Capability, Request, TextGenerator, require
from kdlightning.generation.budget import Budget, BudgetSpentError
from kdlightning.generation.engine import Engine, EngineResult
from kdlightning.generation.records import Record, field_of
from kdlightning.generation.store import CompletionStore
from kdlightning.schedules import Weight

T = TypeVar("T")
KEPT = "kept"
NO_TEXT = "the teacher did not answer"


@dataclass(frozen=True)
class Problem:
    """A record that a method works on.

    Attributes:
        number: its place in the records.
        question: what is asked.
        gold: the right answer; None if the record has none.
        record: all its fields, for templates.
        draw: decides what a method draws at random beside the record; another one in each epoch if the method `draws`.
    """

    number: int
    question: str
    gold: str | None
    record: Record = field(default_factory=dict, repr=False)
    draw: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of one answer of the teacher.

    Attributes:
        record: number of the record.
        sample: number of the sample.
        reason: "kept", or why not; the reasons of a method are few, so that they can be counted.
        texts: what the teacher wrote, by step.
        prediction: the teacher's answer, in canonical form.
        detail: a sentence more, for example what the generator said.
    """

    record: int
    sample: int
    reason: str
    texts: Mapping[str, str] = field(default_factory=dict)
    prediction: str | None = None
    detail: str = ""

    @property
    def kept(self) -> bool:
        """Whether a student learns from it."""
        return self.reason == KEPT


@dataclass(frozen=True)
class Example:
    """A training text, before it is tokenised. The loss is on the label alone.

    Attributes:
        record: number of the record that it comes from.
        prompt: what the student is given.
        label: what it learns to write, ended by its end token; empty for a prompt without a known label.
        tag: which of a method's tasks it belongs to, a name in its `tag_weights`; empty for methods of one task.
        given: how the label begins without being counted: text that the student is fed as if it had written it (an
            encoder–decoder's decoder, or behind the prompt). It is tokenised apart from the label.
    """

    record: int
    prompt: str
    label: str
    tag: str = ""
    given: str = ""


@dataclass(frozen=True)
class Prediction:
    """What a student answered by the method's inference protocol.

    Attributes:
        record: number of the record.
        question: what was asked.
        text: what the student wrote.
        prediction: the answer in it, or None.
        gold: the right answer.
        correct: whether they match.
    """

    record: int
    question: str
    text: str
    prediction: str | None
    gold: str | None
    correct: bool


@dataclass(frozen=True)
class Round:
    """Requests that can be answered at the same time.

    Attributes:
        name: what the progress display calls them.
        requests: the requests.
        role: who is asked: "teacher", "referee", or one of the method's students.
    """

    name: str
    requests: Sequence[Request]
    role: str = "teacher"


Rounds = Generator[Round, list[Answer], T]
"""Yields rounds, is sent their answers in the order of the requests, and returns what came of them."""


class BlackBoxMethod(ABC):
    """Base of the methods that know a teacher by its text alone.

    A method is plain Python without a model: `collect` and `infer` yield rounds of requests and are sent the answers,
    so that any generator can stand behind each role, and any number of rounds can be resumed from a store.

    Attributes:
        needs: what the teacher must be capable of.
        students: names of the students that the method trains, each in a fit of its own; they share the teacher's text
            and the tokenizer. `infer` asks each by its name, as the role of a round. Empty where no language model is
            trained, and `write_products` leaves what another data module reads.
        tag_weights: weights of the method's tasks, by the tag of their examples: the loss is the sum over tags of
            weight · the mean cross-entropy over the tag's own tokens in a batch. Empty for one task: the mean over all
            tokens, whatever the tags.
        soft_tag_weights: the same for the divergence from a white-box teacher, on the same tokens; empty without one.
        context_fields: fields of the records, by the name under which `Origin.given` has them, that answers depend on
            beside the question; recorded text is looked up by them too.
        may_be_empty: whether a run that keeps nothing is a result, and no mistake.
        draws: whether `examples` depends on `Problem.draw`, so that texts are made anew for each epoch.
        labels_alone: True for the baseline, which learns from right answers.
        asks_teacher: False where a method asks nobody, since its records hold all that it needs.
        encoder_decoder: whether prompts and labels are made for encoder–decoder students.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({"text"})
    students: ClassVar[tuple[str, ...]] = ("student",)
    tag_weights: Mapping[str, Weight] = MappingProxyType({})
    soft_tag_weights: Mapping[str, Weight] = MappingProxyType({})
    context_fields: Mapping[str, str] = MappingProxyType({})
    may_be_empty: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    labels_alone: ClassVar[bool] = False
    asks_teacher: bool = True
    encoder_decoder: bool = False

    @abstractmethod
    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """Asks the teacher and filters its answers; every (record, sample) gets exactly one outcome."""

    @abstractmethod
    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """Training texts from the kept outcomes of one record, by student."""

    @abstractmethod
    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """The inference protocol: how the students answer without a teacher, all of them together."""

    def infer_alone(
        self, student: str, problems: Sequence[Problem], outcomes: Sequence[Outcome]
    ) -> Rounds[list[Prediction]]:
        """How one student of several is judged where the others are absent: its own part, on right inputs.

        Its metrics are logged under its name (`val/solver_acc`), apart from those of `infer`. By default nothing is
        asked, and nothing logged.

        Args:
            student: the student's name.
            problems: the records.
            outcomes: what the teacher wrote about them and was kept; nothing of the test split, of which a method
                knows `problem.record` alone.
        """
        yield from ()
        return []

    def prompt(self, problem: Problem) -> str:
        """What a student is given for a record of which no label is known."""
        return problem.question

    def split(
        self, problems: Sequence[Problem], tested: Sequence[Problem] | None, test: float, val: float, seed: int
    ) -> dict[str, list[Problem]] | None:
        """The records of "train", "val" and "test"; None, the default, draws them without regard to what they are.

        Args:
            problems: the records.
            tested: those of the test split where they come apart.
            test: `test_split` of the data module: fraction or count.
            val: `val_split`.
            seed: `split_seed`.
        """
        return None

    def student_named(self, name: str | None) -> str:
        """A student's name; None is the only one.

        Raises:
            ConfigurationError: there is no such student, or there are several and none is named.
        """
        one, names = type(self).__name__, " and ".join(self.students)
        if not self.students:
            raise ConfigurationError(f"{one} trains no language model: its own data module asks the teacher")
        if name is None and len(self.students) > 1:
            raise ConfigurationError(f"{one} trains {names}, each in a fit of its own: give BlackBoxData(student=…)")
        if name is not None and name not in self.students:
            raise ConfigurationError(f"{one} has no student {name!r}{nearest(name, self.students)}")
        return self.students[0] if name is None else name

    def write_products(self, folder: Path, problems: Sequence[Problem], outcomes: Sequence[Outcome]) -> list[Path]:
        """Writes what others than language models learn from, beside the report; nothing by default.

        Called after the report is written.

        Args:
            folder: that of the report.
            problems: the records that were asked about.
            outcomes: what became of each answer.

        Returns:
            The files.
        """
        return []

    def write_test_products(self, folder: Path, problems: Sequence[Problem]) -> list[Path]:
        """The same of the test split, about which nobody was asked."""
        return []

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The protocol's metrics over a whole split: `acc` by default."""
        return {"acc": sum(p.correct for p in predictions) / len(predictions)} if predictions else {}

    def read_gold(self, value: Any) -> str | None:
        """A gold answer of the records as text; None if it is missing."""
        return None if value is None or str(value).strip() == "" else str(value)

    @property
    def options(self) -> dict[str, Any]:
        """What the method was made with: methods of one class and equal options are the same."""
        return dict(vars(self))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.options == getattr(other, "options", None)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


def with_gold(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Those of records with a gold answer: the others cannot be right, and say nothing of the student."""
    return [prediction for prediction in predictions if prediction.gold is not None]


class MethodOfProducts(BlackBoxMethod):
    """Base of methods that train no language model: `write_products` leaves what others learn from."""

    students: ClassVar[tuple[str, ...]] = ()

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """None."""
        return {}

    def infer(self, problems: Sequence[Problem]) -> Rounds[list[Prediction]]:
        """Nothing is asked."""
        yield from ()
        return []


def problems_from(
    records: Sequence[Record], method: BlackBoxMethod, question_field: str, gold_field: str
) -> list[Problem]:
    """Records as a method's problems."""
    return [
        Problem(number, str(field_of(record, question_field)), method.read_gold(field_of(record, gold_field)), record)
        for number, record in enumerate(records)
    ]


def run_rounds(
    rounds: Rounds[T],
    generators: Mapping[str, TextGenerator],
    store: CompletionStore | None = None,
    *,
    budget: Budget | None = None,
    progress: bool = True,
) -> tuple[T, list[EngineResult]]:
    """Answers all rounds, each role by its generator, and returns what came of them.

    Args:
        rounds: of `BlackBoxMethod.collect` or `infer`.
        generators: by role.
        store: where answers are kept, for all roles; None keeps them for this run.
        budget: the most that may be spent, by all rounds together.
        progress: whether to show a bar for each round.

    Raises:
        BudgetSpentError: with what came of the rounds before in `earlier`.
    """
    store = CompletionStore(":memory:") if store is None else store
    results: list[EngineResult] = []
    answers: list[Answer] | None = None
    while True:
        try:
            current = next(rounds) if answers is None else rounds.send(answers)
        except StopIteration as end:
            return end.value, results
        engine = Engine(player(current, generators), store, progress=progress, budget=budget)
        try:
            results.append(engine.run(current.requests, current.name))
        except BudgetSpentError as error:
            error.earlier = results
            raise
        answers = results[-1].answers


def player(current: Round, generators: Mapping[str, TextGenerator]) -> TextGenerator:
    """Who answers a round.

    Raises:
        ConfigurationError: nobody plays its role, or who does cannot answer as it asks.
    """
    if current.role not in generators:
        raise ConfigurationError(_unplayed(current.role, generators))
    for request in current.requests:
        require(generators[current.role], request.needs, f"the round {current.name!r}")
    return generators[current.role]


def _unplayed(role: str, generators: Mapping[str, TextGenerator]) -> str:
    option = {"teacher": "generator", "referee": "referee"}.get(role, f"earlier_students={{{role}: …}}")
    option = option if "=" in option else f"{option}=…"
    return f"nobody plays the {role!r}, only {', '.join(sorted(generators))}: give BlackBoxData({option})"


def collect(
    method: BlackBoxMethod,
    problems: Sequence[Problem],
    teacher: TextGenerator,
    store: CompletionStore | None = None,
    *,
    others: Mapping[str, TextGenerator] | None = None,
    budget: Budget | None = None,
    progress: bool = True,
) -> tuple[list[Outcome], list[EngineResult]]:
    """Asks a teacher by a method: its outcomes, one for each record and sample, and what came of each round.

    Args:
        method: the method.
        problems: the records.
        teacher: who plays the role "teacher".
        store: where the answers of all roles are kept; None keeps them for this run.
        others: who plays further roles ("referee", or a student of an earlier round), by role.
        budget: the most that may be spent, by all rounds together.
        progress: whether to show a bar for each round.
    """
    require(teacher, method.needs, type(method).__name__)
    players = {"teacher": teacher, **(others or {})}
    outcomes, results = run_rounds(method.collect(problems), players, store, budget=budget, progress=progress)
    places = Counter((outcome.record, outcome.sample) for outcome in outcomes)
    if places and max(places.values()) > 1:
        raise RuntimeError(f"{type(method).__name__} gave two outcomes to one sample: {places.most_common(1)[0][0]}")
    return outcomes, results


def count_reasons(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many outcomes there are of each reason, "kept" first; they add up to all."""
    counts = Counter(outcome.reason for outcome in outcomes)
    kept = {KEPT: counts.pop(KEPT, 0)}
    return kept | dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
