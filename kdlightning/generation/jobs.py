"""Requests by their hash: what of each is known, failed or missing."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

from kdlightning.generation.base import Answer, Completion, Request


@dataclass(slots=True)
class Job:
    """All samples that are wanted of one request.

    Attributes:
        key: the request's hash.
        request: one of the requests of this hash.
        numbers: samples that any of them asks for.
        shared: whether there are several of them.
        completions: answers so far.
        failures: reasons so far.
    """

    key: str
    request: Request
    numbers: frozenset[int]
    shared: bool = False
    completions: dict[int, Completion] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def missing(self) -> set[int]:
        """Samples that are neither answered nor given up."""
        if len(self.completions) == len(self.numbers):
            return set()
        return set(self.numbers - self.completions.keys() - self.failures.keys())


@dataclass(frozen=True)
class Call:
    """What one call asks for: consecutive samples of one job."""

    job: Job
    request: Request


def jobs_of(requests: Sequence[Request], identity: str) -> tuple[list[str], dict[str, Job]]:
    """The hash of each request, and the jobs by hash; identical requests share one."""
    jobs: dict[str, Job] = {}
    keys = []
    for request in requests:
        key = request.key(identity)
        numbers = _numbers(request.first_sample, request.samples)
        job = jobs.get(key)
        if job is None:
            jobs[key] = Job(key, request, numbers)
        else:
            job.numbers, job.shared = job.numbers | numbers, True
        keys.append(key)
    return keys, jobs


@lru_cache(maxsize=1024)
def _numbers(first: int, count: int) -> frozenset[int]:
    """One object for all requests that ask for the same numbers."""
    return frozenset(range(first, first + count))


def calls_of(job: Job, numbers: Iterable[int], most: int | None = None) -> list[Call]:
    """Calls for the given samples, each of consecutive numbers.

    Args:
        job: the job.
        numbers: of its samples.
        most: samples a call.
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and sum(runs[-1]) == number and runs[-1][1] != most:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return [Call(job, job.request.only(first, count)) for first, count in runs]


def select(request: Request, job: Job) -> Answer:
    """A request's own part of what its job found."""
    found, failed = job.completions, job.failures
    if not failed and not job.shared:
        return Answer(request, found)
    numbers = request.numbers
    return Answer(
        request,
        {number: found[number] for number in numbers if number in found},
        {number: failed[number] for number in numbers if number in failed},
    )


@contextmanager
def collecting(enabled: bool) -> Iterator[None]:
    """Switches the collector of cycles on or off. Where none are made it would walk millions of objects for nothing."""
    before = gc.isenabled()
    _switch(enabled)
    try:
        yield
    finally:
        _switch(before)


def _switch(enabled: bool) -> None:
    if not enabled:
        gc.disable()
        return
    if not gc.isenabled() and not gc.get_freeze_count():
        # All that was made grows old at once; else the next thing made would have the collector walk it.
        gc.freeze()
        gc.unfreeze()
    gc.enable()
