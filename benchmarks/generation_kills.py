"""Kills a run of the engine again and again, and counts at the server what that costs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from generation_worker import CONCURRENCY, SAMPLES, generator, requests, run
from loopback import Loopback, answer_to

from kdlightning.generation.store import CompletionStore

WORKER = Path(__file__).with_name("generation_worker.py")
IN_FLIGHT = CONCURRENCY * SAMPLES
Sample = tuple[str, int]
"""A prompt and a sample's number."""


@dataclass
class Kills:
    """What the server and the stores say.

    Attributes:
        kills: processes that were killed while they asked.
        asked: samples that the server was asked for, in all attempts.
        wanted: samples that there are, by prompt.
        repeated: for each attempt, the samples that it asked for and did not commit: a later one asks again.
        asked_again: samples that were asked for although they were committed.
        misaligned: rows whose text is not the answer to their prompt.
        equal: whether the store holds the same rows as that of the undisturbed run.
    """

    kills: int = 0
    asked: int = 0
    wanted: Counter[str] = field(default_factory=Counter)
    repeated: list[int] = field(default_factory=list)
    asked_again: int = 0
    misaligned: int = 0
    equal: bool = False

    def check(self) -> None:
        """Raises AssertionError where the promise is broken."""
        assert self.asked_again == 0, f"{self.asked_again} committed answers were asked for again"
        assert max(self.repeated, default=0) <= IN_FLIGHT, f"more than {IN_FLIGHT} repeated: {self.repeated}"
        assert self.repeated[-1] == 0, "the last attempt left answers open"
        assert self.asked == self.wanted.total() + sum(self.repeated), (self.asked, self.wanted.total(), self.repeated)
        assert self.misaligned == 0, f"{self.misaligned} rows are misaligned"
        assert self.equal, "the store is not that of the undisturbed run"


def kill_often(folder: Path, kills: int, count: int, seed: int = 0, delay: float = 0.002) -> Kills:
    """Runs once undisturbed; then anew, killed at random moments, and at last to its end.

    Args:
        folder: for the stores.
        kills: how many processes are killed.
        count: requests.
        seed: of the moments.
        delay: mean seconds of the server's answer.
    """
    chance, store, found = random.Random(seed), folder / "killed.sqlite", Kills()
    with Loopback(delay) as server:
        with patch.dict(os.environ, CALLER="undisturbed"):
            run(str(folder / "undisturbed.sqlite"), server.url, count)
        keys = {request.key(generator(server.url).identity): request.text for request in requests(count)}
        everything = rows(folder / "undisturbed.sqlite", keys)
        found.wanted = Counter(prompt for prompt, _ in everything)
        for attempt in range(kills):
            before = rows(store, keys)
            process = start(server, store, count, f"attempt-{attempt}")
            # Drawn so that all kills find something left to do; sometimes one comes before the first request.
            left = len(everything) - len(before)
            wait_for(server, process, f"attempt-{attempt}", chance.randrange(2 * left // (kills - attempt + 1) + 1))
            time.sleep(chance.uniform(0, 5 * delay))
            found.kills += end(process)
            settle(server)
            note(found, asked_by(server, f"attempt-{attempt}"), before, rows(store, keys))
        before = rows(store, keys)
        finish(server, store, count, "last")
        note(found, asked_by(server, "last"), before, rows(store, keys))
        found.asked = sum(samples for name, _, samples in server.asked if name != "undisturbed")
    ended = rows(store, keys)
    found.misaligned = sum(text != answer_to(prompt) for (prompt, _), text in ended.items())
    found.equal = ended == everything
    return found


def share(folder: Path, processes: int, count: int, delay: float = 0.002) -> tuple[int, int, bool]:
    """Several processes work on one store at once.

    Returns:
        Samples asked for, samples that there are, and whether every row is there and right.
    """
    store = folder / "shared.sqlite"
    with Loopback(delay) as server:
        started = [start(server, store, count, f"process-{number}") for number in range(processes)]
        assert [process.wait() for process in started] == [0] * processes
        keys = {request.key(generator(server.url).identity): request.text for request in requests(count)}
    found = rows(store, keys)
    wanted = {(each.text, number): answer_to(each.text) for each in requests(count) for number in each.numbers}
    return sum(samples for _, _, samples in server.asked), len(wanted), found == wanted


# -- processes ---------------------------------------------------------------------------------------------------------


def start(server: Loopback, store: Path, count: int, name: str) -> subprocess.Popen[bytes]:
    """A run of its own, known to the server by its name."""
    environment = {**os.environ, "CALLER": name}
    return subprocess.Popen([sys.executable, str(WORKER), str(store), server.url, str(count)], env=environment)


def finish(server: Loopback, store: Path, count: int, name: str) -> None:
    """A run to its end."""
    code = start(server, store, count, name).wait()
    assert code == 0, f"{name} ended with {code}"


def wait_for(server: Loopback, process: subprocess.Popen[bytes], name: str, samples: int) -> None:
    """Returns when the server was asked for so many samples by this process, or when it has ended."""
    while process.poll() is None and server.samples[name] < samples:
        time.sleep(0.001)


def end(process: subprocess.Popen[bytes]) -> bool:
    """Kills a process; whether it was still running."""
    running = process.poll() is None
    process.kill()
    process.wait()
    return running


def settle(server: Loopback) -> None:
    """Returns when the server has read all that a killed process had sent, and has seen its connections end."""
    with urllib.request.urlopen(f"{server.url}/models") as answer:  # connections are taken in their order
        answer.read()
    while server.connections:
        time.sleep(0.001)


# -- counting ----------------------------------------------------------------------------------------------------------


def asked_by(server: Loopback, name: str) -> Counter[str]:
    """Samples asked for by prompt."""
    counts: Counter[str] = Counter()
    for caller, prompt, samples in list(server.asked):
        if caller == name:
            counts[prompt] += samples
    return counts


def rows(store: Path, keys: dict[str, str]) -> dict[Sample, str]:
    """What a store holds; a row of an unknown request is an error."""
    with CompletionStore(store) as opened:
        return {(keys[key], number): text for key, number, text in opened.rows()}


def note(found: Kills, asked: Counter[str], before: dict[Sample, str], after: dict[Sample, str]) -> None:
    """Compares what an attempt asked for with what was committed before it and by it."""
    were, now = (Counter(prompt for prompt, _ in part) for part in (before, after))
    found.asked_again += sum(max(0, count - (found.wanted[prompt] - were[prompt])) for prompt, count in asked.items())
    found.repeated.append(sum(count - (now[prompt] - were[prompt]) for prompt, count in asked.items()))
