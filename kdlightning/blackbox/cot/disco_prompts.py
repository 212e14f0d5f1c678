"""How a teacher is asked for words in a span's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from kdlightning.blackbox.base import Problem
from kdlightning.blackbox.cot.disco_spans import Span, span_of
from kdlightning.blackbox.demonstrations import Demonstrations, load_demonstrations
from kdlightning.blackbox.templates import render
from kdlightning.errors import ConfigurationError

Perturbed = Literal["premise", "hypothesis"]
PromptKind = Literal["completion", "insertion", "chat"]
LABEL_WORDS = {"entailment": "true", "neutral": "inconclusive", "contradiction": "false"}
SHIPPED_DEMONSTRATIONS = "disco/demonstrations.jsonl"

Sentences = tuple[str, str]
"""Premise and hypothesis."""


@dataclass(frozen=True)
class DiscoPrompts:
    """Prompts of DISCO, from templates that a user can replace.

    A template may use `premise`, `hypothesis` (with the blank in its place), `perturbed` ("premise" or "hypothesis"),
    `label`, `word` (how the label is called), `before` and `after` (what its sentence has on both sides of the blank)
    and `record` (all its fields).

    Attributes:
        kind: "completion", "insertion" or "chat".
        perturbed: which sentence has the blank.
        words: what each label is called.
        count: demonstrations of a prompt; an insertion has none.
        bank: file of the demonstrations.
        seed: of their draw.
        instruction: template of what is to be done; begins a completion, and is the system's message of a chat.
        question: template of one record, up to where the answer stands; demonstrations have it too.
        insertion: template of one record with `[insert]`, or the teacher's own infilling tokens.
    """

    kind: PromptKind = "completion"
    perturbed: Perturbed = "premise"
    words: Mapping[str, str] = field(default_factory=lambda: dict(LABEL_WORDS))
    count: int = 4
    bank: str = SHIPPED_DEMONSTRATIONS
    seed: int = 0
    instruction: str = "disco/instruction.jinja"
    question: str = "disco/question.jinja"
    insertion: str = "disco/insertion.jinja"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("perturbed", self.perturbed, get_args(Perturbed)),
            ("prompt_kind", self.kind, get_args(PromptKind)),
        ):
            if value not in allowed:
                raise ConfigurationError(f"DISCO: {name} is {' or '.join(allowed)}, not {value!r}")
        if self.count < 0:
            raise ConfigurationError(f"DISCO: demonstrations is {self.count}; give at least 0")

    def banks(self) -> dict[str, Demonstrations]:
        """The demonstrations that have the blank in the wanted sentence, by their new label."""
        if not self.count or self.kind == "insertion":
            return {}
        fields = ("premise", "hypothesis", "span", "new_label", "phrase")
        everything = load_demonstrations(
            self.bank, fields, owner="DISCO", choice="drawn", seed=self.seed, question_field="premise"
        )
        fitting: dict[str, list[Mapping[str, Any]]] = {}
        for each in everything.bank:
            if span_of(each[self.perturbed], each["span"]) is not None:
                fitting.setdefault(each["new_label"], []).append(each)
        return {label: replace(everything, bank=tuple(bank), count=self.count) for label, bank in fitting.items()}

    def content(
        self, problem: Problem, sentences: Sentences, span: Span, label: str, banks: Mapping[str, Demonstrations]
    ) -> dict[str, Any]:
        """What a request is made with: a prompt, or messages."""
        values = self._values(sentences, span, label, problem.record)
        if self.kind == "insertion":
            return {"prompt": render(self.insertion, **values)}
        instruction, question = render(self.instruction, **values), render(self.question, **values)
        shown = self._shown(problem, sentences, label, banks) if self.count else []
        if self.kind == "completion":
            blocks = [instruction, *(f"{asked} {answer}" for asked, answer in shown), question]
            return {"prompt": "\n\n".join(blocks)}
        messages = [{"role": "system", "content": instruction}]
        for asked, answer in shown:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return {"messages": [*messages, {"role": "user", "content": question}]}

    def _shown(
        self, problem: Problem, sentences: Sentences, label: str, banks: Mapping[str, Demonstrations]
    ) -> Sequence[tuple[str, str]]:
        if label not in banks:
            raise ConfigurationError(
                f"DISCO: no demonstration has new_label {label!r} and its span in the {self.perturbed}; "
                "give demonstrations_path, or demonstrations: 0"
            )
        shown = []
        # Told from a record by its premise, whatever the record's question is.
        for each in banks[label](replace(problem, question=sentences[0])):
            span = span_of(each[self.perturbed], each["span"])
            assert span is not None
            values = self._values((each["premise"], each["hypothesis"]), span, label, each)
            shown.append((render(self.question, **values), str(each["phrase"])))
        return shown

    def _values(self, sentences: Sentences, span: Span, label: str, record: Mapping[str, Any]) -> dict[str, Any]:
        if label not in self.words:
            raise ConfigurationError(f"DISCO: label_words has no word for the label {label!r}; give one")
        sentence = sentences[0 if self.perturbed == "premise" else 1]
        start, end = span.places[0]
        blank = "[insert]" if self.kind == "insertion" else "[blank]"
        return {
            "premise": sentences[0],
            "hypothesis": sentences[1],
            self.perturbed: span.replaced(sentence, blank),
            "perturbed": self.perturbed,
            "label": label,
            "word": self.words[label],
            "before": sentence[:start],
            "after": sentence[end:],
            "record": record,
        }
