"""Runs requests through a generator, with the store in between."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, Request, TextGenerator
from kdlightning.generation.budget import Budget, BudgetSpentError, Estimate
from kdlightning.generation.dispatch import Dispatcher
from kdlightning.generation.jobs import Job, calls_of, collecting, jobs_of, select
from kdlightning.generation.loops import run_to_end
from kdlightning.generation.progress import ProgressDisplay
from kdlightning.generation.store import CompletionStore
from kdlightning.generation.usage import Usage


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
        retried: further attempts after such as brought nothing.
        failures: samples that were not answered; asking again starts with these.
        usage: what this run cost; tokens are counted where the generator tells them, or a budget asks for them.
        title: what the run was called.
    """

    answers: list[Answer] = field(default_factory=list)
    asked: int = 0
    reused: int = 0
    retried: int = 0
    failures: list[Failure] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    title: str = ""

    def __str__(self) -> str:
        text = f"{self.asked} asked, {self.reused} from the store, {len(self.failures)} failed"
        text += f"; {self.usage}" if self.usage.tokens else ""
        reasons = Counter(failure.reason for failure in self.failures)
        shown = [f"  {reason}{f' ({count} times)' if count > 1 else ''}" for reason, count in reasons.most_common(10)]
        more = [f"  … and {len(reasons) - 10} more reasons"] if len(reasons) > 10 else []
        return "\n".join([text, *shown, *more])


class Engine:
    """Asks a generator, and never twice for what the store has.

    Identical requests are asked once. The store is looked at just before a request is sent, so what another process
    finished in the meantime is not asked again, nor what another one is asking for; each answer is committed before it
    counts as done. After a kill only requests that were in flight are asked again. What a generator leaves out of an
    answer is asked for by further requests. An attempt that brings nothing is made again, later each time or when the
    server says so.

    Args:
        generator: who is asked.
        store: where answers are kept; None keeps them for this run alone.
        concurrency: calls at the same time; None is the generator's own number.
        progress: whether to show a bar.
        budget: the most that may be spent, by all engines that are given it; None is no limit.
    """

    def __init__(
        self,
        generator: TextGenerator,
        store: CompletionStore | None = None,
        *,
        concurrency: int | None = None,
        progress: bool = True,
        budget: Budget | None = None,
    ) -> None:
        self.generator = generator
        self.store = store if store is not None else CompletionStore(":memory:")
        self.concurrency = generator.concurrency if concurrency is None else concurrency
        self.progress = progress
        self.budget = Budget() if budget is None else budget
        prices = generator.price_per_million_input + generator.price_per_million_output
        if self.budget.money is not None and not prices:
            raise ConfigurationError(
                f"a budget of money needs prices: give {type(generator).__name__} price_per_million_input and "
                "price_per_million_output"
            )

    def run(self, requests: Sequence[Request], title: str = "Requests") -> EngineResult:
        """Answers all requests.

        Args:
            requests: may repeat and may overlap in their samples.
            title: what the progress display calls this.

        Raises:
            BudgetSpentError: the next request would have exceeded the budget; what was in flight is stored.
            ConfigurationError: the generator cannot answer at all, or the store cannot be written.
        """
        identity, result = self.generator.identity, EngineResult(title=title)
        collected = gc.isenabled()
        with collecting(False):  # at its end all that was made is walked, so there is one block
            keys, jobs = jobs_of(requests, identity)
            wanted = sum(len(job.numbers) for job in jobs.values())
            with ProgressDisplay(title, wanted, enabled=self.progress) as display:
                dispatcher = Dispatcher(self.generator, self.store, self.budget, result, display, identity)
                result.reused = self._look(jobs)
                dispatcher.waiting.extend((job, open_) for job in jobs.values() if (open_ := job.missing))
                display.advance(reused=result.reused)
                if dispatcher.waiting:
                    with collecting(collected):
                        run_to_end(lambda: dispatcher.work(self.concurrency))
            result.answers = [select(request, jobs[key]) for key, request in zip(keys, requests, strict=True)]
            result.failures = [
                Failure(job.request, number, reason)
                for job in jobs.values()
                for number, reason in sorted(job.failures.items())
            ]
        if dispatcher.exceeded is not None:
            missing = sum(len(job.missing) for job in jobs.values())
            raise BudgetSpentError(self.budget, dispatcher.exceeded, result, missing)
        return result

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What `run` would ask and cost at most; nothing is sent.

        Retries are not foreseen, nor that a server gives fewer samples a call than it is asked for.
        """
        _, jobs = jobs_of(requests, self.generator.identity)
        stored = self._look(jobs)
        most, answers = Usage(), 0
        for job in jobs.values():
            limit = None if job.request.sampling.greedy else self.generator.samples_per_call
            for call in calls_of(job, job.missing, limit):
                most += self.generator.most(call.request)
                answers += call.request.samples
        return Estimate(answers, stored, most)

    def _look(self, jobs: dict[str, Job]) -> int:
        """Takes what the store has, many jobs at a time; the number of samples."""
        found = 0
        each = iter(sorted(jobs))  # in the order of the file
        while some := list(islice(each, 500)):
            for key, number, completion in self.store.get_many(some):
                job = jobs[key]
                if number in job.numbers:
                    job.completions[number] = completion
                    found += 1
        return found
