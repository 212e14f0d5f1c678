"""Coroutines run to their end: from anywhere, and several at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any


async def run_all(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs all; the first exception cancels the others and is raised."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_to_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a coroutine also where a loop already runs, as in a notebook: in a thread then."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    _InThread(work).run()


class _InThread:
    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.work = work
        self.errors: list[BaseException] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Any] | None = None
        self.interrupted = False
        self.ended = threading.Event()

    def run(self) -> None:
        thread = threading.Thread(target=self._in_thread)
        try:
            thread.start()
            self.ended.wait()  # after an interrupted `join`, Python takes a thread for ended that is not
        except BaseException:
            # The interrupt of a notebook arrives here, in the main thread.
            self.interrupted = True
            if self.loop is not None and self.task is not None:
                self.loop.call_soon_threadsafe(self.task.cancel)
            if thread.ident is not None:
                self.ended.wait()
            raise
        thread.join()
        if self.errors:
            raise self.errors[0]

    def _in_thread(self) -> None:
        try:
            asyncio.run(self._noted())
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.ended.set()

    async def _noted(self) -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        if not self.interrupted:
            await self.work()
