"""The loop that finds what a student does badly, and writes more of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from kdlightning.blackbox.base import MethodOfProducts, Outcome, Problem, Round, Rounds
from kdlightning.blackbox.instruction.instruction_following import InstructionFollowing
from kdlightning.blackbox.instruction.new_instructions import EASY, HARD, Seed, Writer
from kdlightning.blackbox.instruction.pools import write_pools, write_test_pool
from kdlightning.blackbox.instruction.referee import Comparison, Referee, Verdict
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Sampling

Answered = tuple[Problem, dict[str, str]]
"""A record, and what was answered to it so far, by step."""

NO_STUDENT = "the student did not answer"


class HardInstructions(MethodOfProducts):
    """Discrimination and generation of Lion (Jiang, Chan, Chen and Wang, EMNLP 2023): one round of its loop.

    The records are the cache pool: every instruction so far. Teacher and student (of the imitation before, the role
    "student") answer each; a referee scores both answers from 1 to 10, twice with the order swapped, and the scores are
    averaged; the instruction is *hard* if the teacher is better by `threshold` or more. New instructions are then
    written by the teacher: for hard ones in the same domain and of the same task type, for easy ones in the same domain
    but rarer. Dropped are those that contain the word "instruction", are cut off, have three words or fewer, start with
    punctuation or a character outside ASCII, or resemble one of the pool or a new one by a ROUGE-L above
    `max_similarity`. Each reason is counted; `Outcome.prediction` says hard or easy.

    `kdlightning generate` leaves beside its report `train_pool.jsonl` (what the student learns next),
    `cache_pool.jsonl` (the records of the next round), `test_pool.jsonl` (the test split as it was, for rounds that
    read the pools) and `pools.json` (counts, and the student's relative score). Pools have the fields instruction,
    input, output, kind and seed. Every answer is stored as it arrives: a round that was broken off goes on from there.

    The paper's (numbers from the authors' code): prompts (indented there), the referee's temperature 0.2 and 512
    tokens, the threshold, temperature 1.0 and 4 tokens a word of the seed for new instructions, 3000 hard and 3000 easy
    ones, the filters and 0.7. Ours: teacher's answers that `following` drops are not compared; scores are found in any
    line that is nothing but a score, where the code reads the last two lines; `referee_retries` instead of asking until
    nothing improves; seeds are drawn one after the other and at most `attempts` times, where the code draws at random
    without end; hard and easy ones are compared with each other too; texts are stripped first; `replay`. Lion writes
    GPT-3.5 for all three roles; the paper's gains need such a model, and are not verifiable here.

    Args:
        following: how instructions are put to teacher and student: the method of the imitation.
        threshold: smallest difference of the mean scores that is hard.
        hard: new hard instructions wanted.
        easy: new easy instructions wanted.
        attempts: most tries with one seed.
        max_similarity: of a new instruction to any other one.
        replay: instructions of the cache pool that are learned again beside the new ones, those with the largest
            difference first, then those that could not be judged; 0 is the paper's.
        student_tokens: most tokens of the student's answer.
        student_temperature: of the student's answer.
        referee_tokens: most tokens of the referee's text.
        referee_temperature: of the referee's text.
        referee_retries: how often the referee is asked again where scores are missing.
        temperature: of new instructions.
        top_p: of new instructions.
        seed: of all draws.
        referee_prompt: template; it may use `instruction`, `first` and `second`.
        referee_system_prompt: template of a system message for the referee; the paper's is
            `hard_instructions/referee_system.jinja`.
        hard_prompt: template for hard seeds; it may use `instruction`.
        easy_prompt: the same for easy ones.
        writer_system_prompt: template of a system message for the writer.

    Raises:
        ConfigurationError: options out of range.
    """

    may_be_empty: ClassVar[bool] = True

    def __init__(
        self,
        following: InstructionFollowing | None = None,
        threshold: float = 1.0,
        hard: int = 3000,
        easy: int = 3000,
        attempts: int = 4,
        max_similarity: float = 0.7,
        replay: int = 0,
        student_tokens: int = 1024,
        student_temperature: float = 0.7,
        referee_tokens: int = 512,
        referee_temperature: float = 0.2,
        referee_retries: int = 3,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        referee_prompt: str = "hard_instructions/referee.jinja",
        referee_system_prompt: str | None = None,
        hard_prompt: str = "hard_instructions/hard.jinja",
        easy_prompt: str = "hard_instructions/easy.jinja",
        writer_system_prompt: str | None = None,
    ) -> None:
        if replay < 0:
            raise ConfigurationError(f"replay is {replay}: give a number of instructions, 0 for none")
        self.following = InstructionFollowing() if following is None else following
        self.threshold = threshold
        self.replay = replay
        self.student_sampling = Sampling(student_tokens, student_temperature, seed=seed)
        judging = Sampling(referee_tokens, referee_temperature, seed=seed)
        self.referee = Referee(judging, referee_retries, referee_prompt, referee_system_prompt)
        self.writer = Writer(
            {HARD: hard, EASY: easy},
            attempts,
            max_similarity,
            Sampling(1, temperature, top_p, seed=seed),
            {HARD: hard_prompt, EASY: easy_prompt},
            writer_system_prompt,
        )
        self.context_fields = self.following.context_fields

    def prompt(self, problem: Problem) -> str:
        """The student's prompt."""
        return self.following.prompt(problem)

    # -- discrimination --------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """Rounds of the teacher, the student, the referee, and of the teacher as the writer of new instructions."""
        outcomes: list[Outcome] = []
        answered = yield from self._teacher(problems, outcomes)
        compared = yield from self._student(answered, outcomes)
        comparisons = [
            Comparison(
                self.following.origin(problem, ""),
                self.following.instruction(problem),
                texts["response"],
                texts["student"],
            )
            for problem, texts in compared
        ]
        verdicts = yield from self.referee.judge(comparisons)
        seeds = []
        for (problem, texts), comparison, verdict in zip(compared, comparisons, verdicts, strict=True):
            if verdict.reason:
                reviews = {f"review, {order}": text for order, text in verdict.reviews.items()}
                outcomes.append(Outcome(problem.number, 0, verdict.reason, texts | reviews, detail=verdict.detail))
            else:
                seeds.append(self._seed(problem, comparison, texts, verdict))
        pool = [self.following.instruction(problem) for problem in problems]
        outcomes += yield from self.writer.write(seeds, pool)
        return sorted(outcomes, key=lambda outcome: (outcome.record, outcome.sample))

    def _teacher(self, problems: Sequence[Problem], outcomes: list[Outcome]) -> Rounds[list[Answered]]:
        answers = yield Round("Teacher's answers", [self.following.teacher_request(each) for each in problems])
        answered = []
        for problem, answer in zip(problems, answers, strict=True):
            outcome = self.following.read_teacher(problem, answer)
            if outcome.kept:
                answered.append((problem, dict(outcome.texts)))
            else:
                outcomes.append(outcome)
        return answered

    def _student(self, answered: Sequence[Answered], outcomes: list[Outcome]) -> Rounds[list[Answered]]:
        requests = [self.following.student_request(problem, self.student_sampling) for problem, _ in answered]
        answers: list[Answer] = yield Round("Student's answers", requests, role="student")
        compared = []
        for (problem, texts), answer in zip(answered, answers, strict=True):
            if 0 in answer.completions:
                # An empty answer is one too, if a bad one.
                compared.append((problem, texts | {"student": answer.completions[0].text.strip()}))
            else:
                outcomes.append(Outcome(problem.number, 0, NO_STUDENT, texts, detail=answer.failures.get(0, "")))
        return compared

    def _seed(self, problem: Problem, comparison: Comparison, texts: dict[str, str], verdict: Verdict) -> Seed:
        kind = HARD if verdict.teacher - verdict.student >= self.threshold else EASY
        scores = {"teacher_score": f"{verdict.teacher:g}", "student_score": f"{verdict.student:g}"}
        return Seed(problem.number, comparison.origin, comparison.instruction, kind, texts | scores)

    # -- what comes of it ------------------------------------------------------------------------------------------

    def write_products(self, folder: Path, problems: Sequence[Problem], outcomes: Sequence[Outcome]) -> list[Path]:
        """The pools of the next round, and what became of this one."""
        return write_pools(self, folder, problems, outcomes)

    def write_test_products(self, folder: Path, problems: Sequence[Problem]) -> list[Path]:
        """The test split, for the rounds that read the pools."""
        return write_test_pool(self.following, folder, problems)
