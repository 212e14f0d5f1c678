"""What is asked of a text generator and what it answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Literal, get_args

from kdlightning.errors import ConfigurationError
from kdlightning.generation.usage import Usage, estimated_tokens

Capability = Literal["text", "logprobs", "logits", "answer_start"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        top_p: share of probability mass that is sampled from.
        top_k: number of tokens that are sampled from; 0 is all.
        seed: of the draws, together with the request and the sample's number.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigurationError(f"max_tokens is {self.max_tokens}: give at least 1")
        if self.temperature < 0:
            raise ConfigurationError(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(f"top_p is {self.top_p}: give a number above 0, at most 1")
        if self.top_k < 0:
            raise ConfigurationError(f"top_k is {self.top_k}: give 0 (all tokens) or more")

    @property
    def greedy(self) -> bool:
        """Whether every sample is the same."""
        return self.temperature == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what does not change a greedy answer is left out."""
        plain: dict[str, Any] = {"max_tokens": int(self.max_tokens), "temperature": float(self.temperature)}
        if not self.greedy:
            plain |= {"top_p": float(self.top_p), "top_k": int(self.top_k), "seed": int(self.seed)}
        return plain

    @cached_property
    def compact(self) -> str:
        """`to_dict` as JSON, as it stands in a request's hash."""
        return _compact(self.to_dict())


@dataclass(frozen=True)
class Origin:
    """Where a request comes from, for generators that look answers up instead of computing them.

    Attributes:
        about: the record's own words, for example the bare question of which the prompt was made.
        step: name of the round that asks ("rationale", "answer", …); empty for methods of one round.
        given: texts that earlier rounds answered, by step, from which this prompt was made.
    """

    about: str
    step: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contrast:
    """A second context, in which an answer's tokens are to be less plausible than in the first.

    Attributes:
        prompt: the context.
        weight: w in log P(token | request's prompt) + w · (log P(token | request's prompt) − log P(token | this one)),
            by which tokens are chosen.
    """

    prompt: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigurationError(f"the weight of a contrast is {self.weight}: give a number above 0")


@dataclass(frozen=True)
class Request:
    """One question to a generator, as plain data.

    Attributes:
        prompt: the text to be continued; or
        messages: a conversation of `{"role": …, "content": …}`. One of the two.
        samples: number of answers asked for.
        first_sample: number of the first of them, so that a request can ask for what is missing alone.
        sampling: how tokens are chosen.
        stop: texts that end an answer and are not part of it.
        answer_start: text that the answer is made to begin with (it is fed to the decoder of an encoder–decoder, or set
            behind the prompt) and that is no part of the completion. Not every generator can.
        contrast: a second prompt that the answer is to be told from; only generators that give "logits" can.
        options: texts of which the generator is to say how likely each is behind the prompt, instead of an answer of
            its own; `option_scores` reads what it says. Only generators that give "logits" can.
        origin: where the request comes from; no part of its hash.
    """

    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    samples: int = 1
    first_sample: int = 0
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    answer_start: str = ""
    contrast: Contrast | None = None
    options: tuple[str, ...] = ()
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ConfigurationError("a request has either a prompt or messages")
        if self.contrast is not None and self.prompt is None:
            raise ConfigurationError("a request with a contrast has a prompt, not messages")
        if self.samples < 1 or self.first_sample < 0:
            raise ConfigurationError(f"a request asks for {self.samples} samples from {self.first_sample} on")
        for message in self.messages or ():
            if set(message) != {"role", "content"}:
                raise ConfigurationError(f"a message has a role and a content, and this one has {sorted(message)}")
        if isinstance(self.stop, str) or "" in self.stop:
            raise ConfigurationError("stop is a list of texts, none of them empty")
        if isinstance(self.options, str) or "" in self.options:
            raise ConfigurationError("options is a list of texts, none of them empty")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "options", tuple(self.options))

    @property
    def numbers(self) -> range:
        """Numbers of the samples asked for."""
        return range(self.first_sample, self.first_sample + self.samples)

    @property
    def text(self) -> str:
        """The prompt, or the last message."""
        return self.prompt if self.prompt is not None else str((self.messages or [{"content": ""}])[-1]["content"])

    @property
    def needs(self) -> frozenset[Capability]:
        """What a generator must be capable of beside text."""
        found: set[Capability] = {"answer_start"} if self.answer_start else set()
        return frozenset({*found, "logits"} if self.contrast is not None or self.options else found)

    def only(self, first_sample: int, samples: int) -> Request:
        """The same request for other samples."""
        return replace(self, first_sample=first_sample, samples=samples)

    def to_dict(self) -> dict[str, Any]:
        """What the answer depends on, as plain data: without the number of samples and the origin."""
        plain: dict[str, Any] = {"sampling": self.sampling.to_dict()}
        if self.prompt is not None:
            plain["prompt"] = self.prompt
        else:
            plain["messages"] = [dict(message) for message in self.messages or ()]
        if self.stop:
            plain["stop"] = list(self.stop)
        if self.answer_start:
            plain["answer_start"] = self.answer_start
        if self.contrast is not None:
            plain["contrast"] = {"prompt": self.contrast.prompt, "weight": float(self.contrast.weight)}
        if self.options:
            plain["options"] = list(self.options)
        return plain

    def key(self, identity: str = "") -> str:
        """The request hash: 64 hexadecimal digits, the same in every process and version of Python.

        Args:
            identity: who is asked. Answers of different models never mix.
        """
        if self.prompt is None or self.stop or self.answer_start or self.options or self.contrast is not None:
            text = _compact({**self.to_dict(), "identity": identity})
        else:
            # The same text, put together from its parts: such requests come by the million.
            parts = (_quoted(identity), _quoted(self.prompt), self.sampling.compact)
            text = '{"identity":%s,"prompt":%s,"sampling":%s}' % parts  # noqa: UP031
        return hashlib.sha256(text.encode()).hexdigest()


def _compact(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer and how probable it was.

    Attributes:
        token: its text.
        logprob: natural logarithm of its probability.
        top: the most probable tokens in its place, as pairs of text and log-probability; none unless asked for.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: the text, without the prompt and without the stop text.
        finish: why it ended: "stop" (by itself or at a stop text) or "length" (at max_tokens).
        logprobs: its tokens, from generators that give "logprobs"; None otherwise.
    """

    text: str
    finish: str = "stop"
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(slots=True)
class Answer:
    """What came of one request.

    Attributes:
        request: the request.
        completions: answers by sample number.
        failures: one sentence for each sample that was not answered.
        usage: what samples cost, by number, from generators that know; a request's own cost is with one of its samples.
    """

    request: Request
    completions: dict[int, Completion] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    usage: dict[int, Usage] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The texts of the samples that were answered, by number."""
        return [self.completions[number].text for number in sorted(self.completions)]

    @classmethod
    def refused(cls, request: Request, reason: str) -> Answer:
        """No sample was answered, all for one reason."""
        return cls(request, failures=dict.fromkeys(request.numbers, reason))


def option_scores(answer: Answer) -> dict[str, float]:
    """The mean negative log-likelihood a token of each of a request's `options`; empty if it failed."""
    if 0 not in answer.completions:
        return {}
    return dict(zip(answer.request.options, json.loads(answer.completions[0].text), strict=True))


class UnavailableError(Exception):
    """An attempt that brought no answer, and that may bring one later.

    Args:
        reason: one sentence.
        retry_after: seconds that the server asks to wait; None if it does not say.
        usage: what the attempt cost all the same.
        gone: whether nothing can be reached any more, so that after the last retry the run ends.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, usage: Usage | None = None, *, gone: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.usage = Usage(requests=1) if usage is None else usage
        self.gone = gone


class TextGenerator(ABC):
    """Base of all generators: teachers, referees and students that answer in text.

    Subclasses implement `generate`; those that wait for a server override `generate_async` instead of blocking.

    Attributes:
        capabilities: what it can give: "text", "logprobs" (of the chosen tokens), "logits" (whole distributions), or an
            answer that begins as it is told ("answer_start").
        batch_size: requests handed over in one call.
        concurrency: calls that may run at the same time.
        retries: further attempts that the engine makes after an `UnavailableError`.
        first_wait: seconds before the first of them, doubled for each further one, where the server asks for no wait.
        samples_per_call: most samples that one call brings; None is no limit.
        price_per_million_input: dollars for a million tokens sent.
        price_per_million_output: dollars for a million tokens that come back.
    """

    capabilities: frozenset[Capability] = frozenset({"text"})
    batch_size: int = 1
    concurrency: int = 1
    retries: int = 0
    first_wait: float = 0.5
    samples_per_call: int | None = None
    price_per_million_input: float = 0.0
    price_per_million_output: float = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        unknown = cls.capabilities - set(get_args(Capability))
        if unknown:
            raise ConfigurationError(f"{cls.__name__}: unknown capabilities {sorted(unknown)}")

    @property
    @abstractmethod
    def identity(self) -> str:
        """Who answers: part of each request's hash, so that two models, or two states of one, never share answers."""

    @abstractmethod
    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers each request, in the order of the requests.

        A sample that could not be answered is listed in `Answer.failures`, and one that is not mentioned is asked again
        by a further request. An exception ends the run, except `UnavailableError`, after which the engine tries again.
        """

    async def generate_async(self, requests: Sequence[Request]) -> list[Answer]:
        """The same for the engine, without blocking its loop."""
        return await asyncio.to_thread(self.generate, requests)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Around all calls of a run, in its event loop: for connections."""
        yield

    def count_tokens(self, text: str) -> int:
        """A text's tokens, for estimates and budgets: a quarter of its characters unless a generator knows better."""
        return estimated_tokens(text)

    def priced(self, usage: Usage) -> Usage:
        """The same usage with its price."""
        sent, back = usage.prompt_tokens, usage.completion_tokens
        money = (sent * self.price_per_million_input + back * self.price_per_million_output) / 1e6
        return replace(usage, money=money)

    def most(self, request: Request) -> Usage:
        """The most that a request costs: its prompt, and `max_tokens` for each sample (greedy ones are one)."""
        back = request.sampling.max_tokens * (1 if request.sampling.greedy else request.samples)
        return self.priced(Usage(1, self.prompt_tokens(request), back, estimated=True))

    def prompt_tokens(self, request: Request) -> int:
        """Estimated tokens of a request's prompt or messages."""
        texts = [request.prompt] if request.prompt is not None else [m["content"] for m in request.messages or ()]
        return sum(self.count_tokens(text) for text in [*texts, request.answer_start])


def require(generator: TextGenerator, capabilities: frozenset[Capability], what: str) -> None:
    """Raises ConfigurationError if a generator cannot give what somebody needs."""
    missing = sorted(capabilities - generator.capabilities)
    if missing:
        raise ConfigurationError(
            f"{what} needs {' and '.join(missing)}, and {type(generator).__name__} gives only "
            f"{', '.join(sorted(generator.capabilities))}"
        )
