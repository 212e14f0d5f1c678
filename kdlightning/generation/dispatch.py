"""Sends calls: so many at a time, within the budget, again where it may help."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Answer, TextGenerator, UnavailableError
from kdlightning.generation.budget import Budget
from kdlightning.generation.claims import Claims
from kdlightning.generation.jobs import Call, Job, calls_of
from kdlightning.generation.loops import run_all
from kdlightning.generation.progress import ProgressDisplay
from kdlightning.generation.store import CompletionStore
from kdlightning.generation.usage import Usage, estimated_tokens

if TYPE_CHECKING:
    from kdlightning.generation.engine import EngineResult

BETWEEN_LOOKS = 0.2
"""Seconds between two looks at what other processes are asking for, when there is nothing else to do."""

LONGEST_WAIT = 60.0
"""Most seconds between two attempts, where the server asks for no wait."""

LONGEST_PAUSE = 900.0
"""Most seconds that a server may ask to wait; a longer pause ends the run, to be started again later."""


class Dispatcher:
    """Works a queue of calls off, by so many workers.

    Args:
        generator: who is asked.
        store: where answers go, and where each call looks first.
        budget: what may be spent.
        result: where counts go.
        display: told of each sample.
        identity: of the generator.
    """

    def __init__(
        self,
        generator: TextGenerator,
        store: CompletionStore,
        budget: Budget,
        result: EngineResult,
        display: ProgressDisplay,
        identity: str,
    ) -> None:
        self.generator = generator
        self.store = store
        self.budget = budget
        self.result = result
        self.display = display
        self.identity = identity
        self.claims = Claims(store)
        self.waiting: deque[tuple[Job, set[int]]] = deque()
        self.elsewhere: list[tuple[Job, set[int]]] = []
        self.exceeded: str | None = None
        self.error: ConfigurationError | None = None
        self._busy = 0
        self._watching = False
        self._sent = 0
        self._idle: list[asyncio.Future[None]] = []
        self._paused: set[asyncio.Future[None]] = set()
        self._not_before = 0.0

    @property
    def stopped(self) -> bool:
        """Whether nothing new is sent; what is in flight is waited for and kept."""
        return self.exceeded is not None or self.error is not None

    async def work(self, concurrency: int) -> None:
        """Works until the queue is empty or the budget spent.

        Raises:
            ConfigurationError: the generator cannot answer at all.
        """
        with self.claims.held():
            async with self.generator.session():
                samples = sum(len(numbers) for _, numbers in self.waiting)
                await run_all([self._worker() for _ in range(max(1, min(concurrency, samples)))])
        if self.error is not None:
            raise self.error

    async def _worker(self) -> None:
        # No await between the look at the store and the call: a sample is taken by one worker alone.
        while not self.stopped:
            calls = self._next()
            if calls:
                self._busy += 1
                try:
                    await self._ask(calls)
                finally:
                    self._busy -= 1
                    self._wake()
            elif self._busy or self._watching:
                await self._change()  # what others wait for may be incomplete, and is then shared
            elif self.elsewhere:
                await self._watch()
            else:
                return

    def _next(self) -> list[Call]:
        calls: list[Call] = []
        size = max(1, self.generator.batch_size)
        if not self.waiting:
            return calls
        with self.store.transaction():  # nobody else looks or claims between our look and our claim
            while self.waiting and len(calls) < size:
                job, numbers = self.waiting.popleft()
                self._look(job, numbers)
                parts = calls_of(job, self._claim(job, numbers & job.missing), self._most(job))
                if size == 1 and len(parts) > 1:
                    for part in reversed(parts[1:]):
                        self.waiting.appendleft((job, set(part.request.numbers)))
                    parts = parts[:1]
                calls += parts
        return calls

    def _claim(self, job: Job, numbers: set[int]) -> set[int]:
        """What is ours to ask for; what other processes are asking for is put aside."""
        ours = self.claims.take(job.key, numbers) if numbers else numbers
        if numbers - ours:
            self.elsewhere.append((job, numbers - ours))
        return ours

    def _most(self, job: Job) -> int | None:
        return None if job.request.sampling.greedy else self.generator.samples_per_call

    async def _ask(self, calls: list[Call]) -> None:
        attempt = 0
        while True:
            await self._pause(self._not_before - _now())
            reserved = await self._reserve(calls, again=attempt > 0)
            if reserved is None:
                return  # not asked for
            if not attempt:
                self.result.asked += sum(call.request.samples for call in calls)
            try:
                answers = await self.generator.generate_async([call.request for call in calls])
            except UnavailableError as failure:
                self._settle(reserved, failure.usage)
                if not await self._may_retry(failure, calls, attempt):
                    return
                attempt += 1
                continue
            except ConfigurationError as error:
                self._settle(reserved, Usage(requests=len(calls)))
                self._stop(error)
                return
            except BaseException:
                self._settle(reserved, reserved)
                raise
            self._settle(reserved, self._cost(calls, answers))
            self._keep(calls, answers)
            return

    async def _may_retry(self, failure: UnavailableError, calls: list[Call], attempt: int) -> bool:
        """Waits for the next attempt; False if there is none."""
        last = attempt >= self.generator.retries
        wait = failure.retry_after
        if wait is not None and wait > LONGEST_PAUSE:
            stored = "start again then, what is answered is stored"
            self._stop(ConfigurationError(f"{failure.reason}, and it asks to wait {wait:,.0f} seconds; {stored}"))
        elif last and failure.gone:
            self._stop(ConfigurationError(f"{failure.reason}; start again later, what is answered is stored"))
        if last or self.stopped:
            tried = f" ({attempt + 1} attempts)" if attempt else ""
            self._fail(calls, failure.reason + tried)
            return False
        self.result.retried += 1
        if wait is not None:
            self._not_before = max(self._not_before, _now() + wait)  # the server's wish is for everybody
        # A server that is overrun may ask for too little: the waits grow all the same.
        growing = min(LONGEST_WAIT, self.generator.first_wait * 2.0 ** min(attempt, 30))
        await self._pause(max(wait or 0.0, growing) * random.uniform(1.0, 1.25))
        return not self._found(calls)

    def _found(self, calls: Sequence[Call]) -> bool:
        """Whether another process has a part by now, answered or asked for; the rest is put back into the queue."""
        with self.store.transaction():
            found = [self._look(call.job, set(call.request.numbers)) for call in calls]
            rests = [call.job.missing & set(call.request.numbers) for call in calls]
            # Claimed anew: while a call is tried again and again, its claim must not grow old.
            lost = [self.claims.take(call.job.key, rest) != rest for call, rest in zip(calls, rests, strict=True)]
        if not any(found) and not any(lost):
            return False
        for call, rest in reversed(list(zip(calls, rests, strict=True))):
            self.result.asked -= call.request.samples
            if rest:
                self.waiting.appendleft((call.job, rest))
        return True

    def _look(self, job: Job, numbers: set[int]) -> bool:
        """Takes what the store has of these samples."""
        found = self.store.get(job.key, numbers)
        job.completions.update(found)
        self.result.reused += len(found)
        self.display.advance(reused=len(found))
        return bool(found)

    def _fail(self, calls: Sequence[Call], reason: str) -> None:
        for call in calls:
            for number in call.request.numbers:
                call.job.failures[number] = reason
                self.display.advance(failed=1)
            self.claims.release(call.job.key, call.request.numbers)

    # -- the budget ------------------------------------------------------------------------------------------------

    async def _reserve(self, calls: list[Call], *, again: bool) -> Usage | None:
        """Sets the cost aside, or gives None: the budget is spent. May shorten `calls`."""
        while not self.stopped:
            most = self._at_most(calls)
            which = self.budget.exceeded(most)
            if which is None:
                self.budget.reserve(most)
                self._sent += 1
                return most
            if self._sent:
                await self._change()  # what is in flight may cost less than was set aside for it
            elif len(calls) > 1:
                call = calls.pop()
                self.result.asked -= call.request.samples if again else 0
                self.waiting.appendleft((call.job, set(call.request.numbers)))
            else:
                self.exceeded = which
                self._wake()
        return None

    def _at_most(self, calls: Sequence[Call]) -> Usage:
        if self.budget.tokens is None and self.budget.money is None:
            return Usage(requests=len(calls))
        return sum((self.generator.most(call.request) for call in calls), Usage())

    def _settle(self, reserved: Usage, actual: Usage) -> None:
        self._sent -= 1
        self.budget.settle(reserved, actual)
        self.result.usage += actual
        self.display.spent(actual)
        self._wake()

    def _cost(self, calls: Sequence[Call], answers: Sequence[Answer]) -> Usage:
        known = [usage for answer in answers for usage in answer.usage.values()]
        if known:
            return sum(known, Usage())
        if self.budget.tokens is None and self.budget.money is None:
            return Usage(requests=len(calls))
        sent = sum(self.generator.prompt_tokens(call.request) for call in calls)
        back = sum(estimated_tokens(text) for answer in answers for text in answer.texts)
        return self.generator.priced(Usage(len(calls), sent, back, estimated=True))

    # -- answers ---------------------------------------------------------------------------------------------------

    def _keep(self, calls: Sequence[Call], answers: Sequence[Answer]) -> None:
        name = type(self.generator).__name__
        if len(answers) != len(calls):
            raise RuntimeError(f"{name} gave {len(answers)} answers to {len(calls)} requests")
        for call, answer in zip(calls, answers, strict=True):
            if answer.request != call.request:
                raise RuntimeError(f"{name} gave its answers in another order than the requests")
            self._keep_one(call, answer, name)

    def _keep_one(self, call: Call, answer: Answer, name: str) -> None:
        job, rest = call.job, set(call.request.numbers)
        for number in sorted(rest & answer.completions.keys()):
            job.completions[number] = self.store.put(
                job.key,
                number,
                answer.completions[number],
                request=job.request,
                identity=self.identity,
                usage=answer.usage.get(number),
            )
            rest.discard(number)
            self.display.advance(done=1)
        again = rest - answer.failures.keys()
        if len(again) == call.request.samples:
            again = set()  # it brought nothing, and would go on so
        for number in rest - again:
            job.failures[number] = answer.failures.get(number, f"{name} gave no answer to sample {number}")
            self.display.advance(failed=1)
        self.claims.release(job.key, rest - again)
        if again:
            # Fewer than were asked for: the others by further calls, as long as each brings something.
            self.result.asked -= len(again)
            self.waiting.appendleft((job, again))
            self._wake()

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _stop(self, error: ConfigurationError) -> None:
        """Nothing new is sent; the first error is the one that is raised."""
        self.error = self.error or error
        self._wake()

    async def _pause(self, seconds: float) -> None:
        """Waits so long, or until nothing new is sent."""
        if seconds <= 0 or self.stopped:
            return
        pause = asyncio.get_running_loop().create_future()
        self._paused.add(pause)
        await asyncio.wait([pause], timeout=seconds)
        self._paused.discard(pause)

    async def _watch(self) -> None:
        """Waits for what other processes are asking for: it is answered soon, or left to us."""
        self._watching = True
        try:
            await self._pause(BETWEEN_LOOKS)
        finally:
            self._watching = False
        self.waiting.extend(self.elsewhere)
        self.elsewhere.clear()
        self._wake()

    async def _change(self) -> None:
        """Waits until a call is through, or there is more in the queue."""
        idle = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        await idle

    def _wake(self) -> None:
        sleepers, self._idle = self._idle, []
        for sleeper in [*sleepers, *self._paused] if self.stopped else sleepers:
            if not sleeper.done():
                sleeper.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()
