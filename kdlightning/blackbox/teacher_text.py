"""What a teacher wrote about a set of records, asked for, filtered, and kept beside its store."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from kdlightning.blackbox.base import BlackBoxMethod, Example, Outcome, Problem, collect
from kdlightning.blackbox.estimate import estimate_rounds
from kdlightning.blackbox.report import read_report, summary, write_report, write_whole
from kdlightning.blackbox.sequences import tokenize
from kdlightning.blackbox.templates import template_text
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import TextGenerator, require
from kdlightning.generation.budget import Budget, BudgetSpentError, Estimate
from kdlightning.generation.engine import EngineResult
from kdlightning.generation.store import CompletionStore
from kdlightning.generation.usage import Usage
from kdlightning.text.tokenizers import load_tokenizer, train_tokenizer

TOO_LONG = "longer than max_length tokens"


@dataclass
class Asked:
    """What came of asking a teacher.

    Attributes:
        outcomes: one for each answer, as the report has them; none where the budget ended.
        results: of each round.
        spent: requests, tokens and money; tokens where the generator tells them, or a budget asks for them.
        ended: where the budget ended, a sentence; None otherwise.
        products: further files that the method has written.
    """

    outcomes: list[Outcome]
    results: list[EngineResult]
    spent: Usage
    ended: str | None = None
    products: list[Path] = field(default_factory=list)


def check_source(
    owner: str, path: Any, store: str | None, generator: TextGenerator | None, recorded_fields: Any
) -> None:
    """Raises ConfigurationError if a data module lacks records, a store, or one teacher.

    Args:
        owner: the data module.
        path: of the records.
        store: the file of answers.
        generator: the teacher; or
        recorded_fields: of the records' own text. One of the two.
    """
    if path is None:
        raise ConfigurationError(f"{owner} needs path, a JSONL file of records: --data.path FILE")
    if store is None:
        raise ConfigurationError(f"{owner} needs store, the file that keeps the teacher's answers")
    if (generator is None) == (recorded_fields is None):
        raise ConfigurationError(f"{owner}: give either generator, or recorded_fields of the records")


@dataclass
class TeacherText:
    """Asks a teacher by a method, and keeps the outcome in `<store>.<method>/`, for all students of the method.

    The folder holds `report.jsonl` (one line for each answer, kept or dropped with its reason), the tokenizer if it
    was trained here, and `prepared.json`, which says what they were made from.

    Attributes:
        method: the method.
        problems: the records that the teacher is asked about, by part: "train" and "val".
        generator: the teacher.
        student: whose training texts are wanted; what the teacher wrote, the report and the tokenizer are those of all
            students of the method.
        others: who plays further roles while the teacher is asked, by role.
        store: the file of all its answers.
        given_tokenizer: the student's tokenizer, its folder or hub name, or None to train one.
        tokenizer_kind: of a trained one.
        vocab_size: of a trained one.
        max_length: longest example in tokens.
        progress: whether to show bars and the summary.
        given_folder: where to keep all that instead.
        tested: the records of the test split, about which nobody is asked.
    """

    method: BlackBoxMethod
    problems: Mapping[str, Sequence[Problem]]
    generator: TextGenerator
    store: str
    student: str = "student"
    others: Mapping[str, TextGenerator] = field(default_factory=dict)
    given_tokenizer: Any = None
    tokenizer_kind: Literal["bpe", "characters"] = "bpe"
    vocab_size: int = 2000
    max_length: int = 512
    progress: bool = True
    given_folder: str | None = None
    tested: Sequence[Problem] = ()

    @property
    def folder(self) -> Path:
        """The folder, beside the store if no other is given."""
        if self.given_folder is not None:
            return Path(self.given_folder)
        path = Path(self.store)
        return path.with_name(f"{path.stem}.{type(self.method).__name__}")

    @property
    def report(self) -> Path:
        """The JSONL file of what was kept and dropped."""
        return self.folder / "report.jsonl"

    # -- asking ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Asks for what the store lacks, filters, and writes report and tokenizer.

        Raises:
            ConfigurationError: no answer was kept.
        """
        asked = self.ask()
        said = summary(asked.outcomes)
        if not self._is_enough(asked.outcomes):
            details = [f" ({outcome.detail})" for outcome in asked.outcomes if outcome.detail][:1]
            raise ConfigurationError(f"nothing to train on: {said}{''.join(details)}; see {self.report}")
        if self.progress:
            failed = sum(len(result.failures) for result in asked.results)
            more = f"; {failed} requests failed, and are asked again by the next fit" if failed else ""
            print(f"{type(self.method).__name__}: {said}{more}; report: {self.report}", file=sys.stderr)

    def ask(self, budget: Budget | None = None) -> Asked:
        """The same, whatever comes of it.

        Args:
            budget: the most that may be spent; where it ends, nothing is written but the store.
        """
        budget = Budget() if budget is None else budget
        everything = {problem.number: problem for problems in self.problems.values() for problem in problems}
        parts = {problem.number: part for part, problems in self.problems.items() for problem in problems}
        problems = list(everything.values())
        options: dict[str, Any] = {"others": self.others, "budget": budget, "progress": self.progress}
        with CompletionStore(self.store) as store:
            try:
                outcomes, results = collect(self.method, problems, self.generator, store, **options)
            except BudgetSpentError as error:
                return Asked([], [*error.earlier, error.result], budget.spent, str(error))
        examples = [example for name in self.method.students for example in self.examples("train", outcomes, name)]
        if examples:
            tokenizer = self._make_tokenizer(examples)
            outcomes = [self._fitting(outcome, everything[outcome.record], tokenizer) for outcome in outcomes]
        # What stood here before is no longer true, whatever comes of this, or breaks it off.
        prepared = self.folder / "prepared.json"
        prepared.unlink(missing_ok=True)
        write_report(self.report, outcomes, everything, parts)
        products = self.method.write_products(self.folder, problems, outcomes)
        products += self.method.write_test_products(self.folder, self.tested)
        if self._is_enough(outcomes):
            write_whole(prepared, json.dumps({"digest": self._digest()}))
        return Asked(outcomes, results, budget.spent, products=products)

    def estimate(self) -> tuple[str | None, Estimate]:
        """The first round that the store has not all answers of: its name, and what it would ask and cost at most.

        Nothing is asked and nothing written; the name is None if nothing is to be asked.
        """
        require(self.generator, self.method.needs, type(self.method).__name__)
        problems = {problem.number: problem for part in self.problems.values() for problem in part}
        rounds = self.method.collect(list(problems.values()))
        with CompletionStore(self.store if Path(self.store).exists() else ":memory:") as store:
            return estimate_rounds(rounds, {"teacher": self.generator, **self.others}, store)

    def _is_enough(self, outcomes: Sequence[Outcome]) -> bool:
        """Whether there is something to learn from, and of the teacher."""
        kept = any(outcome.kept for outcome in outcomes)
        if self.method.students:
            return kept and bool(self.examples("train", outcomes))
        return self.method.may_be_empty or kept

    def prepare_for(self, trainer: Any) -> None:
        """Asks for what the store lacks; a fit also asks again for what failed, unless it resumes.

        Args:
            trainer: the data module's, or None.
        """
        fresh = trainer is None or (trainer.state.fn == "fit" and trainer.ckpt_path is None)
        if fresh or not self.is_prepared():
            self.prepare()

    def is_prepared(self) -> bool:
        """Whether the folder was made from this method, these records, this teacher and this tokenizer."""
        try:
            state = json.loads((self.folder / "prepared.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(state, dict) and state.get("digest") == self._digest() and self.report.is_file()

    def _digest(self) -> str:
        templates = sorted((name, value) for name, value in self.method.options.items() if isinstance(value, str))
        content = [
            type(self.method).__name__,
            {name: repr(value) for name, value in sorted(self.method.options.items())},
            self.generator.identity,
            {role: other.identity for role, other in sorted(self.others.items())},
            # A user's template can be edited in its place, and it may use any field of a record.
            [template_text(value) for _, value in templates if value.endswith(".jinja")],
            {part: [(p.question, p.gold, p.record) for p in problems] for part, problems in self.problems.items()},
            self._tokenizer_name(),
            self.max_length,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _fitting(self, outcome: Outcome, problem: Problem, tokenizer: Any) -> Outcome:
        if not outcome.kept:
            return outcome
        # An answer that is too long for one student is dropped for all of them: they learn from the same answers.
        examples = [e for name in self.method.students for e in self._of_record(problem, [outcome], name)]
        lengths = [len(tokenize(e, tokenizer, encoder_decoder=self.method.encoder_decoder)) for e in examples]
        return outcome if max(lengths, default=0) <= self.max_length else replace(outcome, reason=TOO_LONG)

    # -- examples --------------------------------------------------------------------------------------------------

    def outcomes(self) -> list[Outcome]:
        """What `prepare` wrote down."""
        return read_report(self.report)

    def examples(self, part: str, outcomes: Sequence[Outcome], student: str | None = None) -> list[Example]:
        """A student's training texts from all kept answers of a part; None is the wanted student."""
        grouped = by_record(outcomes)
        return [
            example
            for problem in self.problems[part]
            for example in self._of_record(problem, grouped.get(problem.number, []), student or self.student)
        ]

    def shown(self, part: str, outcomes: Sequence[Outcome]) -> list[Example]:
        """What validation shows of each record: the texts of its first kept answer, or the prompt alone."""
        grouped = by_record(outcomes)
        return [
            example
            for problem in self.problems[part]
            for example in self._shown(problem, grouped.get(problem.number, []))
        ]

    def _shown(self, problem: Problem, outcomes: Sequence[Outcome]) -> list[Example]:
        first = next((outcome for outcome in outcomes if outcome.kept), None)
        examples = [] if first is None else self._of_record(problem, [first], self.student)
        # A text may need several answers together.
        examples = examples or self._of_record(problem, outcomes, self.student)[:1]
        return examples or [Example(problem.number, self.method.prompt(problem), "")]

    def _of_record(self, problem: Problem, outcomes: Sequence[Outcome], student: str) -> list[Example]:
        by_student = self.method.examples(problem, [outcome for outcome in outcomes if outcome.kept])
        unknown = sorted(set(by_student) - set(self.method.students))
        if unknown:
            raise RuntimeError(f"{type(self.method).__name__} made examples of {unknown}, who are none of its students")
        return list(by_student.get(student, []))

    # -- the student's tokenizer -----------------------------------------------------------------------------------

    def tokenizer(self) -> Any:
        """The student's tokenizer, loaded.

        Raises:
            ConfigurationError: it has no end or no padding token.
        """
        given = self.given_tokenizer
        if given is None:
            given = str(self.folder / self._tokenizer_name())
        tokenizer = load_tokenizer(given) if isinstance(given, str) else given
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise ConfigurationError("the tokenizer needs an end token and a padding token: set them and save it again")
        return tokenizer

    def _tokenizer_name(self) -> str:
        given = self.given_tokenizer
        if given is not None:
            return given if isinstance(given, str) else f"{type(given).__name__} of {len(given)}"
        questions = json.dumps([[problem.question for problem in self.problems["train"]], self.tokenizer_kind])
        return f"tokenizer-{self.vocab_size}-{hashlib.sha256(questions.encode()).hexdigest()[:12]}"

    def _make_tokenizer(self, examples: Sequence[Example]) -> Any:
        folder = self.folder / self._tokenizer_name()
        # Once trained it stays: a student's numbers of tokens must not change when a few more answers come in.
        if self.given_tokenizer is not None or folder.is_dir():
            return self.tokenizer()
        texts = [example.prompt + example.given + example.label for example in examples]
        tokenizer = train_tokenizer(texts, self.vocab_size, self.tokenizer_kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = Path(mkdtemp(prefix=".tokenizer-", dir=self.folder))
        tokenizer.save_pretrained(str(beside))
        try:
            beside.rename(folder)
        except OSError:
            # Another process was first; from the same texts it has trained the same.
            shutil.rmtree(beside, ignore_errors=True)
        return self.tokenizer()


def by_record(outcomes: Sequence[Outcome]) -> dict[int, list[Outcome]]:
    """Outcomes by the number of their record."""
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.record, []).append(outcome)
    return groups
