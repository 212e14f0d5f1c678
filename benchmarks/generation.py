"""What the engine costs beside a bare client, what a large store costs, and what kills cost.

    python benchmarks/generation.py                    # about 8 minutes on two idle cores
    python benchmarks/generation.py --quick            # small numbers; writes no file
    python benchmarks/generation.py --table            # the table of what was measured

CPU: both variants ask one loopback server, in a process of its own, with 64 requests at a time; blocks of fresh
prompts alternate, and which variant goes first alternates too. Ours is the engine with `OpenAIGenerator` and a store
on the disk, where every answer is committed by itself; bare is 64 workers around `AsyncOpenAI`. The difference is
that of the process's CPU times a request within each pair of blocks: its median and bootstrapped 90 % interval.

Store: a million answers to a million requests. A look-up is that of one answer by its request's hash; resuming is a
whole run of the engine over all of them, from the requests to the answers, with nothing to ask; the shortest of three.

Kills: `generation_kills.py`, at random moments, counted by the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from generation_kills import IN_FLIGHT, kill_often
from openai import AsyncOpenAI
from paired import markdown, write

from kdlightning.generation.base import Answer, Completion, Request, TextGenerator
from kdlightning.generation.engine import Engine
from kdlightning.generation.openai import OpenAIGenerator
from kdlightning.generation.store import CompletionStore

RESULTS = Path(__file__).parent / "results" / "generation"
AT_A_TIME = 64
Variants = dict[str, Callable[[list[str]], list[str]]]
MODEL = "loopback"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, no file")
    parser.add_argument("--table", action="store_true", help="only the table of what was measured")
    parser.add_argument("--cases", nargs="+", choices=("cpu", "store", "kills"), default=("cpu", "store", "kills"))
    options = parser.parse_args(arguments)
    if options.table:
        print(table({path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}))
        return
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            measured[case] = globals()[case](Path(folder), options.quick) | {"versions": versions()}
            if not options.quick:
                write(RESULTS / f"{case}.json", measured[case])
    print(table(measured))


def versions() -> dict[str, str]:
    """Of what was measured."""
    return {"python": platform.python_version(), "openai": version("openai"), "processor": platform.machine()}


# -- CPU time a request ------------------------------------------------------------------------------------------------


def cpu(folder: Path, quick: bool) -> dict[str, Any]:
    """CPU time a request of ours and of a bare client, in alternating blocks."""
    blocks, size = (2, 100) if quick else (12, 300)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    with served() as url:
        generator = OpenAIGenerator(MODEL, url, concurrency=AT_A_TIME)
        store = CompletionStore(folder / "cpu.sqlite")

        def ours(prompts: list[str]) -> list[str]:
            answers = Engine(generator, store, progress=False).run([Request(prompt) for prompt in prompts]).answers
            return [answer.texts[0] for answer in answers]

        variants: Variants = {"bare": lambda prompts: bare(url, prompts), "ours": ours}
        for block in range(-1, blocks):  # the first pair is no part of it: imports, connections, caches
            prompts = [f"Question {block} {number}" for number in range(size)]
            for name in ("bare", "ours") if block % 2 else ("ours", "bare"):
                began = time.process_time()
                texts = variants[name](prompts)
                spent = (time.process_time() - began) / size
                assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
                if block >= 0:
                    seconds[name].append(spent)
        store.close()
    more = [1e3 * (one - other) for one, other in zip(seconds["ours"], seconds["bare"], strict=True)]
    middle, low, high = median_interval(more)
    return {
        "at_a_time": AT_A_TIME,
        "requests_a_block": size,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "difference": {"median": middle, "low": low, "high": high},
        "bound": 5.0,
        "holds": low <= 5.0,
        "blocks": {name: [round(1e3 * value, 4) for value in values] for name, values in seconds.items()},
    }


@contextmanager
def served() -> Iterator[str]:
    """The loopback server in a process of its own, whose CPU time is not ours."""
    script = [sys.executable, str(Path(__file__).with_name("loopback.py"))]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.stdin.close()


def bare(url: str, prompts: list[str]) -> list[str]:
    """What somebody writes who has no engine: workers that take prompts from a list, and nothing kept."""

    async def work() -> list[str]:
        texts, waiting = [""] * len(prompts), iter(range(len(prompts)))
        async with AsyncOpenAI(base_url=url, api_key="none") as client:

            async def worker() -> None:
                for place in waiting:
                    answer = await client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": prompts[place]}],
                        max_tokens=256,
                        temperature=0,
                    )
                    texts[place] = answer.choices[0].message.content or ""

            await asyncio.gather(*(worker() for _ in range(AT_A_TIME)))
        return texts

    return asyncio.run(work())


def median_interval(values: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """Median and the ends of its bootstrapped 90 % interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[int(0.05 * draws)], medians[int(0.95 * draws) - 1]


# -- a large store -----------------------------------------------------------------------------------------------------


class Silent(TextGenerator):
    """Whoever asks it has not found what the store has."""

    identity = "silent"

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        raise AssertionError(f"asked for {len(requests)} requests that are stored")


def store(folder: Path, quick: bool) -> dict[str, Any]:
    """Look-ups in a large store, and a run of which everything is stored."""
    count, path = 10_000 if quick else 1_000_000, folder / "large.sqlite"
    asked = [Request(question(number)) for number in range(count)]
    fill(path, asked)
    spent = [resume(path, asked) for _ in range(3)]
    return {
        "rows": count,
        "bytes": path.stat().st_size,
        "lookup_milliseconds": lookups(path, asked, min(count, 5_000)),
        "lookup_bound": 1.0,
        "resume_seconds": min(wall for wall, _ in spent),
        "resume_cpu_seconds": min(alone for _, alone in spent),
        "resume_bound": 10.0,
        "resident_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "holds": min(wall for wall, _ in spent) <= 10.0,
    }


def question(number: int) -> str:
    """A prompt of some length: 300 characters."""
    return f"Question {number}: {'a word problem of the usual length ' * 8}"[:300]


def fill(path: Path, asked: Sequence[Request]) -> None:
    """A store of all answers, written in one go."""
    with CompletionStore(path) as opened:
        opened.put("0" * 64, 0, Completion("makes the tables"))
        connection: Any = opened._connection
        connection.execute("BEGIN")
        rows = sorted((request.key(Silent.identity), request.text) for request in asked)
        connection.executemany(
            "INSERT INTO completions VALUES (?, 0, ?, 'stop')",
            ((key, f"{text} The answer is 42.") for key, text in rows),
        )
        connection.execute("COMMIT")


def lookups(path: Path, asked: Sequence[Request], count: int) -> dict[str, float]:
    """Milliseconds of a look-up of one answer, in a store that was just opened."""
    chance, spent = random.Random(0), []
    with CompletionStore(path) as opened:
        for request in chance.sample(list(asked), count):
            key = request.key(Silent.identity)
            began = time.perf_counter()
            found = opened.get(key, [0])
            spent.append(1e3 * (time.perf_counter() - began))
            assert found[0].text.startswith(request.text)
    return {"median": statistics.median(spent), "p99": statistics.quantiles(spent, n=100)[-1], "most": max(spent)}


def resume(path: Path, asked: Sequence[Request]) -> tuple[float, float]:
    """Seconds of a run with nothing to ask: on the wall, and of this process alone."""
    with CompletionStore(path) as opened:
        began = time.perf_counter(), time.process_time()
        result = Engine(Silent(), opened, progress=False).run(asked)
        spent = time.perf_counter() - began[0], time.process_time() - began[1]
    assert (result.asked, result.reused) == (0, len(asked))
    return spent


# -- kills -------------------------------------------------------------------------------------------------------------


def kills(folder: Path, quick: bool) -> dict[str, Any]:
    """What random kills cost, as the server counts it."""
    count = 3 if quick else 100
    began = time.perf_counter()
    found = kill_often(folder, count, 30 * count)
    found.check()
    return {
        "kills": found.kills,
        "requests": 30 * count,
        "samples": found.wanted.total(),
        "asked": found.asked,
        "committed_and_asked_again": found.asked_again,
        "misaligned": found.misaligned,
        "equal_to_the_undisturbed_run": found.equal,
        "repeated_a_kill": {"most": max(found.repeated), "mean": statistics.fmean(found.repeated[:-1])},
        "in_flight": IN_FLIGHT,
        "seconds": time.perf_counter() - began,
        "holds": True,
    }


# -- the table ---------------------------------------------------------------------------------------------------------


def table(measured: dict[str, Any]) -> str:
    """What was measured beside its bounds."""
    rows = [["what", "measured", "bound", "holds"]]
    if "cpu" in measured:
        one = measured["cpu"]
        each, more = one["milliseconds"], one["difference"]
        rows.append(
            [
                f"CPU time a request at {one['at_a_time']} at a time, above a bare client",
                f"{more['median']:.2f} ms ({more['low']:.2f} to {more['high']:.2f}); "
                f"{each['ours']:.2f} ours, {each['bare']:.2f} bare",
                f"{one['bound']:.0f} ms",
                _yes(one["holds"]),
            ]
        )
    if "store" in measured:
        one = measured["store"]
        look = one["lookup_milliseconds"]
        rows.append(
            [
                f"a look-up among {one['rows']:,} answers",
                f"{look['median']:.3f} ms (99 % below {look['p99']:.3f})",
                f"{one['lookup_bound']:.0f} ms",
                _yes(look["p99"] <= one["lookup_bound"]),
            ]
        )
        rows.append(
            [
                f"resuming a run of {one['rows']:,} stored answers",
                f"{one['resume_seconds']:.1f} s ({one['resume_cpu_seconds']:.1f} of CPU time)",
                f"{one['resume_bound']:.0f} s",
                _yes(one["resume_seconds"] <= one["resume_bound"]),
            ]
        )
    if "kills" in measured:
        one = measured["kills"]
        repeated = one["repeated_a_kill"]
        rows += [
            [
                f"committed answers asked for again in {one['kills']} kills",
                str(one["committed_and_asked_again"]),
                "0",
                "yes",
            ],
            ["rows lost or misaligned", str(one["misaligned"]), "0", _yes(one["equal_to_the_undisturbed_run"])],
            [
                "answers asked for again a kill",
                f"{repeated['mean']:.1f} on average, at most {repeated['most']}",
                f"{one['in_flight']}, those in flight",
                _yes(repeated["most"] <= one["in_flight"]),
            ],
        ]
    return markdown(rows)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


if __name__ == "__main__":
    main()
