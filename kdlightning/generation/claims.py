"""Who is asking for what at this moment, among the processes that share a store."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdlightning.errors import ConfigurationError
from kdlightning.generation.store import CompletionStore

LONGEST = 600.0
"""Seconds after which a claim is void, whatever became of its owner."""

_LIVING: set[str] = set()


class Claims:
    """Sets samples aside before they are asked for, so that processes that share a store do not ask for them twice.

    A claim ends with its answer, when it is given up, with its process, or when it is old. It saves requests and guards
    nothing: the store takes an answer from anybody, and the first one stays. A store in memory needs no claims.

    Args:
        store: what is shared.
    """

    def __init__(self, store: CompletionStore) -> None:
        self.store = store
        self.shared = store.path != ":memory:"
        self.owner = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, what is claimed is ours; at the end, all that is left of it is free."""
        _LIVING.add(self.owner)
        try:
            yield
        finally:
            _LIVING.discard(self.owner)
            if self.shared:
                # Where the store cannot be written, another error says so; these claims end by themselves.
                with suppress(ConfigurationError), self.store.transaction() as connection:
                    connection.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))

    def take(self, key: str, numbers: Iterable[int]) -> set[int]:
        """Claims samples of a request, and returns those that nobody else has claimed."""
        if not self.shared:
            return set(numbers)
        with self.store.transaction() as connection:
            rows = connection.execute("SELECT sample, owner, since FROM claims WHERE request = ?", (key,)).fetchall()
            others = {sample for sample, owner, since in rows if owner != self.owner and _holds(owner, since)}
            ours = set(numbers) - others
            new = [(key, number, self.owner, time.time()) for number in ours]
            connection.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", new)
        return ours

    def release(self, key: str, numbers: Iterable[int]) -> None:
        """Gives samples up, so that others may ask for them."""
        mine = [(key, number, self.owner) for number in numbers]
        if self.shared and mine:
            with self.store.transaction() as connection:
                connection.executemany("DELETE FROM claims WHERE request = ? AND sample = ? AND owner = ?", mine)


def _holds(owner: str, since: float) -> bool:
    """Whether a claim is still one: it is not old, and its process lives as far as one can see."""
    if abs(time.time() - since) > LONGEST:
        return False
    process = int(owner.partition("-")[0])
    if process == os.getpid():  # or an earlier process of this number
        return owner in _LIVING
    if os.name != "posix":  # elsewhere the same call would end the process
        return True
    return _lives(process)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:  # not on this system
        return True
    return state != "Z"  # ended, and its parent has not asked how
