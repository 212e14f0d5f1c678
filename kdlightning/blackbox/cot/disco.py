"""DISCO: counterfactual pairs that a large model writes and a classifier filters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdlightning.blackbox.base import KEPT, NO_TEXT, MethodOfProducts, Outcome, Problem, Round, Rounds
from kdlightning.blackbox.cot.disco_filters import DiscoHeuristics
from kdlightning.blackbox.cot.disco_pairs import write_pairs
from kdlightning.blackbox.cot.disco_prompts import (
    LABEL_WORDS,
    SHIPPED_DEMONSTRATIONS,
    DiscoPrompts,
    Perturbed,
    PromptKind,
)
from kdlightning.blackbox.cot.disco_spans import Span, span_of, windows
from kdlightning.blackbox.demonstrations import Demonstrations
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Origin, Request, Sampling
from kdlightning.generation.records import Record

NO_LABEL = "the record has no label"
NO_TARGET = "the record has no label to change to"
SAME_LABEL = "the label would stay the same"
NO_SPAN = "the record has no span"
NOT_IN_SENTENCE = "the span is not in the sentence"
REPEATED = "the perturbation was written before"
NO_SCORE = "the classifier gave no score"
LOW_SCORE = "the classifier's score is not above the threshold"


@dataclass(frozen=True)
class Candidate:
    """A span that a teacher is to replace.

    Attributes:
        problem: the record.
        span: the words.
        label: the wanted label.
        first: number of the first of its samples.
    """

    problem: Problem
    span: Span
    label: str
    first: int


class DISCO(MethodOfProducts):
    """DISCO, distilling counterfactuals with large language models (Chen et al., ACL 2023), for pairs of sentences.

    A span of the premise (or hypothesis) is blanked, and the teacher is asked for words in its place that make another
    label true. What is no good by its words alone is dropped (`DiscoHeuristics`); then a classifier scores the rest:
    P(new label | new pair) − P(new label | old pair) must be above the threshold. The student is a classifier too:
    `CounterfactualData` gives it the kept pairs and their originals, and `PairConsistency` measures on held-out pairs
    how often it is right on both. No language model is trained, so there are no examples and no inference by rounds.

    The paper's and its code's: the prompts, 4 demonstrations, temperature 0.8, 256 tokens, the heuristics and their
    order, the score, and threshold 0.25 (the code's "0.5 / 2"; an earlier state of it has 0.15, and all published pairs
    from entailment to neutral lie above that; the paper's own figure could not be checked, nor could its results).
    Ours: the demonstrations themselves; "inconclusive", misspelt in public code; a dropped perturbation really stays
    out of the classifier's filter; spans stand for whole words; an answer that repeats another one to the same span is
    dropped; an answer ends with its line, except in a chat. Not here: the parser that found the paper's spans (give
    them in the records, or take windows of words by `span_words`), penalties on frequency (0.8) and presence (0.5),
    which requests have no place for, a search for near demonstrations, and the text completion servers' `suffix` (an
    insertion's template holds both sides of the gap).

    Args:
        target_label: the label to change to; None reads `target_field` of each record.
        target_field: field of the label to change to.
        premise_field: field of the first sentence.
        hypothesis_field: field of the second.
        perturbed: which of the two is changed.
        span_field: field of the span, or of a list of them.
        span_words: for records without that field: so many neighbouring words are a span, one after the other. Such
            spans are no phrases, and the paper has none.
        prompt_kind: "completion" (a text with `[blank]`), "insertion" or "chat" (messages).
        label_words: what a prompt calls each label; the labels of natural language inference by default.
        demonstrations: how many are shown, drawn for each record out of those of the wanted label; none for insertions.
        demonstrations_path: a file of records with premise, hypothesis, span, new_label and phrase, the span in the
            sentence that is perturbed; two dozen come with kdlightning.
        samples: perturbations of each span.
        temperature: of the perturbations.
        max_tokens: most tokens of a perturbation.
        seed: of the teacher's draws and of the demonstrations.
        heuristics: the filter by words; its defaults are the paper's.
        scored: whether the referee is asked for scores: a `PairScorer`, or records with a field for the step `score`.
            False keeps what passes the heuristics.
        threshold: a pair's score must be above it.
        held_out: share of the premises whose pairs are for validation, and again for test.
        instruction_prompt: template of what is to be done; see `DiscoPrompts` for what templates may use.
        question_prompt: template of one record.
        insertion_prompt: template of one record as an insertion.
    """

    def __init__(
        self,
        target_label: str | None = None,
        target_field: str = "new_label",
        premise_field: str = "premise",
        hypothesis_field: str = "hypothesis",
        perturbed: Perturbed = "premise",
        span_field: str = "span",
        span_words: int | None = None,
        prompt_kind: PromptKind = "completion",
        label_words: dict[str, str] | None = None,
        demonstrations: int = 4,
        demonstrations_path: str = SHIPPED_DEMONSTRATIONS,
        samples: int = 1,
        temperature: float = 0.8,
        max_tokens: int = 256,
        seed: int = 0,
        heuristics: DiscoHeuristics | None = None,
        scored: bool = True,
        threshold: float = 0.25,
        held_out: float = 0.1,
        instruction_prompt: str = "disco/instruction.jinja",
        question_prompt: str = "disco/question.jinja",
        insertion_prompt: str = "disco/insertion.jinja",
    ) -> None:
        for name, count in (("samples", samples), ("span_words", 1 if span_words is None else span_words)):
            if count < 1:
                raise ConfigurationError(f"DISCO: {name} is {count}; give at least 1")
        if not -1 <= threshold <= 1:
            raise ConfigurationError(f"DISCO: threshold is {threshold}; a difference of probabilities lies in -1 to 1")
        if not 0 < held_out < 0.5:
            raise ConfigurationError(f"DISCO: held_out is {held_out}; give a share above 0, below 0.5")
        self.target_label = target_label
        self.target_field = target_field
        self.fields = (premise_field, hypothesis_field)
        self.span_field = span_field
        self.span_words = span_words
        self.samples = samples
        self.sampling = Sampling(max_tokens, temperature, seed=seed)
        self.heuristics = DiscoHeuristics() if heuristics is None else heuristics
        self.scored = scored
        self.threshold = threshold
        self.held_out = held_out
        self.prompts = DiscoPrompts(
            prompt_kind,
            perturbed,
            dict(LABEL_WORDS if label_words is None else label_words),
            demonstrations,
            demonstrations_path,
            seed,
            instruction_prompt,
            question_prompt,
            insertion_prompt,
        )

    @property
    def perturbed(self) -> Perturbed:
        """Which sentence is changed."""
        return self.prompts.perturbed

    # -- the teacher and the classifier ----------------------------------------------------------------------------

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        """One round of perturbations; one of scores for those that the heuristics leave."""
        candidates: list[Candidate] = []
        outcomes: list[Outcome] = []
        for problem in problems:
            asked, refused = self._candidates(problem)
            candidates += asked
            outcomes += refused
        banks = self.prompts.banks()
        answers = yield Round("Perturbations", [self._request(candidate, banks) for candidate in candidates])
        read: list[tuple[Problem, Outcome]] = []
        for candidate, answer in zip(candidates, answers, strict=True):
            read += [(candidate.problem, outcome) for outcome in self._read(candidate, answer)]
        if self.scored:
            open_ = [(problem, outcome) for problem, outcome in read if outcome.kept]
            answers = yield Round("Scores", [self._score_request(*each) for each in open_], role="referee")
            scored = {(o.record, o.sample): answer for (_, o), answer in zip(open_, answers, strict=True)}
            read = [(p, self._judge(o, scored[o.record, o.sample]) if o.kept else o) for p, o in read]
        outcomes += [outcome for _, outcome in read]
        return sorted(outcomes, key=lambda outcome: (outcome.record, outcome.sample))

    def sentences(self, problem: Problem) -> tuple[str, str]:
        """Premise and hypothesis of a record."""
        first, second = (_field(problem.record, name) for name in self.fields)
        return first, second

    def changed(self, problem: Problem, sentence: str) -> tuple[str, str]:
        """Premise and hypothesis with a new sentence in the place of the one that is perturbed."""
        premise, hypothesis = self.sentences(problem)
        return (sentence, hypothesis) if self.perturbed == "premise" else (premise, sentence)

    def _sentence(self, problem: Problem) -> str:
        return self.sentences(problem)[0 if self.perturbed == "premise" else 1]

    def _target(self, problem: Problem) -> str | None:
        return self.target_label or self.read_gold(problem.record.get(self.target_field))

    def _candidates(self, problem: Problem) -> tuple[list[Candidate], list[Outcome]]:
        """What is asked about a record, and what cannot be, with the reason."""
        target = self._target(problem)
        reason = NO_LABEL if problem.gold is None else NO_TARGET if target is None else None
        reason = SAME_LABEL if reason is None and target == problem.gold else reason
        spans = self._spans(problem)
        if reason is not None or target is None or not spans:
            return [], self._refused(problem, 0, reason or NO_SPAN)
        candidates, refused = [], []
        for place, (text, span) in enumerate(spans):
            if span is None:
                refused += self._refused(problem, place, NOT_IN_SENTENCE, {"span": text})
            else:
                candidates.append(Candidate(problem, span, target, place * self.samples))
        return candidates, refused

    def _refused(
        self, problem: Problem, place: int, reason: str, texts: Mapping[str, str] | None = None
    ) -> list[Outcome]:
        numbers = range(place * self.samples, (place + 1) * self.samples)
        return [Outcome(problem.number, number, reason, texts or {}) for number in numbers]

    def _spans(self, problem: Problem) -> list[tuple[str, Span | None]]:
        sentence = self._sentence(problem)
        given = problem.record.get(self.span_field)
        if given is None and self.span_words is not None:
            return [(span.text, span) for span in windows(sentence, self.span_words)]
        texts = given if isinstance(given, list) else [] if given is None else [given]
        # One that is named twice is asked once.
        return [(text, span_of(sentence, text)) for text in dict.fromkeys(str(each) for each in texts) if text.strip()]

    def _request(self, candidate: Candidate, banks: Mapping[str, Demonstrations]) -> Request:
        problem = candidate.problem
        content = self.prompts.content(problem, self.sentences(problem), candidate.span, candidate.label, banks)
        return Request(
            **content,
            samples=self.samples,
            first_sample=candidate.first,
            sampling=self.sampling,
            stop=() if self.prompts.kind == "chat" else ("\n",),
            origin=Origin(problem.question, "perturbation"),
        )

    def _read(self, candidate: Candidate, answer: Answer) -> list[Outcome]:
        problem, outcomes, seen = candidate.problem, [], set()
        premise, hypothesis = self.sentences(problem)
        other = hypothesis if self.perturbed == "premise" else premise
        for number in range(candidate.first, candidate.first + self.samples):
            texts = {"span": candidate.span.text, "label": candidate.label}
            completion = answer.completions.get(number)
            if completion is None:
                outcomes.append(Outcome(problem.number, number, NO_TEXT, texts, detail=answer.failures.get(number, "")))
                continue
            phrase = " ".join(completion.text.split())
            sentence = candidate.span.replaced(self._sentence(problem), phrase)
            reason = self.heuristics.reason(phrase, premise, hypothesis, sentence, other, candidate.label)
            reason = REPEATED if reason is None and sentence in seen else reason
            seen.add(sentence)
            texts |= {"perturbation": completion.text.strip(), "sentence": sentence}
            outcomes.append(Outcome(problem.number, number, reason or KEPT, texts))
        return outcomes

    def _score_request(self, problem: Problem, outcome: Outcome) -> Request:
        """The question that a `PairScorer` reads."""
        new = self.changed(problem, outcome.texts["sentence"])
        question = {"old": self.sentences(problem), "new": new, "label": outcome.texts["label"]}
        origin = Origin(problem.question, "score", {"perturbation": outcome.texts["perturbation"]})
        return Request(json.dumps(question, ensure_ascii=False), sampling=Sampling(16), origin=origin)

    def _judge(self, outcome: Outcome, answer: Answer) -> Outcome:
        if 0 not in answer.completions:
            return replace(outcome, reason=NO_SCORE, detail=answer.failures.get(0, ""))
        said = answer.completions[0].text.strip()
        score = _number(said)
        if score is None or not -1 <= score <= 1:
            return replace(outcome, reason=NO_SCORE, detail=f"it said {said[:60]!r}")
        texts = {**outcome.texts, "score": f"{score:.6g}"}
        return replace(outcome, texts=texts, reason=KEPT if score > self.threshold else LOW_SCORE)

    # -- the student -----------------------------------------------------------------------------------------------

    def write_products(self, folder: Path, problems: Sequence[Problem], outcomes: Sequence[Outcome]) -> list[Path]:
        """`counterfactuals.jsonl`, and the classifier's data in `pairs/` and `unfiltered_pairs/`; see `write_pairs`."""
        return write_pairs(self, folder, problems, outcomes)


def _field(record: Record, name: str) -> str:
    if record.get(name) is None:
        raise ConfigurationError(f"DISCO: a record has no field {name!r}; it has {', '.join(map(str, record))}")
    return str(record[name])


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
