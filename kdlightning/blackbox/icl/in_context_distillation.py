"""In-context learning distillation: a student learns to answer from demonstrations as its teacher does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kdlightning.blackbox.answers import answers_match
from kdlightning.blackbox.base import KEPT, NO_TEXT, Example, Outcome, Problem, Round, Rounds
from kdlightning.blackbox.icl.in_context import InContextMethod, Paradigm, task_of
from kdlightning.blackbox.question_answering import NO_GOLD
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Origin, Request
from kdlightning.schedules import LinearSchedule, Weight

ONE_ANSWER = "its task has one answer only"
LONG = "longer than example_characters"
EMPTY = "the teacher's answer is empty"
NO_OPTION = "the teacher's answer is none of its task's"


class InContextDistillation(InContextMethod):
    """In-context learning distillation (Huang, Chen, Yu and McKeown, 2022, arXiv:2212.10670).

    The student is given k demonstrations and a query, and learns the query's output; beside this in-context objective
    it learns to write the task's texts. L = L_in-context + beta_lm·L_language, with L_in-context =
    a(t)·(cross-entropy on hard labels) + (1 − a(t))·KL(teacher ‖ student), and L_language = cross-entropy + KL on every
    token of a record's own prompt and answer. The teacher sees what the student sees. Without a white-box teacher the
    KL parts are left out.

    The paper's: the two objectives, hard and soft labels, and the two paradigms. Meta-ICT trains on some families of
    tasks and tests on others, of whose tasks `shots` examples may be shown and none is trained on. Multitask-ICT trains
    on `shots` examples of each task, in the same format, and tests on others of the same tasks. Where a task has more
    examples than k, k are drawn `votes` times, and the majority of the predictions counts.
    Not verifiable here (no code was released): the schedule a(t) and the weight of the language objective, hence
    `alpha_start`, `alpha_end` and `beta_lm`; the neutral defaults are ours. In the paper the language objective helps
    Multitask-ICT and tends to harm Meta-ICT's generalisation. Of MetaICL (Min et al., NAACL 2022), as a
    specification: three line breaks between demonstrations, one before an answer, 16 demonstrations, choice by the
    lowest negative log-likelihood a token among a task's answers, macro-F1.
    Ours: tasks of at most `most_options` different answers (in all records) are choices, the others are written
    greedily and measured by exact match and ROUGE-L; tied votes are decided by the lowest negative log-likelihood a
    token, summed over the draws; in Multitask-ICT an example's place in its task decides its part, the same for all
    tasks of a family (prompts of one family are often made of the same texts), and what has a trained prompt is not
    tested; long examples are left out, where MetaICL cuts them; tasks with one answer only are left out.

    Demonstrations come from the query's own task, never from a record with the query's prompt: in training others in
    each epoch, drawn from (run's seed, epoch, record); in inference from (`seed`, record, vote).

    Args:
        paradigm: "meta" or "multitask".
        soft_labels: whether a white-box teacher gives soft labels: `BlackBoxDistillation(teacher=…)`.
        demonstrations: k; 0 trains and asks without any.
        votes: m, draws of demonstrations in inference.
        shots: examples of each task that are trained on (multitask; None is all), or that may be shown for a held-out
            one (meta; None is 16; at most half of what there is).
        queries: most examples of each held-out task that are asked (meta), or of each task (multitask); None is all.
        alpha_start: share of the hard labels in the in-context objective at the start; only with soft labels.
        alpha_end: the same at the end; the way is a straight line.
        beta_lm: weight of the language objective; 0 leaves it out.
        tasks: names of the tasks or families to use; None is all.
        test_families: the families that Meta-ICT tests on, instead of `test_split` drawn by `split_seed`.
        task_field: field of a record's task.
        family_field: field of the task's family; None makes each task a family.
        most_options: most different answers of a task that is a choice.
        example_characters: longest prompt and answer that is trained on or shown.
        context_characters: longest context; demonstrations that do not fit are left out.
        answer_tokens: most tokens of a written answer.
        separator: what stands between demonstrations.
        seed: of the demonstrations of inference and of what the teacher is asked.
        context_prompt: template of a context; it may use `demonstrations` (of `question` and `answer`), `question`,
            `separator` and `record`.
    """

    def __init__(
        self,
        paradigm: Paradigm = "meta",
        soft_labels: bool = False,
        demonstrations: int = 16,
        votes: int = 5,
        shots: int | None = None,
        queries: int | None = None,
        alpha_start: float = 0.5,
        alpha_end: float = 0.5,
        beta_lm: float = 1.0,
        tasks: list[str] | None = None,
        test_families: list[str] | None = None,
        task_field: str = "task",
        family_field: str | None = "family",
        most_options: int = 20,
        example_characters: int = 1000,
        context_characters: int = 4000,
        answer_tokens: int = 64,
        separator: str = "\n\n\n",
        seed: int = 0,
        context_prompt: str = "in_context_distillation/context.jinja",
    ) -> None:
        super().__init__(
            paradigm=paradigm,
            demonstrations=demonstrations,
            votes=votes,
            shots=shots,
            queries=queries,
            tasks=tasks,
            test_families=test_families,
            task_field=task_field,
            family_field=family_field,
            most_options=most_options,
            example_characters=example_characters,
            context_characters=context_characters,
            answer_tokens=answer_tokens,
            separator=separator,
            seed=seed,
            context_prompt=context_prompt,
        )
        if beta_lm < 0:
            raise ConfigurationError(f"InContextDistillation: beta_lm is {beta_lm}; give 0 (none) or more")
        if not (0 <= alpha_start <= 1 and 0 <= alpha_end <= 1):
            raise ConfigurationError("InContextDistillation: alpha_start and alpha_end are shares from 0 to 1")
        if not soft_labels and (alpha_start, alpha_end) != (0.5, 0.5):
            raise ConfigurationError(
                "InContextDistillation: alpha_start and alpha_end are of soft_labels; leave them out"
            )
        self.soft_labels = soft_labels
        self.alpha = (alpha_start, alpha_end)
        self.beta_lm = beta_lm

    @property
    def tag_weights(self) -> Mapping[str, Weight]:  # type: ignore[override]
        """Weights of the hard labels: a(t) and `beta_lm`; without soft labels 1 and `beta_lm`."""
        start, end = self.alpha if self.soft_labels else (1.0, 1.0)
        return {"icl": _line(start, end), "lm": self.beta_lm}

    @property
    def soft_tag_weights(self) -> Mapping[str, Weight]:  # type: ignore[override]
        """Weights of the soft labels: 1 − a(t) and `beta_lm`."""
        if not self.soft_labels:
            return {}
        return {"icl": _line(1 - self.alpha[0], 1 - self.alpha[1]), "lm": self.beta_lm}

    # -- the teacher -----------------------------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """One round: the teacher answers each record from its demonstrations, as the student will."""
        reasons = {problem.number: self._reason(problem) for problem in problems}
        asked = [problem for problem in problems if reasons[problem.number] == KEPT]
        answers = yield Round("Answers", [self._teacher_request(problem) for problem in asked])
        read = {problem.number: self._read(problem, answer) for problem, answer in zip(asked, answers, strict=True)}
        return [read.get(each.number, Outcome(each.number, 0, reasons[each.number])) for each in problems]

    def _reason(self, problem: Problem) -> str:
        if problem.gold is None:
            return NO_GOLD
        if len(task_of(problem).answers) < 2:
            return ONE_ANSWER
        return LONG if self.is_long(problem) else KEPT

    def _teacher_request(self, problem: Problem) -> Request:
        origin = Origin(problem.question, "answer", {"task": task_of(problem).task})
        return Request(self.context(problem), sampling=self.answer_sampling, stop=(self.separator,), origin=origin)

    def _read(self, problem: Problem, answer: Answer) -> Outcome:
        if 0 not in answer.completions:
            return Outcome(problem.number, 0, NO_TEXT, detail=answer.failures.get(0, ""))
        text = answer.completions[0].text.strip()
        outcome = Outcome(problem.number, 0, KEPT if text else EMPTY, {"answer": text}, text or None)
        if text and self.chooses(problem):
            same = [each for each in task_of(problem).answers if answers_match(text, each, "text")]
            return replace(outcome, prediction=same[0]) if same else replace(outcome, reason=NO_OPTION)
        return outcome

    # -- the student -----------------------------------------------------------------------------------------------

    def examples(self, problem: Problem, outcomes: Sequence[Outcome]) -> dict[str, list[Example]]:
        """The answer behind the demonstrations (tag "icl"), and the record's own text as a whole (tag "lm")."""
        texts = []
        for outcome in outcomes:
            if outcome.kept and outcome.prediction is not None:
                texts.append(Example(problem.number, self.context(problem), outcome.prediction, "icl"))
                if self.beta_lm:
                    text = self.render(problem) + outcome.prediction
                    texts.append(Example(problem.number, "", text, "lm"))
        return {"student": texts}


def _line(start: float, end: float) -> Weight:
    return start if start == end else LinearSchedule(start, end)
