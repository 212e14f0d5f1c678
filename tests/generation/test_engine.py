"""Nothing finished is asked twice, in one run, in the next, and after a kill."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Completion, Request
from kdlightning.generation.engine import Engine
from kdlightning.generation.store import CompletionStore

REQUESTS = [Request(f"p{number}", samples=2) for number in range(5)]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_answers_come_in_the_order_of_the_requests(scripted, batch_size: int, concurrency: int) -> None:
    generator = scripted(batch_size=batch_size, concurrency=concurrency)
    result = Engine(generator, progress=False).run(REQUESTS)
    assert [answer.texts for answer in result.answers] == [[f"p{n}/0", f"p{n}/1"] for n in range(5)]
    assert (result.asked, result.reused, result.failures) == (10, 0, [])
    assert max(generator.calls) <= batch_size


def test_a_second_run_asks_nothing(scripted, tmp_path: Path) -> None:
    with CompletionStore(tmp_path / "store.sqlite") as store:
        first = Engine(scripted(), store, progress=False).run(REQUESTS)
    generator = scripted()
    with CompletionStore(tmp_path / "store.sqlite") as store:
        second = Engine(generator, store, progress=False).run(REQUESTS)
    assert generator.asked == []
    assert (second.asked, second.reused) == (0, 10)
    assert [answer.texts for answer in second.answers] == [answer.texts for answer in first.answers]


def test_only_missing_samples_are_asked(scripted) -> None:
    store = CompletionStore(":memory:")
    request = Request("p", samples=5)
    for number in (1, 3):
        store.put(request.key("script"), number, Completion(f"stored {number}"))
    generator = scripted()
    result = Engine(generator, store, progress=False).run([request])
    assert sorted(generator.asked) == [("p", 0), ("p", 2), ("p", 4)]
    assert result.answers[0].texts == ["p/0", "stored 1", "p/2", "stored 3", "p/4"]


def test_identical_and_overlapping_requests_are_asked_once(scripted) -> None:
    generator = scripted()
    requests = [Request("p"), Request("p", samples=3), Request("p", first_sample=2), Request("p")]
    result = Engine(generator, progress=False).run(requests)
    assert sorted(generator.asked) == [("p", 0), ("p", 1), ("p", 2)]
    assert [answer.texts for answer in result.answers] == [["p/0"], ["p/0", "p/1", "p/2"], ["p/2"], ["p/0"]]


def test_another_generator_does_not_get_these_answers(scripted) -> None:
    store = CompletionStore(":memory:")
    Engine(scripted("one"), store, progress=False).run(REQUESTS)
    other = scripted("other")
    Engine(other, store, progress=False).run(REQUESTS)
    assert len(other.asked) == 10
    assert len(store) == 20


def test_failures_are_listed_and_not_stored(scripted) -> None:
    store, generator = CompletionStore(":memory:"), scripted()
    generator.failing = {"p1", "p3"}
    result = Engine(generator, store, progress=False).run(REQUESTS)
    assert [(failure.request.text, failure.sample) for failure in result.failures] == [
        ("p1", 0), ("p1", 1), ("p3", 0), ("p3", 1),
    ]  # fmt: skip
    assert len(store) == 6
    assert result.answers[1].texts == []
    assert result.answers[1].failures == {0: "no answer to p1", 1: "no answer to p1"}
    assert "4 failed" in str(result)
    assert "no answer to p3" in str(result)
    generator.failing, generator.asked = set(), []
    again = Engine(generator, store, progress=False).run(REQUESTS)
    assert {prompt for prompt, _ in generator.asked} == {"p1", "p3"}
    assert again.failures == []


def test_what_was_finished_before_an_exception_is_kept(scripted) -> None:
    class Breaking(scripted):
        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            if requests[0].text == "p3":
                raise ConfigurationError("the key is wrong")
            return super().generate(requests)

    store = CompletionStore(":memory:")
    with pytest.raises(ConfigurationError, match="the key is wrong"):
        Engine(Breaking(), store, progress=False).run(REQUESTS)
    assert len(store) == 6


@pytest.mark.parametrize("harm", [lambda answers: answers[:-1], lambda answers: answers[::-1]])
def test_answers_that_do_not_line_up_are_never_stored(scripted, harm) -> None:
    class Sloppy(scripted):
        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            return harm(super().generate(requests))

    store = CompletionStore(":memory:")
    with pytest.raises(RuntimeError, match="Sloppy gave"):
        Engine(Sloppy(batch_size=2), store, progress=False).run(REQUESTS)
    assert len(store) == 0


def test_concurrency_is_used_and_bounded(scripted) -> None:
    class Slow(scripted):
        running = most = 0

        async def generate_async(self, requests: Sequence[Request]) -> list[Answer]:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.001 * random.random())
            self.running -= 1
            return self.generate(requests)

    generator = Slow()
    requests = [Request(f"p{number}") for number in range(40)]
    result = Engine(generator, concurrency=7, progress=False).run(requests)
    assert generator.most == 7
    assert [answer.texts for answer in result.answers] == [[f"p{number}/0"] for number in range(40)]


def test_runs_where_a_loop_already_runs(scripted) -> None:
    async def cell() -> list[str]:
        return Engine(scripted(), progress=False).run([Request("p")]).answers[0].texts

    assert asyncio.run(cell()) == ["p/0"]


def test_an_exception_crosses_from_the_inner_loop(scripted) -> None:
    class Breaking(scripted):
        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            raise ConfigurationError("the key is wrong")

    async def cell() -> None:
        Engine(Breaking(), progress=False).run([Request("p")])

    with pytest.raises(ConfigurationError, match="the key is wrong"):
        asyncio.run(cell())


def test_an_interrupt_in_a_notebook_ends_the_inner_loop(scripted) -> None:
    class Slow(scripted):
        cancelled = False

        async def generate_async(self, requests: Sequence[Request]) -> list[Answer]:
            if requests[0].text == "p0":
                return self.generate(requests)
            threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return self.generate(requests)

    async def cell(generator: Slow, store: CompletionStore) -> None:
        Engine(generator, store, progress=False).run(REQUESTS)

    generator, store, loop = Slow(), CompletionStore(":memory:"), asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell(generator, store))
    loop.close()
    assert generator.cancelled
    assert len(store) == 2


def test_what_a_generator_leaves_out_is_asked_for_again_while_it_brings_something(scripted) -> None:
    class Sparing(scripted):
        most = 2

        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            answers = super().generate(requests)
            for answer in answers:
                answer.completions = dict(list(answer.completions.items())[: self.most])
            return answers

    generator = Sparing()
    result = Engine(generator, progress=False).run([Request("p", samples=5)])
    assert result.answers[0].texts == [f"p/{number}" for number in range(5)]
    assert generator.asked == [("p", n) for n in (0, 1, 2, 3, 4, 2, 3, 4, 4)]
    generator.most = 0
    failures = Engine(generator, progress=False).run([Request("q", samples=2)]).failures
    assert [failure.reason for failure in failures] == [f"Sparing gave no answer to sample {n}" for n in (0, 1)]


def test_a_generator_that_answers_other_samples_is_not_asked_for_ever(scripted) -> None:
    class Astray(scripted):
        def generate(self, requests: Sequence[Request]) -> list[Answer]:
            assert len(self.calls) < 3
            self.calls.append(1)
            return [Answer(request, {7: Completion("x")}, {8: "no"}) for request in requests]

    failures = Engine(Astray(), progress=False).run([Request("p", samples=2)]).failures
    assert [failure.reason for failure in failures] == [f"Astray gave no answer to sample {n}" for n in (0, 1)]


def test_no_requests_are_fine(scripted) -> None:
    assert Engine(scripted(), progress=False).run([]).answers == []


# A run in a process of its own, which notes each request before it answers it, slowly.
SLOW = """
import json, sys, time
from kdlightning.generation.base import Answer, Completion, Request, TextGenerator
from kdlightning.generation.engine import Engine
from kdlightning.generation.store import CompletionStore

class Slow(TextGenerator):
    identity = "slow"
    batch_size, concurrency = 2, 2
    def generate(self, requests):
        for request in requests:
            with open(sys.argv[2], "a") as file:
                file.write(json.dumps([[request.text, n] for n in request.numbers]) + "\\n")
        time.sleep(0.01)
        return [Answer(r, {n: Completion(f"{r.text}/{n}") for n in r.numbers}) for r in requests]

requests = [Request(f"p{n}", samples=2) for n in range(int(sys.argv[3]))]
result = Engine(Slow(), CompletionStore(sys.argv[1]), progress=False).run(requests)
assert [a.texts for a in result.answers] == [[f"p{n}/0", f"p{n}/1"] for n in range(len(requests))]
"""


def start(store: Path, log: Path, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SLOW, str(store), str(log), str(count)], stderr=subprocess.PIPE)


def asked(log: Path) -> list[tuple[str, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(prompt, number) for line in lines for prompt, number in json.loads(line)]


def committed(store: Path) -> set[tuple[str, int]]:
    with CompletionStore(store) as opened:
        return {(text.split("/")[0], number) for _, number, text in opened.rows()}


def test_after_kills_nothing_finished_is_asked_twice(tmp_path: Path) -> None:
    count, store, chance = 60, tmp_path / "store.sqlite", random.Random(0)
    in_flight = 2 * 2 * 2  # calls at a time, requests a call, samples a request
    for attempt in range(6):
        log = tmp_path / f"log{attempt}"
        done = committed(store)
        process = start(store, log, count)
        if attempt < 5:
            deadline = time.monotonic() + 30
            while len(asked(log)) < in_flight and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert attempt < 5 or process.returncode == 0, errors.decode()
        asked_now = asked(log)
        assert not set(asked_now) & done
        assert len(asked_now) == len(set(asked_now))
        assert len(set(asked_now) - committed(store)) <= in_flight
    with CompletionStore(store) as opened:
        rows = [(key, number, text) for key, number, text in opened.rows()]
    assert len(rows) == 2 * count
    assert all(
        text.endswith(f"/{number}") and Request(text.split("/")[0]).key("slow") == key for key, number, text in rows
    )


def test_an_interrupt_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    store, log = tmp_path / "store.sqlite", tmp_path / "log"
    process = start(store, log, 400)
    while len(asked(log)) < 12 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert 4 <= len(committed(store)) < 800
    assert len(set(asked(log)) - committed(store)) <= 8


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    store, logs = tmp_path / "store.sqlite", [tmp_path / "a", tmp_path / "b"]
    processes = [start(store, log, 40) for log in logs]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert len(committed(store)) == 80
    for log in logs:
        assert len(asked(log)) == len(set(asked(log)))
