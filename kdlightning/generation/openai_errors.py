"""What an OpenAI-compatible server's errors mean: try again, give this request up, or end the run."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.generation.base import Answer, Request, UnavailableError
from kdlightning.generation.usage import Usage

if TYPE_CHECKING:
    from kdlightning.generation.openai import OpenAIGenerator

_AGAIN = frozenset({408, 409, 425, 429})
_ABOUT_N = re.compile(r"\bn\b|choices?\b", re.IGNORECASE)


def read_key(variable: str | None) -> str:
    """The key in an environment variable; "none" for servers that are sent no key.

    Raises:
        ConfigurationError: the variable is not set, or holds what no header can.
    """
    if variable is None:
        return "none"
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigurationError(f"the environment variable {variable} is not set: it holds the server's key")
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(f"the environment variable {variable} holds no key: it has other than ASCII letters")
    return key


def holds_key(text: str, variable: str | None) -> bool:
    """Whether a text repeats the key."""
    key = _secret(variable)
    return bool(key) and key in text


def shown(text: Any, variable: str | None, most: int = 200) -> str:
    """A server's words on one line, not too long, without the key and without what cannot be printed."""
    key = _secret(variable)
    line = " ".join(str(text).split()).encode("utf-8", "replace").decode("utf-8")
    line = line.replace(key, "***") if key else line
    return line if len(line) <= most else line[: most - 1] + "…"


def _secret(variable: str | None) -> str:
    """The key, or nothing: a word such as EMPTY, which servers without keys are given, is no secret."""
    key = os.environ.get(variable, "").strip() if variable else ""
    return key if len(key) >= 8 else ""


async def read_error(
    error: Exception, generator: OpenAIGenerator, request: Request, count: int, client: Any
) -> Answer | Exception:
    """What came of a call that raised: an answer of failures, or what is to be raised instead.

    Args:
        error: what the client raised.
        generator: who asked.
        request: what was asked.
        count: samples that the call asked for.
        client: for the names of the models.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        return await _status(error, generator, request, count, client)
    if isinstance(error, (openai.APITimeoutError, asyncio.TimeoutError, TimeoutError)) and not _unconnected(error):
        sent = generator.priced(Usage(1, generator.prompt_tokens(request), estimated=True))
        return UnavailableError(f"no answer from {generator.base_url} within {generator.timeout:g} seconds", usage=sent)
    if isinstance(error, openai.APIConnectionError):
        return _connection(error, generator)
    if isinstance(error, UnicodeEncodeError):
        return Answer.refused(request, "the prompt holds half a surrogate pair, which no request can")
    return error


def _unconnected(error: BaseException) -> bool:
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _connection(error: Exception, generator: OpenAIGenerator) -> Exception:
    url = generator.base_url
    if not _unconnected(error):
        return UnavailableError(f"the connection to {url} was cut")
    if generator.answered:
        return UnavailableError(f"the server at {url} is no longer there", gone=True)
    reason = shown(error.__cause__ or error, generator.key_variable)
    return ConfigurationError(f"there is no server at {url} ({reason}): start it, or give another base_url")


async def _status(
    error: Any, generator: OpenAIGenerator, request: Request, count: int, client: Any
) -> Answer | Exception:
    status, url, variable = int(error.status_code), generator.base_url, generator.key_variable
    message = shown(_message(error.body), variable)
    said = f" ({status}: {message})" if message else f" ({status})"
    if status in (401, 403):
        way = f"check the key in {variable}" if variable else "name the environment variable of its key in key_variable"
        return ConfigurationError(f"{url} refuses the key{said}: {way}")
    if status == 429 and "insufficient_quota" in (error.code, error.type):
        return ConfigurationError(f"{url} has no quota left for this key{said}; what is answered is stored")
    if status in _AGAIN or status >= 500:
        return UnavailableError(f"{url} failed{said}", retry_after(error.response.headers))
    if count > 1 and (error.param == "n" or _ABOUT_N.search(message)):
        generator.samples_per_call = 1
        return UnavailableError(f"{url} gives one sample a request{said}", 0.0)
    if status in (400, 404, 422):
        unknown = await _unknown_model(generator, client, said)
        if unknown is not None:
            return unknown
    if status in (404, 405):
        way = "base_url mostly ends in /v1, and endpoint is chat or completions"
        return ConfigurationError(
            f"{url} has no {generator.endpoint} endpoint, or no model {generator.model!r}{said}: {way}"
        )
    return Answer.refused(request, f"{url} refused the request{said}")


def _message(body: Any) -> str:
    """The server's words, wherever it puts them."""
    for _ in range(3):
        if not isinstance(body, dict):
            break
        body = next((body[name] for name in ("message", "error", "detail", "msg") if body.get(name)), "")
    return body if isinstance(body, str) else json.dumps(body) if body else ""


async def _unknown_model(generator: OpenAIGenerator, client: Any, said: str) -> ConfigurationError | None:
    """The sentence for a model that is not among those that the server lists; None if it is, or lists none."""
    if generator.models is None:
        generator.models = await _models(client)
    names = generator.models
    if not names or generator.model in names:
        return None
    hint = shown(nearest(generator.model, names), generator.key_variable)
    return ConfigurationError(f"{generator.base_url} has no model {generator.model!r}{said}{hint}")


async def _models(client: Any) -> list[str]:
    try:
        raw = await asyncio.wait_for(client.models.with_raw_response.list(), 20.0)
        return [str(model["id"]) for model in json.loads(raw.http_response.content)["data"]]
    except Exception:  # a hint is all that is at stake
        return []


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (TypeError, ValueError):
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
