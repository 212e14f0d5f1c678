"""A server that behaves as servers do: busy, broken, slow, cut off, or answering something else than was asked."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kdlightning.errors import ConfigurationError, MissingExtraError
from kdlightning.generation.base import Completion, Request, Sampling, TokenLogprob
from kdlightning.generation.engine import Engine
from kdlightning.generation.openai import OpenAIGenerator
from kdlightning.generation.openai_errors import retry_after
from kdlightning.generation.store import CompletionStore
from kdlightning.generation.usage import Usage

KEY = "sk-secret-0123456789"
WARM = Sampling(max_tokens=8, temperature=0.7, top_p=0.9, seed=5)


class Server:
    """Answers "<prompt>#<seed>.<choice>", unless `script` has something else for the next requests."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.script: list[Callable[[dict[str, Any]], Any]] = []
        self.models = ["teacher-large", "teacher-small"]
        self.running = self.most = 0
        self.together = 1
        self.gathered = threading.Event()
        self.lock = threading.Lock()
        self.released = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.send(self, 200, {"data": [{"id": name} for name in owner.models]})

            def do_POST(self) -> None:
                owner.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=lambda: self.server.serve_forever(poll_interval=0.01))
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            self.running += 1
            self.most = max(self.most, self.running)
            action = self.script.pop(0) if self.script else good
            if self.running >= self.together:
                self.gathered.set()
        if self.together > 1:
            self.gathered.wait(5)
            time.sleep(0.05)  # one too many would come now
        with self.lock:
            self.running -= 1
        found = action(body)
        if found == "cut":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(found, tuple):
            self.send(handler, *found)
        else:
            self.send(handler, 200, found)

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, content: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def good(body: dict[str, Any], count: int | None = None, **more: Any) -> dict[str, Any]:
    """As many choices as were asked for, or as many as are said."""
    chat = "messages" in body
    prompt = body["messages"][-1]["content"] if chat else body["prompt"]
    texts = [f"{prompt}#{body.get('seed')}.{number}" for number in range(count or body.get("n", 1))]
    choices = [
        {
            "index": number,
            "finish_reason": "stop",
            **({"message": {"role": "assistant", "content": text}} if chat else {"text": text}),
            **more,
        }
        for number, text in enumerate(texts)
    ]
    return {"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 3 * len(choices)}}


def says(text: Any, finish: str | None = "stop", **more: Any) -> Callable[[dict[str, Any]], Any]:
    """One choice of this text."""
    return lambda _: {"choices": [{"message": {"content": text, **more}, "finish_reason": finish}]}


def fails(status: int, error: Any = "busy", **headers: str) -> Callable[[dict[str, Any]], Any]:
    """An error of this status."""
    return lambda _: (status, {"error": error if isinstance(error, dict) else {"message": error}}, headers)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def ask(server: Server) -> Callable[..., OpenAIGenerator]:
    """Makes a generator of the server that does not wait long."""

    def make(**options: Any) -> OpenAIGenerator:
        options = {"retries": 3, "first_wait": 0.01, "timeout": 5.0, **options}
        return OpenAIGenerator("teacher-large", server.url, **options)

    return make


def run(generator: OpenAIGenerator, *requests: Request, store: CompletionStore | None = None) -> Any:
    return Engine(generator, store, progress=False).run(requests)


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_one_call_brings_all_samples(server: Server, ask: Any) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
    request = Request(messages=messages, samples=3, sampling=WARM, stop=("\n",))
    generator = ask(extra_body={"min_p": 0.1}, price_per_million_input=1.0, price_per_million_output=10.0)
    result = run(generator, request)
    assert result.answers[0].texts == ["Why?#5.0", "Why?#5.1", "Why?#5.2"]
    assert server.bodies == [
        {
            "model": "teacher-large", "messages": messages, "temperature": 0.7, "top_p": 0.9, "max_tokens": 8,
            "seed": 5, "n": 3, "stop": ["\n"], "min_p": 0.1,
        }
    ]  # fmt: skip
    assert server.headers[0]["authorization"] == "Bearer none"
    assert result.usage == Usage(1, 10, 9, pytest.approx(100e-6))


def test_choices_go_by_their_index(server: Server, ask: Any) -> None:
    server.script = [lambda body: {"choices": good(body)["choices"][::-1]}]
    assert run(ask(), Request("p", samples=3, sampling=WARM)).answers[0].texts == ["p#5.0", "p#5.1", "p#5.2"]


def test_completions_send_the_prompt_as_it_stands(server: Server, ask: Any) -> None:
    generator = ask(endpoint="completions", token_limit="max_tokens")
    assert "answer_start" in generator.capabilities
    request = Request("Once", answer_start=" upon", sampling=Sampling(max_tokens=8, temperature=1.0, top_k=40))
    assert run(generator, request).answers[0].texts == ["Once upon#0.0"]
    assert server.bodies[0]["prompt"] == "Once upon"
    assert server.bodies[0]["top_k"] == 40
    with pytest.raises(ConfigurationError, match="completions endpoint takes prompts"):
        run(generator, Request(messages=[{"role": "user", "content": "a"}]))


def test_greedy_samples_are_one_call(server: Server, ask: Any) -> None:
    result = run(ask(token_limit="max_completion_tokens"), Request("p", samples=4))
    assert result.answers[0].texts == ["p#None.0"] * 4
    assert server.bodies == [
        {
            "model": "teacher-large", "messages": [{"role": "user", "content": "p"}], "temperature": 0.0,
            "max_completion_tokens": 256,
        }
    ]  # fmt: skip


def test_stop_texts_are_cut_where_the_server_keeps_them(server: Server, ask: Any) -> None:
    server.script = [says("4 apples\nQ: and", "length")]
    result = run(ask(), Request("p", stop=("\n", "Q:")))
    assert result.answers[0].completions == {0: Completion("4 apples", "stop")}


# -- n -----------------------------------------------------------------------------------------------------------------


def test_fewer_choices_are_topped_up_under_their_own_numbers(server: Server, ask: Any) -> None:
    server.script = [lambda body: good(body, 2)]
    result = run(ask(), Request("p", samples=5, sampling=WARM))
    assert [(body.get("n", 1), body["seed"]) for body in server.bodies] == [(5, 5), (3, 7)]
    assert result.answers[0].texts == ["p#5.0", "p#5.1", "p#7.0", "p#7.1", "p#7.2"]
    assert (result.asked, result.usage.requests) == (5, 2)


def test_a_server_that_ignores_n_is_asked_for_one_from_then_on(server: Server, ask: Any) -> None:
    server.script = [lambda body: good(body, 1)]
    store = CompletionStore(":memory:")
    generator = ask(concurrency=8)
    result = run(generator, Request("p", samples=6, sampling=WARM), store=store)
    assert [body.get("n", 1) for body in server.bodies] == [6, 1, 1, 1, 1, 1]
    assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7, 8, 9, 10]
    assert result.answers[0].texts == [f"p#{seed}.0" for seed in range(5, 11)]
    assert generator.samples_per_call == 1
    assert store.usage() == Usage(6, 60, 18)


def test_samples_of_one_request_are_topped_up_side_by_side(server: Server, ask: Any) -> None:
    generator = ask(concurrency=4)
    generator.samples_per_call = 1
    server.together = 4
    result = run(generator, Request("p", samples=9, sampling=WARM))
    assert (server.most, len(server.bodies), result.failures) == (4, 9, [])


def test_a_server_that_refuses_n_is_asked_for_one(server: Server, ask: Any) -> None:
    server.script = [fails(400, {"message": "Only one completion choice is allowed", "param": "n"})]
    result = run(ask(), Request("p", samples=2, sampling=WARM))
    assert result.answers[0].texts == ["p#5.0", "p#6.0"]
    assert result.failures == []


def test_too_many_choices_are_cut(server: Server, ask: Any) -> None:
    server.script = [lambda body: good(body, 7)]
    assert run(ask(), Request("p", samples=2, sampling=WARM)).answers[0].texts == ["p#5.0", "p#5.1"]


def test_an_empty_choice_among_others_is_asked_again(server: Server, ask: Any) -> None:
    def partly(body: dict[str, Any]) -> dict[str, Any]:
        reply = good(body)
        reply["choices"][1]["message"]["content"] = " "
        return reply

    server.script = [partly]
    result = run(ask(), Request("p", samples=3, sampling=WARM))
    assert result.answers[0].texts == ["p#5.0", "p#6.0", "p#5.2"]
    assert server.bodies[1]["seed"] == 6


# -- once more ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (fails(429, "slow down"), r"failed \(429: slow down\)"),
        (fails(500), "500: busy"),
        (fails(503, {"detail": "loading"}), "503: loading"),
        (lambda _: (502, b"<html>Bad gateway</html>", {"content-type": "text/html"}), "502: <html>"),
        (lambda _: "cut", "was cut"),
        (lambda _: (200, b'{"choices": [', {}), "sent no JSON"),
        (lambda _: (200, b"hello", {"content-type": "text/plain"}), "sent no JSON"),
        (lambda _: (200, b"[" * 100_000, {}), "sent no JSON"),
        (lambda _: [1, 2], "sent no choices"),
        (lambda _: {"choices": None}, "sent no choices"),
        (lambda _: {"choices": []}, "empty answer"),
        (lambda _: {"error": {"message": "upstream is down"}}, "sent no choices.*upstream is down"),
        (says(""), "empty answer"),
        (says(None), "empty answer"),
    ],
)
def test_what_may_pass_is_tried_again(server: Server, ask: Any, action: Any, named: str) -> None:
    server.script = [action, action]
    result = run(ask(), Request("p", sampling=WARM))
    assert result.answers[0].texts == ["p#5.0"]
    assert (result.retried, result.failures, result.usage.requests) == (2, [], 3)
    server.script, store = [action] * 4, CompletionStore(":memory:")
    failed = run(ask(), Request("p", sampling=WARM), store=store)
    assert [failure.sample for failure in failed.failures] == [0]
    assert "4 attempts" in failed.failures[0].reason
    assert re.search(named, failed.failures[0].reason), failed.failures[0].reason
    assert len(store) == 0


def test_a_server_that_is_too_slow_is_asked_again(server: Server, ask: Any) -> None:
    def slow(body: dict[str, Any]) -> Any:
        server.released.wait(5)
        return "cut"

    server.script = [slow]
    result = run(ask(timeout=0.2), Request("p", sampling=WARM))
    assert (result.answers[0].texts, result.retried) == (["p#5.0"], 1)
    server.script = [slow] * 2
    result = run(ask(timeout=0.1, retries=1), Request("p", sampling=WARM))
    assert result.failures[0].reason == f"no answer from {server.url} within 0.1 seconds (2 attempts)"


def test_retry_after_is_waited_for_by_everybody(server: Server, ask: Any) -> None:
    server.script = [fails(429, **{"retry-after": "0.3"})]
    result = run(ask(concurrency=2), *(Request(f"p{number}") for number in range(6)))
    assert result.failures == []
    # The other call in flight is answered; then nobody asks until the time is over.
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert max(gaps) >= 0.25
    assert len([gap for gap in gaps if gap > 0.2]) == 1


@pytest.mark.parametrize("headers", [{}, {"retry-after": "0"}])
def test_waits_grow(server: Server, ask: Any, headers: dict[str, str]) -> None:
    server.script = [fails(429, **headers)] * 3
    run(ask(first_wait=0.05), Request("p"))
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert gaps[0] >= 0.045
    assert gaps[1] >= 0.09
    assert gaps[2] >= 0.18


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)}) == pytest.approx(100, abs=2)


# -- given up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (fails(400, "this model's context is 8 tokens"), "refused the request (400: this model's context is 8 tokens)"),
        (fails(413, {"detail": [{"msg": "too long"}]}), '(413: [{"msg": "too long"}])'),
        (says("half", "content_filter"), "content filter"),
        (says("", refusal="I cannot"), "the model refused: I cannot"),
        (says(None, "tool_calls"), "called a tool"),
        (says("", "length"), "empty at max_tokens = 8: a model that thinks first needs more"),
    ],
)
def test_what_would_fail_again_is_listed_at_once(server: Server, ask: Any, action: Any, named: str) -> None:
    server.script, store = [action], CompletionStore(":memory:")
    requests = [Request("a", sampling=WARM), Request("b", sampling=WARM)]
    result = run(ask(concurrency=1), *requests, store=store)
    assert [failure.request.text for failure in result.failures] == ["a"]
    assert named in result.failures[0].reason
    assert result.retried == 0
    assert result.answers[1].texts == ["b#5.0"]
    again = run(ask(), *requests, store=store)
    assert (again.asked, again.reused, again.failures) == (1, 1, [])


def test_a_sample_that_is_no_answer_leaves_the_others_to_be_asked_for(server: Server, ask: Any) -> None:
    server.script = [says("half", "content_filter")]
    result = run(ask(concurrency=1), Request("p", samples=3, sampling=WARM))
    assert result.answers[0].texts == ["p#6.0", "p#7.0"]
    assert [failure.sample for failure in result.failures] == [0]
    assert result.asked == 3


def test_greedy_samples_fail_for_one_reason(server: Server, ask: Any) -> None:
    server.script = [says("half", "content_filter")]
    result = run(ask(), Request("p", samples=3))
    assert {failure.reason for failure in result.failures} == {"the server's content filter cut the answer off"}
    assert (len(result.failures), len(server.bodies)) == (3, 1)


def test_words_that_cannot_be_printed_are_replaced(server: Server, ask: Any) -> None:
    server.script = [fails(400, "half \ud800 a pair")]
    assert "(400: half ? a pair)" in str(run(ask(), Request("p"))).encode().decode()


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (fails(401, "wrong key"), r"refuses the key \(401: wrong key\): name the environment variable"),
        (fails(403, "not yours"), r"refuses the key \(403: not yours\)"),
        (fails(404, "no such model"), r"no model 'teacher-larg' .*did you mean teacher-large"),
        (fails(400, "unknown model"), r"no model 'teacher-larg' .*did you mean teacher-large"),
        (fails(429, {"message": "pay", "code": "insufficient_quota"}), "no quota left"),
        (fails(429, **{"retry-after": "86400"}), r"asks to wait 86,400 seconds; start again then"),
    ],
)
def test_what_fails_for_all_is_one_sentence_and_loses_nothing(
    server: Server, tmp_path: Path, action: Any, named: str
) -> None:
    generator = OpenAIGenerator("teacher-larg", server.url, concurrency=1, first_wait=0.01)
    server.script = [good, action]
    with CompletionStore(tmp_path / "store.sqlite") as store:
        with pytest.raises(ConfigurationError, match=named) as caught:
            run(generator, *(Request(f"p{number}") for number in range(9)), store=store)
        assert "\n" not in str(caught.value)
        assert len(store) == 1
    assert len(server.bodies) == 2


def test_a_wrong_address_is_told_from_a_wrong_model(server: Server, ask: Any) -> None:
    server.script = [fails(404, "not found")]
    with pytest.raises(ConfigurationError, match="has no chat endpoint, or no model .*mostly ends in /v1"):
        run(ask(), Request("p"))


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    generator = OpenAIGenerator("m", f"http://127.0.0.1:{port}/v1")
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=f"there is no server at http://127.0.0.1:{port}/v1"):
        run(generator, Request("p"))
    assert time.monotonic() - began < 3


def test_a_server_that_goes_away_ends_the_run_after_the_retries(server: Server, ask: Any) -> None:
    generator, store = ask(retries=1), CompletionStore(":memory:")
    run(generator, Request("p"), store=store)
    server.close()
    with pytest.raises(ConfigurationError, match="is no longer there; start again later, what is answered is stored"):
        run(generator, *(Request(f"p{number}") for number in range(40)), store=store)
    assert len(store) == 1


# -- kept at once ------------------------------------------------------------------------------------------------------


def test_each_answer_is_committed_while_others_are_in_flight(server: Server, ask: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    seen: list[int] = []

    def last(body: dict[str, Any]) -> Any:
        deadline = time.monotonic() + 5
        with CompletionStore(path) as other:
            while len(other) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(len(other))
        return good(body)

    server.script = [last]
    with CompletionStore(path) as store:
        run(ask(concurrency=2), *(Request(f"p{number}") for number in range(5)), store=store)
        assert len(store) == 5
    assert seen == [4]


def test_what_another_process_answers_in_the_meantime_is_not_asked(server: Server, ask: Any) -> None:
    store, generator, requests = CompletionStore(":memory:"), ask(concurrency=1), [Request("a"), Request("b")]

    def meanwhile(body: dict[str, Any]) -> Any:
        store.put(requests[1].key(generator.identity), 0, Completion("theirs"))
        return good(body)

    server.script = [meanwhile]
    result = run(generator, *requests, store=store)
    assert [answer.texts for answer in result.answers] == [["a#None.0"], ["theirs"]]
    assert (len(server.bodies), result.asked, result.reused) == (1, 1, 1)


def test_a_retry_looks_at_the_store_first(server: Server, ask: Any) -> None:
    store, generator, request = CompletionStore(":memory:"), ask(), Request("a")

    def meanwhile(_: dict[str, Any]) -> Any:
        store.put(request.key(generator.identity), 0, Completion("theirs"))
        return fails(500)({})

    server.script = [meanwhile]
    result = run(generator, request, store=store)
    assert result.answers[0].texts == ["theirs"]
    assert (len(server.bodies), result.reused, result.asked) == (1, 1, 0)


def test_concurrency_is_bounded_at_the_server(server: Server, ask: Any) -> None:
    server.together = 5
    run(ask(concurrency=5), *(Request(f"p{number}") for number in range(20)))
    assert server.most == 5


def test_a_generator_answers_without_an_engine(server: Server, ask: Any) -> None:
    server.script = [fails(500)]
    assert [answer.texts for answer in ask().generate([Request("a"), Request("b")])] == [["a#None.0"], ["b#None.0"]]


# -- log-probabilities -------------------------------------------------------------------------------------------------


def test_log_probabilities_of_chat(server: Server, ask: Any) -> None:
    content = [
        {"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": [{"token": "4", "logprob": -0.1}]},
        {"token": " apples", "logprob": -0.5, "bytes": None, "top_logprobs": []},
        {"token": "\n", "logprob": -2.0, "bytes": None, "top_logprobs": []},
    ]
    server.script = [lambda _: {"choices": [{"message": {"content": "4 apples\n"}, "logprobs": {"content": content}}]}]
    generator, store = ask(logprobs=1), CompletionStore(":memory:")
    assert generator.capabilities == {"text", "logprobs"}
    request = Request("p", stop=("\n",))
    completion = run(generator, request, store=store).answers[0].completions[0]
    expected = (TokenLogprob("4", -0.1, (("4", -0.1),)), TokenLogprob(" apples", -0.5))
    assert completion == Completion("4 apples", "stop", expected)
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 1)
    assert run(generator, request, store=store).answers[0].completions[0] == completion
    assert len(server.bodies) == 1


def test_log_probabilities_of_completions(server: Server, ask: Any) -> None:
    found = {"tokens": ["a", "b"], "token_logprobs": [-1, -2.5], "top_logprobs": [{"a": -1, "c": -3}, None]}
    server.script = [lambda _: {"choices": [{"text": "ab", "logprobs": found}]}]
    completion = run(ask(logprobs=2, endpoint="completions"), Request("p")).answers[0].completions[0]
    assert completion.logprobs == (TokenLogprob("a", -1.0, (("a", -1.0), ("c", -3.0))), TokenLogprob("b", -2.5))
    assert server.bodies[0]["logprobs"] == 2


def test_malformed_log_probabilities_are_tried_again(server: Server, ask: Any) -> None:
    broken = {"content": [{"token": "a"}]}
    whole = {"content": [{"token": "a", "logprob": -1.0}]}
    server.script = [lambda body: good(body, logprobs=broken), lambda body: good(body, logprobs=whole)]
    result = run(ask(logprobs=0), Request("p"))
    assert result.answers[0].completions[0].logprobs == (TokenLogprob("a", -1.0),)
    assert result.retried == 1


def test_missing_log_probabilities_are_named(ask: Any) -> None:
    assert ask().capabilities == {"text"}
    store = CompletionStore(":memory:")
    with pytest.raises(ConfigurationError, match="gives no log-probabilities for teacher-large: leave logprobs out"):
        run(ask(logprobs=0), Request("p"), store=store)
    assert len(store) == 0


def test_usage_is_estimated_where_the_server_tells_none(server: Server, ask: Any) -> None:
    server.script = [says("eight it is")]
    assert run(ask(), Request("p" * 41)).usage == Usage(1, 11, 3, estimated=True)


@pytest.mark.parametrize("count", [-1, 2**63, "10", None])
def test_a_count_that_cannot_be_is_estimated_instead(server: Server, ask: Any, count: Any) -> None:
    server.script = [lambda body: good(body) | {"usage": {"prompt_tokens": count, "completion_tokens": 2}}]
    store = CompletionStore(":memory:")
    assert run(ask(), Request("p" * 8), store=store).usage == store.usage() == Usage(1, 2, 2, estimated=True)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_found_nowhere_else(
    server: Server,
    ask: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    generator = ask(key_variable="TEACHER_KEY", retries=1)
    echo = f"your key is {KEY}"
    texts = [repr(generator), str(vars(generator)), generator.identity]
    raw = [lambda _: (200, KEY.encode(), {})] * 2
    wrapped = [lambda _: {"error": echo}] * 2
    spoken = [says(f"It is {KEY}."), says("", refusal=echo)]
    actions = [good, fails(400, echo), fails(500, echo), fails(500, echo), *raw, *wrapped, *spoken]
    path = tmp_path / "store.sqlite"
    with CompletionStore(path) as store:
        server.script = actions
        result = Engine(generator, store, concurrency=1).run([Request(f"p{number}") for number in range(7)])
        assert len(result.failures) == 6
        texts.append(str(result))
        for action in (fails(401, echo), fails(404, echo), fails(429, {"message": echo, "code": "insufficient_quota"})):
            server.script = [action]
            with pytest.raises(ConfigurationError) as caught:
                run(generator, Request("q"), store=store)
            texts.append("".join(traceback.format_exception(caught.value)))
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    out, err = capsys.readouterr()
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in "\n".join([*texts, out, err, caplog.text])
    assert KEY.encode() not in stored
    assert "***" in "\n".join(texts)


def test_a_long_key_is_not_shown_in_part(server: Server, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-" + "0123456789" * 16
    monkeypatch.setenv("TEACHER_KEY", key)
    server.script = [lambda _: (200, f"wrong key {key}".encode(), {})]
    result = run(ask(key_variable="TEACHER_KEY", retries=0), Request("p"))
    assert result.failures[0].reason.endswith("sent no JSON ('wrong key ***')")


def test_what_the_environment_holds_for_openai_goes_to_no_other_server(
    server: Server, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: Bearer {KEY}\nX-Team: {KEY}")
    monkeypatch.setenv("TEACHER_KEY", "another-key")
    run(ask(), Request("p"))
    run(ask(key_variable="TEACHER_KEY"), Request("q"))
    assert KEY not in str(server.headers)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer another-key"]


def test_a_missing_key_is_named(server: Server, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    generator = ask(key_variable="TEACHER_KEY")
    with pytest.raises(ConfigurationError, match="environment variable TEACHER_KEY is not set"):
        run(generator, Request("p"))
    assert server.bodies == []
    assert OpenAIGenerator("m").key_variable == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    "options",
    [
        {"key_variable": KEY},
        {"key_variable": KEY.replace("-", "_")},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
    ],
)
def test_a_key_given_as_an_option_is_refused_and_not_repeated(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OpenAIGenerator("m", **options)
    assert KEY not in str(caught.value)
    assert KEY.replace("-", "_") not in str(caught.value)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"base_url": "localhost:8000"}, "base_url is 'localhost:8000'"),
        ({"endpoint": "responses"}, "endpoint is 'responses'"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"price_per_million_input": -1.0}, "price_per_million_input"),
        ({"extra_body": {"until": date(2024, 5, 6)}}, "extra_body holds what no request can: .*date"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        OpenAIGenerator("m", **options)


def test_the_missing_extra_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kdlightning\[openai\]'"):
        OpenAIGenerator("m")


def test_identity_is_what_changes_answers_and_nothing_else() -> None:
    one = OpenAIGenerator("m", "http://host/v1")
    same = OpenAIGenerator("m", "http://host/v1/", retries=1, timeout=3.0, concurrency=2, price_per_million_input=2.0)
    assert one.identity == same.identity == "http://host/v1 m chat"
    others = [
        OpenAIGenerator("n", "http://host/v1"),
        OpenAIGenerator("m", "http://other/v1"),
        OpenAIGenerator("m", "http://host/v1", endpoint="completions"),
        OpenAIGenerator("m", "http://host/v1", logprobs=0),
        OpenAIGenerator("m", "http://host/v1", extra_body={"min_p": 0.1}),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 6
    moved = [OpenAIGenerator("m", f"http://host:{port}/v1", name="mine").identity for port in (1, 2)]
    assert moved == ["mine chat"] * 2
