"""Runs requests through a generator, with the store in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdlightning.generation.base import Answer, Completion, Request, TextGenerator
from kdlightning.generation.progress import ProgressDisplay
from kdlightning.generation.store import CompletionStore


@dataclass
class Failure:
    """A sample that was not answered.

    Attributes:
        request: what was asked.
        sample: the sample's number.
        reason: one sentence.
    """

    request: Request
    sample: int
    reason: str


@dataclass
class EngineResult:
    """What came of a run.

    Attributes:
        answers: one for each request, in their order.
        asked: samples that the generator was asked for.
        reused: samples that the store had.
        failures: samples that were not answered; asking again starts with these.
    """

    answers: list[Answer] = field(default_factory=list)
    asked: int = 0
    reused: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.asked} asked, {self.reused} from the store, {len(self.failures)} failed"
        shown = [f"  {failure.reason}" for failure in self.failures[:10]]
        more = [f"  … and {len(self.failures) - 10} more"] if len(self.failures) > 10 else []
        return "\n".join([text, *shown, *more])


@dataclass
class _Job:
    request: Request
    numbers: set[int]
    completions: dict[int, Completion] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


class Engine:
    """Asks a generator, and never twice for what the store has.

    Identical requests are asked once. The store is looked at just before a request is sent, so what another process
    finished in the meantime is not asked again, and each answer is committed before it counts as done. After a kill
    only requests that were in flight are asked again.

    Args:
        generator: who is asked.
        store: where answers are kept; None keeps them for this run alone.
        concurrency: calls at the same time; None is the generator's own number.
        progress: whether to show a bar.
    """

    def __init__(
        self,
        generator: TextGenerator,
        store: CompletionStore | None = None,
        *,
        concurrency: int | None = None,
        progress: bool = True,
    ) -> None:
        self.generator = generator
        self.store = store if store is not None else CompletionStore(":memory:")
        self.concurrency = generator.concurrency if concurrency is None else concurrency
        self.progress = progress

    def run(self, requests: Sequence[Request], title: str = "Requests") -> EngineResult:
        """Answers all requests.

        Args:
            requests: may repeat and may overlap in their samples.
            title: what the progress display calls this.
        """
        identity = self.generator.identity
        keys = [request.key(identity) for request in requests]
        jobs: dict[str, _Job] = {}
        for key, request in zip(keys, requests, strict=True):
            jobs.setdefault(key, _Job(request, set())).numbers.update(request.numbers)
        result = EngineResult()
        with ProgressDisplay(title, sum(len(job.numbers) for job in jobs.values()), enabled=self.progress) as display:
            _run_to_end(lambda: self._work(jobs, identity, result, display))
        for job in jobs.values():
            result.failures += [Failure(job.request, number, reason) for number, reason in sorted(job.failures.items())]
        result.answers = [_select(request, jobs[key]) for key, request in zip(keys, requests, strict=True)]
        return result

    async def _work(self, jobs: dict[str, _Job], identity: str, result: EngineResult, display: ProgressDisplay) -> None:
        waiting = iter(jobs.items())

        async def worker() -> None:
            # No await between the look at the store and the call: a request is taken by one worker alone.
            while asked := self._next_batch(waiting, result, display):
                answers = await self.generator.generate_async([request for _, _, request in asked])
                self._keep(asked, answers, identity, display)

        await _all([worker() for _ in range(max(1, self.concurrency))])

    def _next_batch(
        self, waiting: Iterator[tuple[str, _Job]], result: EngineResult, display: ProgressDisplay
    ) -> list[tuple[str, _Job, Request]]:
        asked: list[tuple[str, _Job, Request]] = []
        while len(asked) < max(1, self.generator.batch_size):
            key, job = next(waiting, (None, None))
            if key is None or job is None:
                break
            job.completions = self.store.get(key, job.numbers)
            missing = job.numbers - job.completions.keys()
            result.reused += len(job.completions)
            result.asked += len(missing)
            display.advance(reused=len(job.completions))
            asked += [(key, job, job.request.only(first, count)) for first, count in _runs(missing)]
        return asked

    def _keep(
        self,
        asked: Sequence[tuple[str, _Job, Request]],
        answers: Sequence[Answer],
        identity: str,
        display: ProgressDisplay,
    ) -> None:
        name = type(self.generator).__name__
        if len(answers) != len(asked):
            raise RuntimeError(f"{name} gave {len(answers)} answers to {len(asked)} requests")
        for (key, job, request), answer in zip(asked, answers, strict=True):
            if answer.request != request:
                raise RuntimeError(f"{name} gave its answers in another order than the requests")
            for number in request.numbers:
                if number in answer.completions:
                    completion = answer.completions[number]
                    job.completions[number] = self.store.put(
                        key, number, completion, request=job.request, identity=identity
                    )
                    display.advance(done=1)
                else:
                    job.failures[number] = answer.failures.get(number, f"{name} gave no answer to sample {number}")
                    display.advance(failed=1)


def _runs(numbers: set[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as (first, count)."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _select(request: Request, job: _Job) -> Answer:
    numbers = request.numbers
    return Answer(
        request,
        {number: job.completions[number] for number in numbers if number in job.completions},
        {number: job.failures[number] for number in numbers if number in job.failures},
    )


async def _all(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs all; the first exception cancels the others and is raised."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run_to_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine also where a loop already runs, as in a notebook: in a thread then."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
