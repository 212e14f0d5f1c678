"""One run of the engine against the loopback server, in a process of its own that may be killed at any moment.

python benchmarks/generation_worker.py STORE URL COUNT
"""

from __future__ import annotations

import sys

from kdlightning.generation.base import Request, Sampling
from kdlightning.generation.engine import Engine, EngineResult
from kdlightning.generation.openai import OpenAIGenerator
from kdlightning.generation.store import CompletionStore

CONCURRENCY = 8
SAMPLES = 2
"""Answers that every third request wants."""


def requests(count: int) -> list[Request]:
    """The questions, of which every third wants two answers. They are drawn: equal answers would be asked for once."""
    drawn = Sampling(temperature=1.0)
    counts = [SAMPLES if number % 3 == 0 else 1 for number in range(count)]
    return [Request(f"Question {n}", samples=samples, sampling=drawn) for n, samples in enumerate(counts)]


def generator(url: str) -> OpenAIGenerator:
    """Who is asked. Its key is the caller's name."""
    return OpenAIGenerator("loopback", url, "CALLER", concurrency=CONCURRENCY, name="loopback")


def run(store: str, url: str, count: int) -> EngineResult:
    """Asks for what the store lacks."""
    with CompletionStore(store) as opened:
        return Engine(generator(url), opened, progress=False).run(requests(count))


if __name__ == "__main__":
    result = run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(len(result.failures))
