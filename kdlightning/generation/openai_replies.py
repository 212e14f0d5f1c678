"""Reads what an OpenAI-compatible server replies, however it is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request, TokenLogprob, UnavailableError
from kdlightning.generation.openai_errors import holds_key, shown
from kdlightning.generation.usage import Usage, estimated_tokens

if TYPE_CHECKING:
    from kdlightning.generation.openai import OpenAIGenerator

_MOST_TOKENS = 1 << 40
"""From here on a server's count is none: no answer has so many tokens, and the store holds no such numbers."""


class _EmptyError(Exception):
    """A choice without a text, which another attempt may bring."""


class _UselessError(Exception):
    """A choice that is no answer, and would be none again."""


@dataclass
class Reply:
    """An answer, and of how many choices it was made."""

    answer: Answer
    choices: int


def read_reply(content: bytes, request: Request, count: int, generator: OpenAIGenerator) -> Reply:
    """The answers in a reply, in the order of the choices; what is missing is left out, to be asked for again.

    Args:
        content: the reply's body.
        request: what was asked.
        count: samples that the call asked for; further choices are cut.
        generator: who asked.

    Raises:
        UnavailableError: no JSON, no choices, or none with a text.
        ConfigurationError: no log-probabilities, which were asked for.
    """
    where, variable = generator.base_url, generator.key_variable
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        start = shown(content.decode("utf-8", "replace"), variable, 60)  # a key cut in two would not be found
        raise UnavailableError(f"{where} sent no JSON ({start!r})") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        said = shown(
            data["error"] if isinstance(data, dict) and data.get("error") else content.decode("utf-8", "replace"),
            variable,
            100,
        )
        raise UnavailableError(f"{where} sent no choices ({said})")
    choices = _in_order(choices)
    answer = Answer(request)
    texts: list[str] = []
    for number, choice in zip(request.numbers, choices[:count]):  # noqa: B905  (there may be fewer of either)
        text = _text(choice)
        texts.append(text)
        try:
            answer.completions[number] = _completion(choice, text, request, generator)
        except _UselessError as error:
            answer.failures[number] = str(error)
        except _EmptyError:
            continue
    usage = _usage(data.get("usage"), request, generator, texts)
    answer.usage = dict(zip(request.numbers, _shares(usage, texts, generator)))  # noqa: B905
    if not answer.completions and not answer.failures:
        raise UnavailableError(f"{where} sent an empty answer", usage=usage)
    return Reply(answer, len(choices))


def _in_order(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    numbered = all(isinstance(choice.get("index"), int) for choice in choices)
    return sorted(choices, key=lambda choice: choice["index"]) if numbered else choices


def _text(choice: dict[str, Any]) -> str:
    """The text of a choice, of chat or of completions; empty without one."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if isinstance(text, list):  # parts, of which some are text
        text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    return text if isinstance(text, str) else ""


def _completion(choice: dict[str, Any], text: str, request: Request, generator: OpenAIGenerator) -> Completion:
    finish, variable = choice.get("finish_reason"), generator.key_variable
    message = choice.get("message")
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if finish == "content_filter":
        raise _UselessError("the server's content filter cut the answer off")
    if refusal:
        raise _UselessError(f"the model refused: {shown(refusal, variable)}")
    if finish in ("tool_calls", "function_call"):
        raise _UselessError("the model called a tool instead of answering")
    if holds_key(text, variable):
        raise _UselessError("the answer repeats the server's key, and is not kept")
    cut = min((place for place in (text.find(stop) for stop in request.stop) if place >= 0), default=len(text))
    ended = "length" if finish == "length" and cut == len(text) else "stop"
    if not text[:cut].strip():
        if ended == "length":
            limit = request.sampling.max_tokens
            raise _UselessError(f"the answer is empty at max_tokens = {limit}: a model that thinks first needs more")
        raise _EmptyError
    if generator.logprobs is None:
        return Completion(text[:cut], ended)
    return Completion(text[:cut], ended, _until(_logprobs(choice, generator), cut))


def _until(tokens: Sequence[TokenLogprob], cut: int) -> tuple[TokenLogprob, ...]:
    """The tokens that begin before a place in the text."""
    kept, length = [], 0
    for token in tokens:
        if length >= cut:
            break
        kept.append(token)
        length += len(token.token)
    return tuple(kept)


def _logprobs(choice: dict[str, Any], generator: OpenAIGenerator) -> list[TokenLogprob]:
    """Of chat (`content`, one object a token) or of completions (parallel lists)."""
    found = choice.get("logprobs")
    chat = found.get("content") if isinstance(found, dict) else None
    lists = found.get("tokens") if isinstance(found, dict) else None
    try:
        if isinstance(chat, list):
            return [
                TokenLogprob(
                    str(each["token"]),
                    float(each["logprob"]),
                    tuple((str(top["token"]), float(top["logprob"])) for top in each.get("top_logprobs") or ()),
                )
                for each in chat
            ]
        if isinstance(found, dict) and isinstance(lists, list):
            tops = found.get("top_logprobs") or [None] * len(lists)
            return [
                TokenLogprob(str(token), float(value), tuple((str(t), float(v)) for t, v in (top or {}).items()))
                for token, value, top in zip(lists, found["token_logprobs"], tops, strict=True)
            ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnavailableError(f"{generator.base_url} sent malformed log-probabilities") from None
    raise ConfigurationError(
        f"{generator.base_url} gives no log-probabilities for {generator.model}: leave logprobs out, or take another "
        "server"
    )


def _usage(found: Any, request: Request, generator: OpenAIGenerator, texts: Sequence[str]) -> Usage:
    """The server's count, or an estimate."""
    counts = [found.get(name) if isinstance(found, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    sent, back = (count if isinstance(count, int) and 0 <= count < _MOST_TOKENS else None for count in counts)
    known = sent is not None and back is not None
    sent = generator.prompt_tokens(request) if sent is None else sent
    back = sum(map(estimated_tokens, texts)) if back is None else back
    return generator.priced(Usage(1, sent, back, estimated=not known))


def _shares(usage: Usage, texts: Sequence[str], generator: OpenAIGenerator) -> list[Usage]:
    """A call's usage by its samples: the prompt with the first, answers by the length of their texts."""
    lengths = [len(text) for text in texts]
    total, shares, before, given = max(1, sum(lengths)), [], 0, 0
    for place, length in enumerate(lengths):
        before += length
        upto = usage.completion_tokens if place == len(lengths) - 1 else usage.completion_tokens * before // total
        first = place == 0
        share = Usage(int(first), usage.prompt_tokens if first else 0, upto - given, estimated=usage.estimated)
        shares.append(generator.priced(share))
        given = upto
    return shares
