"""A generator that asks an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from kdlightning.errors import ConfigurationError, MissingExtraError
from kdlightning.generation.base import Answer, Capability, Request, TextGenerator, require
from kdlightning.generation.openai_errors import read_error, read_key
from kdlightning.generation.openai_replies import read_reply

OPENAI = "https://api.openai.com/v1"


class OpenAIGenerator(TextGenerator):
    """A model behind an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, `transformers serve`, and so on.

    The engine makes one attempt a call and repeats it where that may help: too many requests, a server's error, a
    timeout, a cut connection, a reply that is no JSON or holds no answer. A reply of fewer choices than asked for is
    topped up by further calls, and a server that ignores or refuses `n` is asked for one sample a call from then on.
    Of more choices than asked for the first are taken. Samples that are greedy are one call.

    The key is read from the environment when a run starts, and is in no option, identity, message, store or log. A
    server of one's own is sent none unless `key_variable` names one, whatever the environment holds.

    Args:
        model: the model's name on the server.
        base_url: where its interface begins, mostly ending in `/v1`.
        key_variable: name of the environment variable that holds the key; None is `OPENAI_API_KEY` for OpenAI itself,
            and no key for other servers.
        endpoint: "chat" sends messages, a prompt being one message of a user; "completions" sends prompts alone, to be
            continued as they stand.
        logprobs: None does not ask for log-probabilities; 0 asks for those of the answer's tokens, and a number k also
            for the k most probable tokens in each place. A server that gives none is refused.
        timeout: seconds to wait for an answer.
        retries: further attempts; the waits before them double from `first_wait`.
        concurrency: calls at the same time.
        first_wait: seconds before the first further attempt.
        price_per_million_input: dollars for a million tokens sent, for budgets and the display.
        price_per_million_output: dollars for a million tokens that come back.
        token_limit: the server's name for the most tokens of an answer; OpenAI's reasoning models want the second.
        extra_body: further fields of each request, as this server knows them; they are part of `identity`.
        tokenizer: folder or hub name of a tokenizer to count prompts with before they are sent; None takes a quarter
            of their characters.
        name: who answers, in the store; None is address and model. Give one where the address changes.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        key_variable: str | None = None,
        *,
        endpoint: Literal["chat", "completions"] = "chat",
        logprobs: int | None = None,
        timeout: float = 300.0,
        retries: int = 6,
        concurrency: int = 16,
        first_wait: float = 0.5,
        price_per_million_input: float = 0.0,
        price_per_million_output: float = 0.0,
        token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        name: str | None = None,
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise MissingExtraError("openai", "openai", type(self).__name__)
        if endpoint not in ("chat", "completions"):
            raise ConfigurationError(f"endpoint is {endpoint!r}: give chat or completions")
        _check_numbers(timeout, retries, concurrency, first_wait, logprobs)
        if min(price_per_million_input, price_per_million_output) < 0:
            raise ConfigurationError("price_per_million_input and price_per_million_output are dollars: give 0 or more")
        self.model = model
        self.base_url = _checked_url(base_url)
        self.key_variable = _checked_variable(key_variable, self.base_url)
        self.endpoint = endpoint
        self.logprobs = logprobs
        self.timeout = timeout
        self.retries = retries
        self.concurrency = concurrency
        self.first_wait = first_wait
        self.price_per_million_input = price_per_million_input
        self.price_per_million_output = price_per_million_output
        self.token_limit = token_limit
        self.extra_body = _checked_body(extra_body or {})
        self.tokenizer = tokenizer
        self.name = name
        capabilities: set[Capability] = {"text"}
        capabilities |= {"answer_start"} if endpoint == "completions" else set()
        capabilities |= {"logprobs"} if logprobs is not None else set()
        self.capabilities = frozenset(capabilities)
        self._clients: dict[Any, Any] = {}
        self._counter: Any = None
        self.answered = False
        self.models: list[str] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.base_url!r})"

    @property
    def identity(self) -> str:
        """The name, or address and model; with what changes answers: endpoint, log-probabilities, extra fields."""
        parts = [self.name or f"{self.base_url} {self.model}", self.endpoint]
        parts += [] if self.logprobs is None else [f"logprobs={self.logprobs}"]
        parts += [json.dumps(self.extra_body, sort_keys=True)] if self.extra_body else []
        return " ".join(parts)

    def count_tokens(self, text: str) -> int:
        """By the tokenizer if one was given."""
        if self.tokenizer is None:
            return super().count_tokens(text)
        if self._counter is None:
            from kdlightning.text.tokenizers import load_tokenizer

            self._counter = load_tokenizer(self.tokenizer)
        return len(self._counter(text, add_special_tokens=False)["input_ids"])

    # -- asking ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Connections for the calls of a run."""
        from openai import AsyncOpenAI

        # Retries are the engine's, so that budget and display see each attempt.
        options: dict[str, Any] = {"base_url": self.base_url, "timeout": self.timeout, "max_retries": 0}
        async with AsyncOpenAI(api_key=read_key(self.key_variable), **options) as client:
            if self.base_url != OPENAI:
                # The client finds these in the environment, and there they are meant for OpenAI.
                client.organization = client.project = None
                client._custom_headers = {}
            loop = asyncio.get_running_loop()
            self._clients[loop] = client
            self.models = None
            try:
                yield
            finally:
                del self._clients[loop]

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers each request as the engine does, without a store."""
        from kdlightning.generation.engine import Engine

        return Engine(self, progress=False).run(requests).answers

    async def generate_async(self, requests: Sequence[Request]) -> list[Answer]:
        """One attempt a request, within a `session`.

        Raises:
            UnavailableError: it brought nothing, and may bring something later.
            ConfigurationError: the server takes no request like this one.
        """
        return [await self._ask(request) for request in requests]

    async def _ask(self, request: Request) -> Answer:
        greedy = request.sampling.greedy
        count = 1 if greedy else min(request.samples, self.samples_per_call or request.samples)
        client = self._clients[asyncio.get_running_loop()]
        endpoint = client.completions if self.endpoint == "completions" else client.chat.completions
        body = self._body(request, count)
        try:
            raw = await asyncio.wait_for(endpoint.with_raw_response.create(**body), self.timeout)
        except Exception as error:
            found = await read_error(error, self, request, count, client)
            if isinstance(found, Answer):
                return found
            raise found from None
        self.answered = True
        reply = read_reply(raw.http_response.content, request, count, self)
        if count > 1 and reply.choices == 1:
            self.samples_per_call = 1
        answer = reply.answer
        if greedy and answer.completions:
            answer.completions = dict.fromkeys(request.numbers, answer.completions[request.first_sample])
        elif greedy:
            answer.failures = dict.fromkeys(request.numbers, answer.failures[request.first_sample])
        return answer

    def _body(self, request: Request, count: int) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {"model": self.model, "temperature": sampling.temperature}
        body[self.token_limit] = sampling.max_tokens
        extra = dict(self.extra_body)
        if not sampling.greedy:
            body |= {"top_p": sampling.top_p, "seed": (sampling.seed + request.first_sample) % 2**31}
            # No field of OpenAI's interface, but many servers know it by this name.
            extra |= {"top_k": sampling.top_k} if sampling.top_k else {}
        if count > 1:
            body["n"] = count
        if request.stop:
            body["stop"] = list(request.stop)
        body |= self._question(request)
        if self.logprobs is not None and self.endpoint == "completions":
            body["logprobs"] = self.logprobs
        elif self.logprobs is not None:
            body |= {"logprobs": True, **({"top_logprobs": self.logprobs} if self.logprobs else {})}
        return {**body, "extra_body": extra} if extra else body

    def _question(self, request: Request) -> dict[str, Any]:
        if not request.needs <= self.capabilities:
            require(self, request.needs, "this request")
        if self.endpoint == "completions":
            if request.prompt is None:
                raise ConfigurationError("the completions endpoint takes prompts, and this request has messages: chat")
            return {"prompt": request.prompt + request.answer_start}
        if request.prompt is not None:
            return {"messages": [{"role": "user", "content": request.prompt}]}
        return {"messages": [dict(message) for message in request.messages or ()]}


def _check_numbers(timeout: float, retries: int, concurrency: int, first_wait: float, logprobs: int | None) -> None:
    if timeout <= 0:
        raise ConfigurationError(f"timeout is {timeout}: give seconds")
    if retries < 0 or first_wait < 0:
        raise ConfigurationError(f"retries is {retries} and first_wait {first_wait}: give 0 or more")
    if concurrency < 1:
        raise ConfigurationError(f"concurrency is {concurrency}: give at least 1")
    if logprobs is not None and logprobs < 0:
        raise ConfigurationError(f"logprobs is {logprobs}: give 0 or more, or None for none")


def _checked_body(fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(fields)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"extra_body holds what no request can: {error}") from None
    return dict(fields)


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        # Not repeated in the message: this may be a key.
        raise ConfigurationError("base_url holds a user, a password or a query: name a key's variable in key_variable")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(f"base_url is {url!r}: give one like http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def _checked_variable(variable: str | None, url: str) -> str | None:
    if variable is None:
        return "OPENAI_API_KEY" if url == OPENAI else None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
        # Not repeated in the message: this may be the key itself.
        raise ConfigurationError(
            "key_variable names an environment variable in capitals, such as OPENAI_API_KEY, and this is no such name: "
            "the key itself is no option"
        )
    return variable
